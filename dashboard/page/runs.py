"""Every run of the folder: its state, what a person noted of it, and where to note it."""

from __future__ import annotations

import shlex

import pandas as pd
import streamlit as st

import controls
import guard
import show
import source
from curvbench import store
from curvbench.analysis import runs
from curvbench.analysis.verdict.words import counted

FIRST = ("run", "label", "state", "failed", "elapsed", "started", "commit", "machine", "tags", "note", "archived")

st.header("Runs")
shown = {name: source.runs()[name] for name in controls.offered([controls.run_name()])}
rows = [runs.row(name, source.record(run), source.notes(run), source.progress(run)) for name, run in shown.items()]
table = pd.DataFrame(rows).astype({"failed": "int64"})
facts = table.drop(columns="suite")  # with which the names of runs begin
show.table(facts[[name for name in FIRST if facts[name].map(bool).any()]], "runs")
if hidden := len(source.runs()) - len(shown):
    st.caption(f"{counted(hidden, 'archived run')} not shown: the switch in the sidebar shows all.")
st.caption(
    "Elapsed is from each command of a run to the end of its last measurement; of files that were copied to the start "
    "of it. A plus behind a commit means that files differed from it."
)

run = controls.run()
st.subheader(show.plain(f"Notes on {controls.run_name()}"))
notes = source.notes(run)
FIELDS = [f"{field} of {controls.run_name()}" for field in ("label", "note", "tags", "archived")]


def _refusal() -> str | None:
    """Why the page cannot change notes."""
    if source.is_sample():
        return "The shipped sample takes no notes. Copy its folder, or look at results of your own."
    if not guard.is_at_home():
        return "This page is open to other machines, from which notes cannot be changed. On its own machine:"
    return None


def _save() -> None:
    """Write what the fields hold."""
    label, note, tags, archived = (st.session_state[key] for key in FIELDS)
    changes = {"label": label.strip(), "note": note.strip(), "tags": store.tags(tags), "archived": archived}
    try:
        store.change_notes(run, **changes)
    except (ValueError, OSError) as error:
        st.session_state["note fault"] = str(error)


if why := _refusal():
    st.info(why)
    if not source.is_sample():
        st.code(f"curvbench runs {shlex.quote(str(run))} --label TEXT", language="sh", wrap_lines=True)
    st.stop()
if fault := st.session_state.pop("note fault", None):
    st.error(show.plain(fault))
with st.form(f"notes on {controls.run_name()}"):
    label, note, tags, archived = FIELDS
    st.text_input("Label", notes.label, key=label, max_chars=store.LONGEST["label"])
    st.text_input("Note", notes.note, key=note, max_chars=store.LONGEST["note"])
    st.text_input("Tags, with commas between them", ", ".join(notes.tags), key=tags)
    st.toggle("Archived: not among the runs to choose from", notes.archived, key=archived)
    st.form_submit_button("Save", on_click=_save)
