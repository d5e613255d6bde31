"""A metric over the runs of a suite."""

from __future__ import annotations

import pandas as pd
import streamlit as st

import controls
import show
import source
from curvbench import plot
from curvbench.analysis import summary, views
from curvbench.analysis.history import STEP, history_table
from curvbench.plot.tradeoff import ERROR

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
quantity = controls.pick_quantity("Metric", views.quantities(frame, views.FAMILIES), "followed", ERROR)
parts = []
for run in runs:
    rows = source.rows(run)
    rows = rows[(rows["metric"] == quantity.metric) & (rows["scope"] == quantity.scope)]
    parts.append(rows.assign(run_id=run.name))
joined = pd.concat(parts)
if chosen := st.session_state["probes"]:
    joined = joined[summary.labels(joined, "probe").isin(chosen)]
data = history_table(joined, problem, quantity)
show.figure(plot.history(joined, quantity, problem), lambda: data, "history")
st.caption(f"Runs in the order of their beginning; a ring marks a change of more than {STEP:.0%} to the run before.")
show.table(data[data["step"]].drop(columns="step"), "steps")
