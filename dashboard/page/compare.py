"""Two runs side by side."""

from __future__ import annotations

import streamlit as st

import controls
import show
import source
from curvbench.analysis import compare, pairs, views
from curvbench.analysis.views import ERROR
from curvbench.plot.runs import comparison_figure

AGAIN = f"curvbench run {source.suite(controls.run())} --force"

st.header("Compare")
if len(source.runs()) < 2:
    show.empty("There is only one run. After a change, measure again in a new run:", AGAIN)
    st.stop()
baseline = controls.pick_run("Baseline (A), for the run of the sidebar (B)", "baseline", controls.place_of_baseline())
a, b = controls.of_probes(controls.rows(baseline)), controls.frame()
st.caption(show.plain(f"A: {baseline.name}, B: {controls.run().name}"))
if a.empty:
    show.nothing("The baseline has none of the chosen probes: choose another one, or other probes.")
    st.stop()
shared = [q for q in views.quantities(a, views.FAMILIES) if q in views.quantities(b, views.FAMILIES)]
if not shared:
    show.empty("These two runs have no metric in common. Measure the suite of one again:", AGAIN)
    st.stop()

if choices := compare.differences(a, b).get("parameters"):
    covers = f"A covers parameters = {choices[0]}, B parameters = {choices[1]}: they are of different matrices."
    st.warning(show.plain(covers))
st.subheader("What changed")
changes = pairs.pairs(a, b)
ordered = pairs.largest_first(changes)
if controls.switch("Only what differs", "differs"):
    ordered = ordered[pairs.is_change(ordered)]
st.caption(
    "Verdicts are on B; change is B / A - 1. Changes by rounding and times that differ by 10 % or less count as no "
    "difference. FLOPs and bytes repeat exactly."
)
show.table(views.differing(ordered, ["probe", "metric", "scope", "a", "b", "change", "verdict"]), "changes")

st.subheader("One metric")
quantity = controls.pick_quantity("Metric", shared, "compared", ERROR)
data = pairs.of_quantity(changes, quantity)
if data[["a", "b"]].notna().all(axis=1).any():
    show.figure(comparison_figure(show.thinned(data), quantity), lambda: data, "comparison")
else:
    show.empty("No cell of these two runs is the same probe on the same problem with the same seed:", AGAIN)
