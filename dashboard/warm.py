"""Slow work done before the address is printed, so that the first page need not wait for it."""

from __future__ import annotations

import contextlib
import gc
import logging

import source
from curvbench import plot
from curvbench.analysis import views


def main() -> None:
    """Read the latest run and make a figure; faults in the files are left to the page."""
    # Streamlit warns of a cache that is filled without a session, and says that the warning can be ignored.
    logging.getLogger("streamlit.runtime.scriptrunner_utils.script_run_context").setLevel(logging.ERROR)
    with contextlib.suppress(ValueError, OSError):
        frame = source.latest()
        if frame is not None:
            plot.status(frame).to_json()
            views.cells(frame).head(1).style.to_html()
    gc.collect()
    gc.freeze()  # what is here by now is no garbage, and the end of every page need not look through it
