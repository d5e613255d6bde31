"""Training: metrics against epochs and seconds, and what it took to reach a target."""

from __future__ import annotations

import math

import streamlit as st

import controls
import show
import source
from curvbench import plot
from curvbench.analysis import targets, views

st.header("Training")
frame, problem, mine = controls.frame(), controls.problem(), controls.mine()
known = views.trained(mine)
if not known:
    show.empty(
        "Nothing was trained with these probes in this run. A suite that trains writes `train.loss`, `test.accuracy` "
        "and `train.seconds` per epoch:",
        "curvbench run suites/training --preset quick",
    )
    st.stop()
left, right = st.columns(2)
with left:
    metric = controls.pick_metric("Metric", [name for name in known if name != "train.seconds"] or known, "trained")
with right:
    against = controls.pick_one("Against", ("epoch", "seconds"), "time")
st.caption(
    "After the last epoch of each training, medians over seeds. Curves have the range as a band; one that reached the "
    "suite's target has ended, and medians go on without it. Seconds are those of training alone."
)
last = views.final(mine, problem, known)
show.table(views.differing(last, [str(name) for name in last if name != "status"]), "final")
show.figure(plot.curves(mine, problem, metric, against), lambda: views.curves(mine, problem, metric), "training")

usual = targets.usual_target(mine, metric)
st.subheader("Time to a target")
if math.isnan(usual):
    show.empty(
        f"No training of this problem has come to the end of an epoch with a value of {metric}. Again:",
        f"curvbench run {source.suite(controls.run())} --rerun-failed",
    )
    st.stop()
left, right = st.columns(2)
with left:
    meaning = "Half of the trainings reach the one that is given."
    target = controls.pick_number(f"Target of {metric}", usual, f"target {metric}", meaning)
with right:
    cost = controls.pick_one("Cost", targets.COSTS[::-1], "to_target")
trials = targets.trials(frame, metric, target)
reached = targets.to_target(trials[trials["problem"] == problem])
st.caption("A miss counts as later than any hit in the median over seeds; ranges are of those that reached the target.")
show.table(views.differing(reached.drop(columns="problem"), ["probe", "reached", "of", "epochs", "seconds"]), "targets")
show.figure(plot.profiles(frame, metric, target, cost), lambda: targets.profile(trials, cost), "profiles")
st.caption("Performance profile over every problem and seed of the run, each against the best of the same two.")
