"""Tuning: trials of the settings in a grid, the choice among them, and the trainings with the chosen settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from statistics import median
from typing import Any, NamedTuple

import pandas as pd

from curvbench.planning import proposals
from curvbench.spec import METRICS, TRIALS, Cell, Search, Status

Setting = Mapping[str, Any]
Trial = tuple[Cell, Setting]  # the cell that a setting is looked for, and the setting that the trial tries
Trials = Mapping[str, Trial]  # by the trial's cell_id
Score = float | None  # None: a seed of the setting failed


class Choice(NamedTuple):
    """The best setting that a search found for one probe on one problem, and the cost of the search.

    ``score``: the setting's median over seeds. ``trials``: the number of trials; ``failed``: how many of them have no
    score. ``seconds``: training time of all trials. ``at_edge``: the names whose chosen value is the least or the
    greatest of the grid.
    """

    cell: Cell
    setting: Setting
    score: float
    trials: int
    failed: int
    seconds: float
    at_edge: tuple[str, ...]

    def __str__(self) -> str:
        setting = ", ".join(f"{name}={value:g}" for name, value in self.setting.items())
        failed = f", {self.failed} failed" if self.failed else ""
        edge = f"; {', '.join(self.at_edge)} at the edge of the grid" if self.at_edge else ""
        label = f"{self.cell.probe.label} on {self.cell.problem.label}"
        return f"{label}: {setting} ({self.score:.4g}; {self.trials} trials, {self.seconds:.3g} s{failed}{edge})"


def next_trials(
    cells: Iterable[Cell], search: Search, tried: Trials | None = None, frame: pd.DataFrame | None = None
) -> dict[Cell, Trial]:
    """The next trials of a search, by the cell that each trial measures.

    ``tried``: the trials so far, ``frame``: their rows. Without them these are the first trials. There are no next
    trials if the search has ended, or if a trial so far was not run.

    Raises:
        ValueError: the package of the search's sampler is not installed.
    """
    tried, scores = tried or {}, {}
    if frame is not None:
        if not tried.keys() <= set(frame["cell_id"]):
            return {}
        scores = _last(frame, search.metric)
    trials: dict[Cell, Trial] = {}
    for cell in _contenders(cells):
        settings = {trial: setting for trial, (tuned, setting) in tried.items() if tuned == cell}
        scored = [(dict(setting), score) for setting, score in _medians(settings, scores).items()]
        for setting, seed in product(proposals.proposed(_grid(cell, search), search, scored), search.seeds):
            trials[_trial(with_setting(cell, setting), search, seed)] = cell, setting
    return trials


def _trial(cell: Cell, search: Search, seed: int) -> Cell:
    """The cell that a trial measures: it trains on less data for the search's epochs, and never sees the test part."""
    assert cell.training is not None
    epochs = cell.training.epochs if search.epochs is None else search.epochs
    training = dataclasses.replace(cell.training, valid=search.valid, target=None, measure_at=(), epochs=epochs)
    # weights: a shipped snapshot belongs to another seed
    return dataclasses.replace(cell, suite=cell.suite + TRIALS, seed=seed, training=training, weights="")


def _grid(cell: Cell, search: Search) -> dict[str, Sequence[Any]]:
    """The part of the grid that a cell has fields for."""
    fields = {**cell.probe.hyperparameters, **(cell.training.hyperparameters if cell.training else {})}
    return {name: values for name, values in search.grid.items() if name in fields}


def with_setting(cell: Cell, setting: Setting) -> Cell:
    """The cell with the values of a setting: in its training if that has a field of the name, else in its probe."""
    assert cell.training is not None
    of_training = {name: value for name, value in setting.items() if name in cell.training.hyperparameters}
    of_probe = {name: value for name, value in setting.items() if name not in of_training}
    training = dataclasses.replace(cell.training, **of_training)
    return dataclasses.replace(cell, probe=dataclasses.replace(cell.probe, **of_probe), training=training)  # type: ignore[type-var]


