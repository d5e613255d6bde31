"""What the papers claim, beside what was measured."""

from __future__ import annotations

import streamlit as st

import show

st.header("Claims")
show.empty(
    "No claim of a paper has been held against these results. The suites of the papers repeat their experiments:",
    "curvbench run suites/papers/SUITE",
)
