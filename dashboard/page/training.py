"""Training: metrics against epochs and seconds, and what it took to reach a target."""

from __future__ import annotations

import streamlit as st

import controls
import show
from curvbench import plot
from curvbench.analysis import views

problem = controls.problem()
mine = views.of_problem(controls.frame(), problem)
known = views.trained(mine)

st.header("Training")
if not known:
    show.empty(
        "Nothing was trained with these probes in this run. A suite that trains writes `train.loss`, `test.accuracy` "
        "and `train.seconds` per epoch; those of the papers are in suites/papers:",
        "curvbench run suites/papers/SUITE",
    )
    st.stop()
metric = controls.pick_metric("Metric", known, "trained")
against = controls.pick_one("Against", ("epoch", "seconds"), "time")
data = views.curves(mine, problem, metric)
show.figure(plot.curves(mine, problem, metric, against), data, "training")
st.caption("Median over seeds, with the range as a band. Seconds are those of training alone.")
show.table(views.final(mine, problem, known), "final")
