"""The papers' claims beside the latest run of each experiment and the latest run of its surrogate."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import streamlit as st

import controls
import show
import source
from curvbench import shipped, store
from curvbench.analysis.claims import Judged, judge, newest
from curvbench.analysis.papers import Experiment, experiments
from curvbench.analysis.verdicts import Verdict
from curvbench.registry.errata import ERRATA
from curvbench.report.claims import LEGEND, counts
from curvbench.report.papers import findings, told

EVERY = "All"
COLOURS: Mapping[str, str] = {  # legible on white and on black
    Verdict.HOLDS: "#2da44e",
    Verdict.DIRECTION: "#bf8700",
    Verdict.REFUTED: "#e5484d",
    Verdict.UNDECIDED: "#a475f9",
    Verdict.NOT_MEASURED: "#868e96",
}
published = {experiment.id: experiment for experiment in experiments()}
runs: dict[str, list[pd.DataFrame]] = {}
for run in source.runs().values():  # the latest first
    if run.parent.name in published:
        runs.setdefault(run.parent.name, []).append(controls.rows(run))
is_shipped = not runs
for run in store.runs_below(shipped.DATA / "reference") if is_shipped else ():
    runs.setdefault(run.parent.name, []).insert(0, controls.rows(run))
latest = {name: newest(frames[::-1]) for name, frames in runs.items()}


def table(judged: list[Judged]) -> pd.DataFrame:
    """One row per claim, with the verdict in the paper's setting and, apart from it, the verdict on the surrogate."""
    rows = []
    for entry in judged:
        rulings = {"in its setting": entry.original, "SURROGATE": entry.surrogate}
        row = {"claim": entry.claim.text} | {name: str(ruling.verdict) for name, ruling in rulings.items()}
        row |= {"the paper": entry.reported}
        for name, ruling in rulings.items():
            row[f"measured, {name}"] = "; ".join(filter(None, [ruling.measured, ruling.reason]))
        rows.append(row | {"errata": ", ".join(entry.experiment.errata), "suite": entry.experiment.id})
    return pd.DataFrame(rows)


def notes(experiment: Experiment) -> list[str]:
    """Setting, errata and remarks of an experiment."""
    return [experiment.setting, *(f"Erratum {i}: {ERRATA[i].text}" for i in experiment.errata), *experiment.remarks]


st.header("Claims")
if is_shipped:
    st.caption("These results have no experiment of a paper. The verdicts stand on the rows that curvbench ships.")
names = published if is_shipped else latest  # layer shapes decide some claims without a run
chosen = controls.pick("Experiment", [EVERY, *names], "experiment")
selected = [published[name] for name in names if chosen in (EVERY, name)]
judged = judge(pd.concat([*latest.values()]), selected)
if is_shipped and chosen == EVERY:
    for finding in findings():
        st.markdown(f"- {show.plain(told(finding, judged))}")
st.text(counts(judged))
show.table(table(judged), "claims", COLOURS)
st.caption(show.plain(LEGEND))
for experiment in selected:
    heading = show.plain(f"{experiment.id}: {experiment.paper}, {experiment.source}")
    with st.expander(heading, expanded=len(selected) == 1):
        for note in notes(experiment):
            st.text(note)
