"""The verb ``report``: a run as one page that is readable offline, or as tables for a paper or a pull request."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from curvbench import store
from curvbench.analysis import noise
from curvbench.report.run import Run
from curvbench.report.text import latex, markdown

FORMATS = ("html", "markdown", "latex")


def read(folders: Sequence[Path]) -> list[Run]:
    """The runs of some folders.

    Raises:
        ValueError: a run holds no cell, or was written by a later version.
    """
    runs = [_read(folder) for folder in folders]
    if empty := [run.name for run in runs if run.frame.empty]:
        raise ValueError(f"run {empty[0]} has no cell yet: there is nothing to report")
    return runs


def _read(folder: Path) -> Run:
    frame = noise.with_spread(store.load(folder))
    first = frame[frame["seed"] == frame["seed"].min()]
    blocks = {}
    for cell in first["cell_id"].unique():
        try:
            blocks[cell] = store.read_blocks(folder, cell)
        except ValueError as error:  # the report has a picture less
            warnings.warn(f"{error}: set aside", stacklevel=3)
    stored = {cell: of_cell for cell, of_cell in blocks.items() if of_cell is not None}
    return Run(folder.name, frame, store.read_run(folder), stored)


def write(runs: Sequence[Run], format: str) -> str:
    """The report in one of ``FORMATS``; raises ImportError if ``html`` finds no plotly."""
    return _writer(format)(runs)


def _writer(format: str) -> Callable[[Sequence[Run]], str]:
    if format == "html":
        from curvbench.report.page import html  # needs plotly

        return html
    return {"markdown": markdown, "latex": latex}[format]
