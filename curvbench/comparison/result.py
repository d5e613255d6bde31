"""What a measurement has found: rows, a table, a figure, sentences, and a run like any other."""

from __future__ import annotations

import html
import shutil
import tempfile
import textwrap
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from curvbench import store
from curvbench.analysis import frames, summary
from curvbench.analysis.verdict import sentences
from curvbench.analysis.views import Quantity
from curvbench.report import terminal
from curvbench.words import one_line

if TYPE_CHECKING:
    import plotly.graph_objects as go


WIDTH = 118  # characters of a line of text


@dataclass(frozen=True, eq=False)
class Comparison:
    """Methods that were measured on one model.

    ``frame``: the rows, as ``curvbench.load`` gives them. ``notes``: what was left out, in whole lines.
    """

    frame: pd.DataFrame
    notes: Sequence[str] = ()
    _files: Path = field(default=Path(), repr=False)  # the folder of the run's folder

    @classmethod
    def of(cls, run: Path, notes: Sequence[str] = ()) -> Comparison:
        """What a run's folder holds; its files are kept without its references."""
        kept = Path(tempfile.mkdtemp(prefix="curvbench-"))
        shutil.copytree(run, kept / run.name, ignore=shutil.ignore_patterns("references"))
        comparison = cls(store.load(run), tuple(notes), kept)
        weakref.finalize(comparison, shutil.rmtree, kept, ignore_errors=True)
        return comparison

    @property
    def problem(self) -> str:
        """The label of the model and its batch."""
        return frames.problems(self.frame)[0]

    def verdict(
        self, flops: float = 2.0, memory: float = 3.0, refresh: int = 100, *, provisional: bool = False
    ) -> list[str]:
        """What was found, in three to six sentences with numbers, and what was left out.

        ``flops``, ``memory`` and ``refresh``: the budget, as ``curvbench.advise`` takes it. ``provisional``: mark every
        sentence, because methods are still running.
        """
        return [*sentences(self.frame, flops, memory, refresh, provisional=provisional), *self.notes]

    def table(self) -> pd.DataFrame:
        """The methods with their errors, steps and costs: one row per method, medians over batches."""
        return summary.table(self.frame, self.problem)

    def plot(self) -> go.Figure:
        """The share of the gap that each method closes against the FLOPs of its step."""
        from curvbench import plot

        gap = Quantity("direction.gap_closed", "network")
        return plot.tradeoff(self.frame, self.problem, Quantity("flops.ratio", "step"), gap)

    def save(self, folder: str | Path) -> Path:
        """Write the run into a folder of results, where the dashboard, ``report`` and ``check`` find it, once.

        Returns:
            The folder of the run.

        Raises:
            ValueError: nothing can be written there.
        """
        (run,) = self._files.iterdir()
        target = Path(folder) / str(self.frame["suite"].iloc[0]) / run.name
        if not target.exists():
            try:
                shutil.copytree(run, target)
            except OSError as error:
                raise ValueError(f"the run cannot be written to {str(folder)!r}: {one_line(error)}") from error
        return target

    def to_latex(self) -> str:
        """The table as LaTeX, three digits each."""
        return self._digits().to_latex()

    def _digits(self) -> pd.DataFrame:
        values = self.table()
        values.columns = [one_line(column.heading) for column in summary.columns(self.frame, self.problem)]
        return values.map(summary.digits)

    def __str__(self) -> str:
        folded = partial(textwrap.fill, width=WIDTH, break_on_hyphens=False, subsequent_indent="  ")
        said = [folded(f"- {sentence}") for sentence in self.verdict()]
        table = terminal.lines(terminal.summary_table(self.frame, self.problem), WIDTH)
        return "\n".join([folded(summary.title(self.frame, self.problem)), "", *said, "", *table])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in self.verdict())
        title = html.escape(summary.title(self.frame, self.problem))
        return f"<p>{title}</p><ul>{items}</ul>{self._digits().to_html()}"
