"""The trials of a search: the best setting of each method, every trial, and which hyperparameters matter."""

from __future__ import annotations

import streamlit as st

import controls
import show
from curvbench.analysis import frames, trials, views
from curvbench.analysis.verdict import searches
from curvbench.plot.trials import trials_figure

st.header("Tuning")
problem, rows = controls.problem(), controls.problem_rows()
is_search = trials.are_trials(str(rows["suite"].iloc[0]))
metric = searches.judge(rows)
table = trials.table(rows if is_search else rows[:0], metric)
if table.empty:
    show.empty(
        "This run has no trial of a search that has ended. A suite whose preset has a search writes them into a run of "
        "their own:",
        "curvbench run suites/papers/fngd_t5_damping.py",
    )
    st.stop()
st.subheader("Best of each method")
better = views.meaning(metric).better
st.caption(f"Settings by their {views.plain(metric)} after the last epoch, medians over seeds; {better} is better.")
show.table(trials.best(table), "best")

st.subheader("Every trial")
show.table(table, "trials")
name = frames.shown_problem(rows, problem)
show.figure(trials_figure(table, name, metric), lambda: table, "parallel", metric=metric, problem=problem)

st.subheader("Which hyperparameters matter")
shares = trials.importance(table)
if shares.empty:
    show.nothing(f"No method has {trials.FEWEST} trials or more with several values of a hyperparameter.")
    st.stop()
st.caption(trials.IMPORTANCE)
show.table(shares, "importance")
