"""The figures of a report as files, one per figure, for a paper: SVG or PDF."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

from curvbench.plot.axes import graph_objects
from curvbench.report.page import figures
from curvbench.report.run import Run
from curvbench.words import one_line

EXTRA = "pip install 'curvbench[images]'"


def write(runs: Sequence[Run], form: str, folder: Path) -> list[Path]:
    """Write every figure of some runs into ``folder``, and return the files.

    Raises:
        ImportError: kaleido is not installed.
        ValueError: kaleido cannot draw; most often there is no Chrome or Chromium.
    """
    graph_objects()
    if importlib.util.find_spec("kaleido") is None:
        raise ImportError(f"figures as {form.upper()} need kaleido, and Chrome or Chromium: {EXTRA}")
    import plotly.io

    drawn = {f"{run.suite}-{name}": figure for run in runs for name, figure, _ in figures(run)}
    files = [folder / f"{re.sub(r'[^a-zA-Z0-9_.=]+', '-', name).strip('-')}.{form}" for name in drawn]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        plotly.io.write_images(list(drawn.values()), files)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"kaleido cannot draw, which needs Chrome or Chromium: {one_line(error, 300)}") from error
    return files
