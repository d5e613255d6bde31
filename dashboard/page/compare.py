"""Two runs side by side."""

from __future__ import annotations

import streamlit as st

import controls
import show
import source
from curvbench.analysis import compare, pairs, views
from curvbench.analysis.limits import limit_of
from curvbench.analysis.views import ERROR
from curvbench.plot.runs import comparison_figure

AGAIN = f"curvbench run {source.suite(controls.run())} --force"

st.header("Compare")
if len(source.runs()) < 2:
    show.empty("There is only one run. After a change, measure again in a new run:", AGAIN)
    st.stop()
baseline = controls.pick_baseline("Baseline (A), for the run of the sidebar (B)")
if baseline is None:
    show.empty("No other run of this suite is here: choose a run of another suite above, or measure again:", AGAIN)
    st.stop()
a, b = controls.of_probes(controls.rows(baseline)), controls.frame()
st.caption(show.plain(f"A: {baseline.name}, B: {controls.run().name}"))
if a.empty:
    show.nothing("The baseline has none of the chosen methods: choose another one, or other methods.")
    st.stop()
shared = [q for q in views.quantities(a, views.FAMILIES) if q in views.quantities(b, views.FAMILIES)]
if not shared:
    show.empty("These two runs have no metric in common. Measure the suite of one again:", AGAIN)
    st.stop()

if choices := compare.differences(a, b).get("parameters"):
    covers = f"A covers parameters = {choices[0]}, B parameters = {choices[1]}: they are of different matrices."
    st.warning(show.plain(covers))
all_changes = pairs.pairs(a, b)
are_times = all_changes["metric"].isin([name for name in set(all_changes["metric"]) if limit_of(name).sampled])
changes, times = all_changes[~are_times], all_changes[are_times]
differing = changes[pairs.is_change(changes)]
st.subheader("What changed")
counts = differing["verdict"].value_counts()
listed = ", ".join(f"{count:,} {verdict}" for verdict, count in counts.items()) or "none differs"
st.text(f"Of {len(changes):,} values other than times: {listed}.")
ordered = pairs.largest_first(differing if controls.switch("Only what differs", "differs") else changes)
st.caption("Verdicts are on B; change is B / A - 1. Rounding is no difference. FLOPs and bytes repeat exactly.")
shown = ["probe", "metric", "scope", "a", "b", "change", "verdict"]
if len(ordered):
    show.table(views.differing(ordered, shown), "changes")
if len(times):
    with st.expander(f"Times, not judged ({len(times):,})"):
        st.text(
            "Times of two runs that were not measured in turn differ by the state of the machine. Measure both in "
            "turns, and let this command judge:"
        )
        st.code("curvbench compare A B --all-runs", language="sh")
        show.table(views.differing(pairs.largest_first(times).drop(columns="verdict"), shown[:-1]), "times")

st.subheader("One metric")
quantity = controls.pick_quantity("Metric", shared, "compared", ERROR)
data = pairs.of_quantity(all_changes, quantity)
if data[["a", "b"]].notna().all(axis=1).any():
    show.figure(comparison_figure(show.thinned(data), quantity), lambda: data, "comparison")
else:
    show.empty("These two runs have no method on the same problem with the same seed in common:", AGAIN)
