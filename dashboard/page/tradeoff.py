"""Quality against cost."""

from __future__ import annotations

import streamlit as st

import controls
import show
from curvbench.analysis import frames, views
from curvbench.analysis.views import ERROR, FLOPS
from curvbench.plot.frontier import tradeoff_figure

st.header("Trade-off")
problem, rows = controls.problem(), controls.problem_rows()
costs = views.quantities(rows, ["flops", "memory", "time"])
qualities = views.quantities(rows, ["error", "direction", "health"])
if not costs or not qualities:
    show.empty("No method has both an error and a cost on this problem.", "curvbench run suites/mlp")
    st.stop()
left, right = st.columns(2)
with left:
    y = controls.pick_quantity("Quality", qualities, "y", ERROR)
with right:
    x = controls.pick_quantity("Cost", costs, "x", FLOPS)
log = controls.switch("Logarithmic axes", "log")
data = views.tradeoff(rows, problem, x, y)
st.caption("A method is on the Pareto front if no other method is at least as good in both and better in one.")
ranges = [f"{axis} {end}" for axis in "xy" for end in ("min", "max") if data[f"{axis} {end}"].equals(data[axis])]
table = views.best_first(views.headed(data.drop(columns=ranges), x, y), y.heading, y.better, x.metric, y.metric)
of_quality = [name for name in map(str, table) if name.startswith(y.heading)]
table = table[["probe", *of_quality, *table.columns.drop(["probe", *of_quality])]]
show.table(views.differing(table, ["probe", x.heading, y.heading, "front"]), "points")
name = frames.shown_problem(rows, problem)
show.figure(
    tradeoff_figure(data, name, x, y, log, st.session_state["pins"]),
    lambda: views.headed(data, x, y),
    "tradeoff",
    problem=problem,
)
