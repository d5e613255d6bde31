"""Any cell, on screen a measurement: its rows, its log, and the command that measures it again."""

from __future__ import annotations

from typing import Any

import streamlit as st

import controls
import show
import source
from curvbench.analysis import commands, frames, views

frame, run = controls.frame(), controls.run()
ends = views.cells(frame)

st.header("Measurements")
labels = ends["probe"] + " on " + ends["problem"] + ", seed " + ends["seed"].astype(str) + " (" + ends["cell_id"] + ")"


def _open() -> None:
    """The cell of the row that was clicked."""
    if places := st.session_state["table cells"]["selection"]["rows"]:
        st.session_state["cell"] = labels.iloc[places[0]]


stand_ins = ends["problem"].isin(frames.surrogates(frame))
labelled = ends.assign(problem=ends["problem"].mask(stand_ins, ends["problem"] + " (surrogate)"))
cells = views.differing(labelled, ["probe", "problem", "status"])
show.table(cells, "cells", on_select=_open, selection_mode="single-row")
label = controls.pick_cell(labels.tolist())
end = ends[labels == label].iloc[0]
rows = source.cell(run, end["cell_id"])
if rows.empty:
    show.nothing("The file of this measurement was removed after the page was opened.")
    st.stop()
first: dict[Any, Any] = rows.iloc[0].to_dict()

st.subheader(show.plain(label))
if end["status"] != "ok":
    st.error(show.plain(f"{end['status']}: {end['reason']}"))
st.text("This command measures it again, in a new run:")
st.code(commands.repeat(first, source.suite(run), source.record(run)), language="sh", wrap_lines=True)
texts = rows.assign(samples=rows["samples"].map(lambda raw: [] if raw is None else [float(f"{x:.4g}") for x in raw]))
facts = [name for name in rows if texts[name].astype(str).nunique() == 1]
of_a_row = ["metric", "scope", "value", "unit", "better", "status", "reason", "samples", "method"]
show.table(texts[[name for name in of_a_row if name in ("metric", "value") or name not in facts]], "rows")
with st.expander("Columns that are equal in all rows"):
    same = texts[facts].head(1).T.astype(str).reset_index().set_axis(["column", "value"], axis=1)
    st.dataframe(same, hide_index=True, key="table same", height="content")

st.subheader("Log")
log, damaged = source.log(run, end["cell_id"])
show.warnings(damaged)
if log:
    st.code(log, language=None)
else:
    st.text("It printed nothing, or its log is not here.")
