"""What a method's quality depends on: its damping, the samples and the age of its statistics, and their digits."""

from __future__ import annotations

import streamlit as st

import controls
import show
from curvbench.analysis import dampings, digits, held, views
from curvbench.plot.accuracy import sweep_figure
from curvbench.plot.settings import damping_figure, dtype_figure

st.header("Damping, samples, age, digits")
frame, problem, rows = controls.frame(), controls.problem(), controls.problem_rows()
metrics = set(rows["metric"])
sections = 0

if "damping.best" in metrics:
    sections += 1
    st.subheader("Against the damping")
    st.caption(
        "Every method at every damping of a grid, in units of the mean of the Fisher's diagonal. Thick: the plateau, "
        "at least 95 % of the method's best; a wide one forgives a wrong choice."
    )
    quantity = controls.pick_quantity("Quality", dampings.CURVES, "damped", dampings.CURVES[0])
    show.table(dampings.outcomes(rows, problem), "dampings")
    curves = dampings.curves(rows, problem, quantity)
    show.figure(damping_figure(curves, quantity), lambda: curves, "damping", metric=str(quantity), problem=problem)

if "error.population" in metrics:
    sections += 1
    st.subheader("Against the number of samples")
    st.caption(show.plain(held.SAMPLES_LEGEND))
    asked = controls.pick_quantity("Metric", held.SAMPLES, "sampled", held.SAMPLES[0])
    sampled = held.as_drawn(held.sampling(frame, asked), asked)
    show.table(views.differing(sampled, ["probe", held.N, "median"]), "sampled")
    show.figure(sweep_figure(sampled, held.N, asked), lambda: sampled, "sampling", metric=asked.heading)

if "stale.error" in metrics:
    sections += 1
    st.subheader("Against the age of the statistics")
    st.caption(show.plain(held.AGES_LEGEND))
    aged = controls.pick_quantity("Metric", held.AGES, "aged", held.AGES[0])
    ages = held.as_drawn(held.aging(rows, aged), aged)
    show.table(views.differing(ages, ["probe", held.STEPS, "median"]), "ages")
    show.figure(sweep_figure(ages, held.STEPS, aged), lambda: ages, "aging", metric=aged.heading, problem=problem)

if digits.is_measured(rows):
    sections += 1
    st.subheader("Against the digits of the statistics")
    known = [one for one in digits.QUANTITIES if len(digits.against_dtype(rows, problem, one))]
    if known:
        chosen = controls.pick_quantity("Metric", known, "rounded", known[0])
        lines = digits.against_dtype(rows, problem, chosen)
        show.table(views.differing(lines, ["probe", digits.AXIS, "median"]), "rounding")
        show.figure(dtype_figure(lines, chosen), lambda: lines, "digits", metric=chosen.heading, problem=problem)

if not sections:
    show.empty(
        "This run has no method at several dampings, samples, ages or digits. Suites that measure them are `samples`, "
        "`staleness` and `precision`; for dampings name the meter `damping` in a suite. For example:",
        "curvbench run suites/samples",
    )
