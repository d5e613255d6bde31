"""How good the approximations are: per layer, and against hyperparameters."""

from __future__ import annotations

import streamlit as st

import controls
import show
import source
from curvbench.analysis import frames, views
from curvbench.analysis.views import ERROR, GAP_CLOSED
from curvbench.plot.accuracy import heatmap_figure, sweep_figure
from curvbench.spec import METRICS

st.header("Accuracy")
frame, problem, rows = controls.frame(), controls.problem(), controls.problem_rows()
in_layers = set(rows.loc[~rows["scope"].isin(views.WHOLES), "metric"])
per_layer = [name for name in METRICS if name.startswith(("error.", "direction.")) and name in in_layers]
if not per_layer:
    show.empty("No method has an error on this problem.", "curvbench run suites/mlp")
    st.stop()
st.subheader("Per layer")
metric = controls.pick_metric("Metric", per_layer, "layers")
table = views.layers(rows, problem, metric)
layers = table.reset_index()
if table.shape[1]:
    layers = views.best_first(layers, str(table.columns[0]), views.meaning(metric).better, metric)
show.table(layers, "per layer")
name = frames.shown_problem(rows, problem)
show.figure(
    heatmap_figure(table, views.endings(rows), name, metric), lambda: layers, "layers", metric=metric, problem=problem
)

st.subheader("Against a hyperparameter")
settings = views.settings(frame, source.record(controls.run()))
parameters, qualities = views.parameters(frame, settings), views.quantities(frame, ["error", "direction"])
if not parameters or not qualities:
    show.empty(
        "In this run no method was measured with two values of a hyperparameter. For example:",
        "curvbench run suites/mlp -p 'ginger[rank=4]' -p 'ginger[rank=8]' -p 'ginger[rank=16]'",
    )
    st.stop()
left, right = st.columns(2)
with right:
    parameter = controls.pick("Against", parameters, "against")
with left:
    usual = views.moving(frame, settings, parameter, [ERROR, GAP_CLOSED, *qualities])
    quantity = controls.pick_quantity("Quality", qualities, "quality", usual)
swept = views.sweep(frame, settings, parameter, quantity)
ranges = [end for end in ("min", "max") if swept[end].equals(swept["median"])]
show.table(views.differing(swept.drop(columns=ranges), ["probe", parameter, "median"]), "swept")
show.figure(sweep_figure(swept, parameter, quantity), lambda: swept, "sweep", metric=quantity.heading)
