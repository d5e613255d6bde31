"""The cost of a step."""

from __future__ import annotations

import streamlit as st

import controls
import show
import source
from curvbench.analysis import exact, frames, scaling, views
from curvbench.plot.exponents import growth_figure
from curvbench.plot.phases import ADDITIVE, cost_figure
from curvbench.spec import PHASES

st.header("Cost")
problem, rows = controls.problem(), controls.problem_rows()
if exact.is_measured(rows):
    st.caption(show.plain(f"{exact.title(rows)}. {exact.LEGEND}"))
    show.exact_cost(source.rows(controls.run()))
    st.stop()
in_steps = set(rows.loc[rows["scope"] == "step", "metric"])
metrics = [name for name in ("flops.counted", "time.wall", "memory.peak") if name in in_steps]
if not metrics:
    show.empty("No method has a cost on this problem.", "curvbench run suites/mlp")
    st.stop()
metric = controls.pick_metric("Metric", metrics, "cost")
with st.container(horizontal=True):
    relative = controls.switch("As multiples of SGD", "relative")
    stacked = metric in ADDITIVE and controls.switch("Stacked", "stacked")
data = views.phases(rows, problem, metric)
st.caption(
    f"A step in which nothing is amortized: statistics and inverse are computed at every step. "
    f"{views.meaning(metric).better.capitalize()} is better."
)
costs = [views.GRADIENT, *PHASES]
listed = views.differing(views.best_first(data.drop(columns="noisy"), "x SGD", "lower"), ["probe", "x SGD", *costs])
first = ["probe", *(name for name in map(str, listed) if name.startswith("x SGD"))]
listed = listed[[*first, *listed.columns.difference(first, sort=False)]]
show.table(views.with_unit(listed, costs, views.meaning(metric).unit), "phases")
name = frames.shown_problem(rows, problem)
show.figure(cost_figure(data, name, metric, relative, stacked), lambda: data, "cost", metric=metric, problem=problem)

counts = views.published(rows, problem)
if len(counts):
    st.subheader("Counted against published")
    st.caption("Published complexities leave out the backward passes; the counted FLOPs include them.")
    show.table(views.with_unit(counts, ["counted", "published"], "FLOP"), "published")

all_growth = source.growth(controls.run())
growth = controls.of_methods(all_growth)
if len(all_growth):
    st.subheader("Growth with size")
    if growth.empty:
        show.nothing("No chosen method was measured in three sizes or more that change its cost.")
        st.stop()
    sweep = controls.pick("Sweep", list(growth["problem"].unique()), "sweep")
    exponents = growth[growth["problem"] == sweep]
    st.caption(show.plain(scaling.LEGEND.partition("; !")[0]))
    show.table(exponents.drop(columns="problem"), "exponents")
    show.figure(growth_figure(growth, sweep), lambda: exponents, "growth")