def choose(tried: Trials, search: Search, frame: pd.DataFrame) -> list[Choice]:
    """The best setting of each cell, from the rows ``frame`` of its trials.

    A setting has no score if one of its seeds failed.

    Raises:
        ValueError: no trial of a cell succeeded; the text has the reason of one of them.
    """
    scores, seconds = _last(frame, search.metric), _last(frame, "train.seconds")
    settings_of: dict[Cell, dict[str, Setting]] = {}
    for trial, (cell, setting) in tried.items():
        settings_of.setdefault(cell, {})[trial] = setting
    for cell, settings in settings_of.items():
        if scores.keys().isdisjoint(settings):
            failed = frame[frame["cell_id"].isin(list(settings)) & (frame["metric"].fillna("") == "")]
            reason = "; ".join(failed["reason"].head(1)) or "they were not run"
            raise ValueError(f"no trial of {cell.probe.label} on {cell.problem.label} succeeded: {reason}")
    return [_best(cell, settings, scores, seconds, search) for cell, settings in settings_of.items()]


def settled(cells: Iterable[Cell], choices: Iterable[Choice]) -> list[Cell]:
    """The cells, each with the setting chosen for its probe, problem and training."""
    chosen = {_contender(choice.cell): choice.setting for choice in choices}
    return [with_setting(cell, chosen[_contender(cell)]) for cell in cells]


def _best(
    cell: Cell,
    settings: Mapping[str, Setting],
    scores: Mapping[str, float],
    seconds: Mapping[str, float],
    search: Search,
) -> Choice:
    medians = {setting: score for setting, score in _medians(settings, scores).items() if score is not None}
    if not medians:
        raise ValueError(f"every setting of {cell.probe.label} on {cell.problem.label} failed with one of its seeds")
    pick = max if METRICS[search.metric].better == "higher" else min
    best = pick(medians, key=medians.__getitem__)
    failed = sum(trial not in scores for trial in settings)
    total = sum(seconds.get(trial, 0.0) for trial in settings)
    edge = tuple(name for name, value in best if _is_edge(value, search.grid[name]))
    return Choice(cell, dict(best), medians[best], len(settings), failed, total, edge)


def _medians(settings: Mapping[str, Setting], scores: Mapping[str, float]) -> dict[tuple[tuple[str, Any], ...], Score]:
    """The median over seeds of every tried setting. None means that a seed of the setting has no score."""
    by_setting: dict[tuple[tuple[str, Any], ...], list[Score]] = {}
    for trial, setting in settings.items():
        by_setting.setdefault(tuple(setting.items()), []).append(scores.get(trial))
    return {
        setting: None if None in values else median(v for v in values if v is not None)
        for setting, values in by_setting.items()
    }


def _is_edge(value: Any, tried: Sequence[Any]) -> bool:
    """Whether a value is the least or the greatest of the tried numbers, so that a better one may lie beyond."""
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in tried)
    return numbers and len(set(tried)) > 2 and value in (min(tried), max(tried))


def _last(frame: pd.DataFrame, metric: str) -> dict[str, float]:
    """The value after the last epoch by cell, for the cells whose training ended without a failure."""
    ended = ~frame["cell_id"].isin(frame.loc[frame["metric"].fillna("") == "", "cell_id"])
    rows = frame[ended & (frame["metric"] == metric) & (frame["status"] == Status.OK)]
    last = rows.sort_values("epoch", kind="stable").groupby("cell_id")["value"].last()
    return {str(cell): float(value) for cell, value in last.items()}


def _contenders(cells: Iterable[Cell]) -> list[Cell]:
    """The first cell of every probe and problem: all seeds share the setting that is chosen."""
    first: dict[Any, Cell] = {}
    for cell in cells:
        first.setdefault(_contender(cell), cell)
    return list(first.values())


def _contender(cell: Cell) -> tuple[Any, ...]:
    return cell.problem, cell.probe, cell.training
