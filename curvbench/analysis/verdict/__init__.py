"""What a run has found, in sentences with numbers: each sentence a pure function of rows.

``comparison`` is on methods held against the exact Fisher, ``clocks`` on their seconds; ``trainings``, ``paces``,
``searches``, ``sweeps``, ``exacts`` and ``gates`` are on other runs.
"""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from curvbench.analysis import sweep
from curvbench.analysis.frames import is_cell_ending, problems, texts
from curvbench.analysis.summary import is_paced, is_trained
from curvbench.analysis.verdict import clocks, comparison, exacts, paces, searches, sweeps, trainings
from curvbench.analysis.verdict.alike import cases
from curvbench.analysis.verdict.methods import Budget, budget
from curvbench.spec import TRIALS

__all__ = ["Budget", "budget", "sentences"]

PROVISIONAL = "Provisional: "
NOTHING = "Not enough measured: there is no row yet."


def sentences(
    frame: pd.DataFrame, flops: float = 2.0, memory: float = 3.0, refresh: int = 100, *, provisional: bool = False
) -> list[str]:
    """The verdict on the rows of one problem, as ``curvbench.load`` gives them, in a few sentences with numbers.

    ``flops``: what a step may cost, in gradients. ``memory``: its peak memory over that of SGD. ``refresh``: the number
    of steps from one refresh of statistics and factors to the next. ``provisional``: mark every sentence, because cells
    are still running.

    Raises:
        ValueError: the rows are of several problems, or the budget is no budget.
    """
    limits = budget(flops, memory, refresh)
    if len(names := problems(frame)) > 1:
        raise ValueError(f"a verdict is on one problem, and the rows have {len(names)}: {', '.join(names)}")
    made = _made(frame.reset_index(drop=True), limits) if len(frame) else [NOTHING]
    return [PROVISIONAL * provisional + sentence for sentence in made]


def _made(rows: pd.DataFrame, limits: Budget) -> list[str]:
    if texts(rows, "suite").str.endswith(TRIALS).all():
        return _said(sentence(rows) for sentence in searches.SENTENCES)
    if is_trained(rows):
        return _said(sentence(rows) for sentence in trainings.SENTENCES)
    if is_paced(rows):
        return _said(sentence(rows) for sentence in paces.SENTENCES)
    if (cost := exacts.cost_of_the_exact(rows)) is not None:
        return [cost]
    made = []
    for name, case in cases(_decisive(rows)).items():
        may_be_swept = (
            texts(case, "probe_args").str.contains("updates=", regex=False).any()
        )  # to look closer takes long
        is_swept = bool(may_be_swept and sweep.swept(case))
        last = sweep.last(case) if is_swept else case
        said = _said(sentence(last, limits) for sentence in comparison.SENTENCES)
        made += [f"{name}: {sentence}" if name else sentence for sentence in said]
        made += _said([sweeps.learning(case)]) if is_swept else []
    return made + _said([clocks.noisy_clocks(rows)])


def _decisive(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that sentences on methods read, and one of every cell: errors of many layers are most of the rows."""
    is_read = rows["metric"].isin(comparison.READ) | (rows["metric"].eq(sweeps.METRIC) & rows["scope"].eq("network"))
    return rows[is_read | is_cell_ending(rows) | ~rows["cell_id"].duplicated()]


def _said(made: Iterable[str | None]) -> list[str]:
    return [sentence for sentence in made if sentence is not None]
