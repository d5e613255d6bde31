"""A metric over the runs of a suite."""

from __future__ import annotations

import pandas as pd
import streamlit as st

import controls
import show
import source
from curvbench.analysis import frames, views
from curvbench.analysis.history import STEP, history_table
from curvbench.analysis.views import ERROR
from curvbench.plot.timeline import history_figure

frame, problem = controls.frame(), controls.problem()
suite = str(frame["suite"].iloc[0])
runs = [run for run in source.runs().values() if run.parent == controls.run().parent]

st.header("History")
if len(runs) < 2:
    show.empty(
        f"{show.plain(suite)} has one run only. After a change of the code, measure again:",
        f"curvbench run suites/{suite} --force",
    )
    st.stop()
quantities = views.quantities(frame, views.FAMILIES)
if not quantities:
    show.nothing("These rows have no metric of a network or of a phase, and a history shows no other metrics.")
    st.stop()
quantity = controls.pick_quantity("Metric", quantities, "followed", ERROR)
parts = []
for run in runs:
    rows = frames.covering_alike(controls.rows(run), frame)
    asked = (rows["metric"] == quantity.metric) & (rows["scope"] == quantity.scope)
    rows = rows[asked | frames.is_cell_ending(rows)]  # the figure names cells without a value
    parts.append(rows.assign(run_id=run.name))
joined = controls.of_probes(pd.concat(parts))
data = history_table(joined, problem, quantity)
steps = data.loc[data["step"], ["probe", "run", "value", "change"]]
st.caption(
    f"Runs of the same parameters by their start. A step is a change of more than {STEP:.0%} since the run before."
)
if len(steps):
    show.table(steps, "steps")
else:
    st.text("No step.")
show.figure(history_figure(data, frames.shown_problem(joined, problem), quantity), lambda: data, "history")
