"""Two runs side by side."""

from __future__ import annotations

import streamlit as st

import controls
import show
import source
from curvbench import plot
from curvbench.analysis import pairs, summary, views
from curvbench.plot.tradeoff import ERROR

st.header("Compare")
if len(source.runs()) < 2:
    show.empty("There is one run only. After a change, measure again in a new run:", "curvbench run suites/mlp --force")
    st.stop()
a = controls.frame()
other = controls.pick_run("The run of the sidebar (A) against (B)", "other", place=controls.place_of_another())
b = source.rows(other)
if chosen := st.session_state["probes"]:
    b = b[summary.labels(b, "probe").isin(chosen)]
st.caption(show.plain(f"A: {controls.run().name}, B: {other.name}"))
shared = [q for q in views.quantities(a, views.FAMILIES) if q in views.quantities(b, views.FAMILIES)]
if not shared:
    st.info("These two runs have no metric in common.", icon=":material/info:")
    st.stop()
quantity = controls.pick_quantity("Metric", shared, "compared", ERROR)
changes = pairs.pairs(a, b)
data = pairs.of_quantity(changes, quantity)
if data[["a", "b"]].notna().all(axis=1).any():
    show.figure(plot.comparison(a, b, quantity), lambda: data, "comparison")
else:
    st.info(
        "No cell of these two runs is the same probe on the same problem with the same seed.", icon=":material/info:"
    )

st.subheader("What changed")
changes = changes.sort_values("change", key=abs, ascending=False, kind="stable", na_position="last")
if controls.switch("Only what differs", "differs"):
    changes = changes[pairs.counts(changes)]
st.caption(
    "Verdicts are on B. Left out as no difference: what rounding moves, and times that differ by 10 % or less. FLOPs "
    "and bytes repeat exactly."
)
show.table(changes, "changes")
