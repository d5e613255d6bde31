"""Training: metrics against epochs and seconds, and the cost of reaching a target."""

from __future__ import annotations

import math

import streamlit as st

import controls
import show
import source
from curvbench.analysis import frames, targets, views
from curvbench.plot.training import curves_figure, profiles_figure

st.header("Training")
frame, problem, rows = controls.frame(), controls.problem(), controls.problem_rows()
metrics = views.trained(rows)
if not metrics:
    show.empty(
        "Nothing was trained with these methods in this run. A suite that trains writes losses, accuracies and seconds "
        "per epoch:",
        "curvbench run suites/training --preset quick",
    )
    st.stop()
left, right = st.columns(2)
with left:
    metric = controls.pick_metric("Metric", [name for name in metrics if name != "train.seconds"] or metrics, "trained")
with right:
    against = controls.pick_one("Against", ("epoch", "seconds"), "time")
st.caption(
    "Values after the last epoch of each training, medians over seeds. Curves have the range as a band. A training "
    "that reached the suite's target has ended, and medians go on without it. Seconds are those of training alone."
)
last = views.final(rows, problem, metrics)
if metric in last:
    last = views.best_first(last, metric, views.meaning(metric).better, metric)
show.table(views.differing(last, [str(name) for name in last if name != "status"]), "final")
curves = views.curves(rows, problem, metric)
name = frames.shown_problem(rows, problem)
figure = curves_figure(curves, views.endings(rows), name, metric, against)
show.figure(figure, lambda: curves, "training", metric=metric, problem=problem)

usual = targets.usual_target(rows, metric)
st.subheader("Time to a target")
if math.isnan(usual):
    show.empty(
        f"No training of this problem has come to the end of an epoch with a {views.plain(metric)}. Again:",
        f"curvbench run {source.suite(controls.run())} --rerun-failed",
    )
    st.stop()
left, right = st.columns(2)
with left:
    meaning = "Half of the trainings reach the default."
    target = controls.pick_number(f"Target of the {views.plain(metric)}", usual, f"target {metric}", meaning)
with right:
    cost = controls.pick_one("Cost", targets.COSTS[::-1], "to_target")
trials = targets.trials(frame, metric, target)
reached = targets.to_target(trials[trials["problem"] == problem])
st.caption("In medians over seeds a miss is later than any hit; ranges are of the trainings that reached the target.")
listed = reached[["probe", "reached", "of"]].copy()
for name in ("epochs", "seconds"):
    listed[name] = reached[name]
    listed[f"{name} range"] = views.range_texts(reached[f"{name} min"], reached[f"{name} max"])
show.table(listed, "targets")
is_surrogate = bool(frames.surrogates(frame))
show.figure(
    profiles_figure(trials, metric, target, cost, is_surrogate),
    lambda: targets.profile(trials, cost),
    "profiles",
    metric=metric,
)
st.caption("Performance profile over every problem and seed of the run, each against the best of the same two.")
