"""Tuning: trials of the settings in a grid, the choice among them, and the trainings with what was chosen."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from statistics import median
from typing import Any, NamedTuple

import pandas as pd

from curvbench.planning import proposals
from curvbench.spec import METRICS, TRIALS, Cell, Search, Status

Tried = Mapping[str, tuple[Cell, Mapping[str, Any]]]  # by the trial's cell_id: whose setting is looked for, and it


class Choice(NamedTuple):
    """What a search found for one probe on one problem: the best setting, and what finding it has cost.

    ``score``: the setting's median over seeds. ``failed``: trials without one. ``seconds``: of training, of all trials.
    ``at_edge``: names of which the least or the greatest number of the grid was chosen.
    """

    cell: Cell
    setting: Mapping[str, Any]
    score: float
    trials: int
    failed: int
    seconds: float
    at_edge: tuple[str, ...]

    def __str__(self) -> str:
        found = ", ".join(f"{name}={value:g}" for name, value in self.setting.items())
        lost = f", {self.failed} failed" if self.failed else ""
        edge = f"; {', '.join(self.at_edge)} at the edge of the grid" if self.at_edge else ""
        where = f"{self.cell.probe.label} on {self.cell.problem.label}"
        return f"{where}: {found} ({self.score:.4g}; {self.trials} trials, {self.seconds:.3g} s{lost}{edge})"


def trials(
    cells: Iterable[Cell], search: Search, tried: Tried | None = None, frame: pd.DataFrame | None = None
) -> dict[Cell, tuple[Cell, Mapping[str, Any]]]:
    """The next trials of a search, each with the cell that it looks for a setting of, and the setting.

    The first ones, or those after what was ``tried`` with the rows ``frame``: none where the search has come to its
    end, or a trial was not run.

    Raises:
        ValueError: what the search needs is not installed.
    """
    tried, scores = tried or {}, {}
    if frame is not None:
        if not tried.keys() <= set(frame["cell_id"]):
            return {}
        scores = _last(frame, search.metric)
    found: dict[Cell, tuple[Cell, Mapping[str, Any]]] = {}
    for cell in _contenders(cells):
        mine = [(trial, setting) for trial, (place, setting) in tried.items() if place == cell]
        before = [(dict(setting), score) for setting, score in _medians(mine, scores).items()]
        for setting, seed in product(proposals.proposed(_grid(cell, search), search, before), search.seeds):
            found[_trial(with_setting(cell, setting), search, seed)] = cell, setting
    return found


def _trial(cell: Cell, search: Search, seed: int) -> Cell:
    """A cell as it is tried: on less data, to the end of so many epochs, and without any look at the test part."""
    assert cell.training is not None
    epochs = cell.training.epochs if search.epochs is None else search.epochs
    training = dataclasses.replace(cell.training, valid=search.valid, target=None, measure_at=(), epochs=epochs)
    # a shipped snapshot is that of another seed
    return dataclasses.replace(cell, suite=cell.suite + TRIALS, seed=seed, training=training, weights="")


def _grid(cell: Cell, search: Search) -> dict[str, Sequence[Any]]:
    """The part of the grid that a cell has fields for."""
    known = {**cell.probe.hyperparameters, **(cell.training.hyperparameters if cell.training else {})}
    return {name: values for name, values in search.grid.items() if name in known}


def with_setting(cell: Cell, setting: Mapping[str, Any]) -> Cell:
    """The cell with values of its training, and where that has no such field, of its probe."""
    assert cell.training is not None
    own = {name: value for name, value in setting.items() if name in cell.training.hyperparameters}
    rest = {name: value for name, value in setting.items() if name not in own}
    training = dataclasses.replace(cell.training, **own)
    return dataclasses.replace(cell, probe=dataclasses.replace(cell.probe, **rest), training=training)  # type: ignore[type-var]


def choose(tried: Tried, search: Search, frame: pd.DataFrame) -> list[Choice]:
    """The best setting of each cell, from the rows of its trials by ``cell_id``.

    A setting of which a seed failed has no score.

    Raises:
        ValueError: no trial of a cell succeeded; the text has the reason of one of them.
    """
    scores, seconds = _last(frame, search.metric), _last(frame, "train.seconds")
    groups: dict[Cell, list[tuple[str, Mapping[str, Any]]]] = {}
    for trial, (cell, setting) in tried.items():
        groups.setdefault(cell, []).append((trial, setting))
    for cell, mine in groups.items():
        if not any(trial in scores for trial, _ in mine):
            lost = frame[frame["cell_id"].isin([trial for trial, _ in mine]) & (frame["metric"].fillna("") == "")]
            why = "; ".join(lost["reason"].head(1)) or "they were not run"
            raise ValueError(f"no trial of {cell.probe.label} on {cell.problem.label} succeeded: {why}")
    return [_best(cell, mine, scores, seconds, search) for cell, mine in groups.items()]


def settled(cells: Iterable[Cell], choices: Iterable[Choice]) -> list[Cell]:
    """The cells with what was chosen for their probe and problem."""
    chosen = {_place(choice.cell): choice.setting for choice in choices}
    return [with_setting(cell, chosen[_place(cell)]) for cell in cells]


def _best(
    cell: Cell,
    mine: Sequence[tuple[str, Mapping[str, Any]]],
    scores: Mapping[str, float],
    seconds: Mapping[str, float],
    search: Search,
) -> Choice:
    whole = {key: score for key, score in _medians(mine, scores).items() if score is not None}
    if not whole:
        raise ValueError(f"every setting of {cell.probe.label} on {cell.problem.label} failed with one of its seeds")
    pick = max if METRICS[search.metric].better == "higher" else min
    best = pick(whole, key=lambda key: whole[key])
    failed = sum(trial not in scores for trial, _ in mine)
    spent = sum(seconds.get(trial, 0.0) for trial, _ in mine)
    edge = tuple(name for name, value in best if _is_edge(value, search.grid[name]))
    return Choice(cell, dict(best), whole[best], len(mine), failed, spent, edge)


def _medians(
    trials: Iterable[tuple[str, Mapping[str, Any]]], scores: Mapping[str, float]
) -> dict[tuple[tuple[str, Any], ...], float | None]:
    """The median over seeds of every setting that was tried; None where a seed has no score."""
    found: dict[tuple[tuple[str, Any], ...], list[float | None]] = {}
    for trial, setting in trials:
        found.setdefault(tuple(setting.items()), []).append(scores.get(trial))
    return {
        key: None if None in values else median(v for v in values if v is not None) for key, values in found.items()
    }


def _is_edge(value: Any, tried: Sequence[Any]) -> bool:
    """Whether a better number may lie beyond those that were tried."""
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in tried)
    return numbers and len(set(tried)) > 2 and value in (min(tried), max(tried))


def _last(frame: pd.DataFrame, metric: str) -> dict[str, float]:
    """By cell the value after the last epoch, of the cells that came to their end."""
    ended = ~frame["cell_id"].isin(frame.loc[frame["metric"].fillna("") == "", "cell_id"])
    rows = frame[ended & (frame["metric"] == metric) & (frame["status"] == Status.OK)]
    last = rows.sort_values("epoch", kind="stable").groupby("cell_id")["value"].last()
    return {str(cell): float(value) for cell, value in last.items()}


def _contenders(cells: Iterable[Cell]) -> list[Cell]:
    """The first cell of every probe and problem: seeds share what is found."""
    first: dict[Any, Cell] = {}
    for cell in cells:
        first.setdefault(_place(cell), cell)
    return list(first.values())


def _place(cell: Cell) -> tuple[Any, ...]:
    return cell.problem, cell.probe, cell.training
