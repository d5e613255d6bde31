"""Quality against cost."""

from __future__ import annotations

import streamlit as st

import controls
import show
from curvbench.analysis import frames, views
from curvbench.analysis.views import ERROR, FLOPS
from curvbench.plot.frontier import tradeoff_figure

st.header("Trade-off")
problem, mine = controls.problem(), controls.mine()
costs = views.quantities(mine, ["flops", "memory", "time"])
qualities = views.quantities(mine, ["error", "direction", "health"])
if not costs or not qualities:
    show.empty("No probe of this problem has both an error and a cost.", "curvbench run suites/mlp")
    st.stop()
left, right = st.columns(2)
with left:
    y = controls.pick_quantity("Quality", qualities, "y", ERROR)
with right:
    x = controls.pick_quantity("Cost", costs, "x", FLOPS)
log = controls.switch("Logarithmic axes", "log")
data = views.tradeoff(mine, problem, x, y)
st.caption("On the Pareto front no other probe is at least as good in both and better in one.")
ranges = [f"{axis} {end}" for axis in "xy" for end in ("min", "max") if data[f"{axis} {end}"].equals(data[axis])]
shown = data.drop(columns=ranges).rename(columns={"x": x.heading, "y": y.heading})
show.table(views.differing(shown, ["probe", x.heading, y.heading, "front"]), "points")
name = frames.shown_problem(mine, problem)
show.figure(tradeoff_figure(data, name, x, y, log), lambda: data, "tradeoff")
