"""Which layers carry the error of each method."""

from __future__ import annotations

import streamlit as st

import controls
import show
from curvbench.analysis import frames, views
from curvbench.plot.accuracy import heatmap_figure

SHARE = "error.share"

st.header("Which layers carry the error")
problem, rows = controls.problem(), controls.problem_rows()
shares = views.layers(rows, problem, SHARE).dropna(how="all")
if shares.empty:
    show.empty("No method's error was split over the layers of this problem.", "curvbench run suites/mlp")
    st.stop()
most = shares.agg(["idxmax", "max"], axis=1)
st.caption(
    "The share of each layer in the squared distance between a method's matrix and the exact Fisher, over all layer "
    "blocks: a row sums to 1. To mend a method, begin with its largest layer."
)
table = most.set_axis(["largest layer", "its share"], axis=1).rename_axis("probe").reset_index()
table = views.best_first(table.astype({"its share": "float64"}), "its share", "higher", SHARE)
show.table(table, "largest layers")
figure = heatmap_figure(shares, views.endings(rows), frames.shown_problem(rows, problem), SHARE)
show.figure(figure, lambda: shares.reset_index(), "shares", metric=SHARE, problem=problem)
