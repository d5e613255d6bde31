"""What the papers claim, beside the latest run of each of their experiments, and the latest of its surrogate."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import streamlit as st

import controls
import show
import source
from curvbench.analysis.claims import Judged, judge, newest
from curvbench.analysis.papers import Experiment, experiments
from curvbench.analysis.verdicts import Verdict
from curvbench.registry.errata import ERRATA
from curvbench.report.claims import LEGEND, counts

EVERY = "All"
COLOURS: Mapping[str, str] = {  # legible on white and on black
    Verdict.HOLDS: "#2da44e",
    Verdict.DIRECTION: "#bf8700",
    Verdict.REFUTED: "#e5484d",
    Verdict.UNDECIDED: "#a475f9",
    Verdict.NOT_MEASURED: "#868e96",
}
known = {experiment.id: experiment for experiment in experiments()}
runs: dict[str, list[pd.DataFrame]] = {}
for run in source.runs().values():  # the latest first
    if run.parent.name in known:
        runs.setdefault(run.parent.name, []).append(source.rows(run))
latest = {name: newest(frames[::-1]) for name, frames in runs.items()}


def table(judged: list[Judged]) -> pd.DataFrame:
    """One row per claim, with a verdict on its own setting and one on the surrogate, which never counts for it."""
    rows = []
    for found in judged:
        rulings = {"in its setting": found.original, "SURROGATE": found.surrogate}
        row = {"claim": found.claim.text} | {name: str(ruling.verdict) for name, ruling in rulings.items()}
        row |= {"the paper": found.reported}
        for name, ruling in rulings.items():
            row[f"measured, {name}"] = "; ".join(filter(None, [ruling.measured, ruling.reason]))
        rows.append(row | {"errata": ", ".join(found.experiment.errata), "suite": found.experiment.id})
    return pd.DataFrame(rows)


def notes(experiment: Experiment) -> list[str]:
    """Its setting, what its tables have wrong, and what else has to be known."""
    return [experiment.setting, *(f"Erratum {i}: {ERRATA[i].text}" for i in experiment.errata), *experiment.remarks]


st.header("Claims")
if not latest:
    show.empty(
        "No claim of a paper has been held against these results. The suites of the papers repeat their experiments:",
        "curvbench run suites/papers",
    )
    st.stop()
chosen = controls.pick("Experiment", [EVERY, *latest], "experiment")
mine = [known[name] for name in latest if chosen in (EVERY, name)]
judged = judge(pd.concat([latest[experiment.id] for experiment in mine]), mine)
st.text(counts(judged))
show.table(table(judged), "claims", COLOURS)
st.caption(show.plain(LEGEND))
for experiment in mine:
    with st.expander(show.plain(f"{experiment.id}: {experiment.paper}, {experiment.source}"), expanded=len(mine) == 1):
        for note in notes(experiment):
            st.text(note)
