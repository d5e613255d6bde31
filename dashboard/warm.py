"""What the first page would wait for, done before the address is printed: the latest run is read, a figure made."""

from __future__ import annotations

import contextlib
import logging

import source
from curvbench import plot
from curvbench.analysis import views


def main() -> None:
    """Fill the caches of this process; what is wrong with the files is for the page to say."""
    # Of a cache that is filled before there is a session Streamlit says that this may be ignored.
    logging.getLogger("streamlit.runtime.scriptrunner_utils.script_run_context").setLevel(logging.ERROR)
    with contextlib.suppress(ValueError, OSError):
        frame = source.latest()
        if frame is not None:
            plot.status(frame).to_json()
            views.cells(frame).head(1).style.to_html()
