"""Figures from the rows that ``curvbench.load`` gives: each function makes the table of a figure and draws it.

The rows should be those of one run: medians are taken over all rows of a probe. ``problem`` is a label; None means the
problem of the first row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import pandas as pd

from curvbench.analysis import frames, held, scaling, targets, views
from curvbench.analysis.frames import of_problem, shown_problem
from curvbench.analysis.history import STEP, history_table
from curvbench.analysis.pairs import of_quantity, pairs
from curvbench.analysis.views import ERROR, FLOPS, Quantity
from curvbench.plot.accuracy import heatmap_figure, sweep_figure
from curvbench.plot.axes import or_why
from curvbench.plot.exponents import growth_figure
from curvbench.plot.frontier import tradeoff_figure
from curvbench.plot.overview import status_figure
from curvbench.plot.phases import cost_figure
from curvbench.plot.runs import comparison_figure
from curvbench.plot.timeline import history_figure
from curvbench.plot.training import curves_figure, profiles_figure

if TYPE_CHECKING:
    import plotly.graph_objects as go


def tradeoff(
    frame: pd.DataFrame, problem: str | None = None, x: Quantity = FLOPS, y: Quantity = ERROR, log: bool = True
) -> go.Figure:
    """One point per probe, ranges over seeds as bars, the Pareto front as a line; see ``frontier.tradeoff_figure``."""
    problem = problem or _first(frame)
    table = views.tradeoff(frame, problem, x, y)
    return or_why(tradeoff_figure(table, shown_problem(frame, problem), x, y, log), f"{x} and {y}", frame)


def heatmap(frame: pd.DataFrame, problem: str | None = None, metric: str = "error.relative") -> go.Figure:
    """Probe by layer: medians over seeds, dark where they are least."""
    problem = problem or _first(frame)
    table, statuses = views.layers(frame, problem, metric), views.endings(of_problem(frame, problem))
    return or_why(heatmap_figure(table, statuses, shown_problem(frame, problem), metric), metric, frame)


def sweep(
    frame: pd.DataFrame, parameter: str = "epoch", quantity: Quantity = ERROR, settings: views.Settings | None = None
) -> go.Figure:
    """A quantity against a hyperparameter: ``epoch``, ``probe.damping`` and the like.

    ``settings`` as ``analysis.views.settings`` gives them. None means the settings that the rows themselves name.
    """
    known_settings = views.settings(frame) if settings is None else settings
    table = views.sweep(frame, known_settings, parameter, quantity)
    what = f"{quantity} at two values of {parameter} or more"
    return or_why(sweep_figure(table, parameter, quantity), what, frame)


def sampling(frame: pd.DataFrame, quantity: Quantity = held.SAMPLES[0]) -> go.Figure:
    """A quantity against samples, in a run of the meter ``population``; the floor is a line of its own."""
    table = held.as_drawn(held.sampling(frame, quantity), quantity)
    return or_why(sweep_figure(table, held.N, quantity), str(quantity), frame)


def aging(frame: pd.DataFrame, quantity: Quantity = held.AGES[0]) -> go.Figure:
    """A quantity against the age of statistics, in a run of the meter ``staleness``; the floor is a line of its own."""
    table = held.as_drawn(held.aging(frame, quantity), quantity)
    return or_why(sweep_figure(table, held.STEPS, quantity), str(quantity), frame)


def cost(
    frame: pd.DataFrame,
    problem: str | None = None,
    metric: str = "flops.counted",
    relative: bool = True,
    stacked: bool = True,
) -> go.Figure:
    """One bar per probe: the gradient and the phases of a step; see ``phases.cost_figure``."""
    problem = problem or _first(frame)
    table = views.phases(frame, problem, metric)
    return or_why(cost_figure(table, shown_problem(frame, problem), metric, relative, stacked), metric, frame)


def curves(
    frame: pd.DataFrame,
    problem: str | None = None,
    metric: str = "train.loss",
    against: Literal["epoch", "seconds"] = "epoch",
) -> go.Figure:
    """One line per probe: the median over seeds, with the range as a band; seconds are those of training alone."""
    problem = problem or _first(frame)
    table, statuses = views.curves(frame, problem, metric), views.endings(of_problem(frame, problem))
    figure = curves_figure(table, statuses, shown_problem(frame, problem), metric, against)
    return or_why(figure, f"{metric} per epoch", frame)


def profiles(
    frame: pd.DataFrame, metric: str = "test.accuracy", target: float | None = None, cost: targets.Cost = "seconds"
) -> go.Figure:
    """Performance profiles over all problems and seeds; see ``training.profiles_figure``.

    ``target``: a value of the metric. None means the target that half of the trainings reach.
    """
    goal = targets.usual_target(frame, metric) if target is None else target
    figure = profiles_figure(targets.trials(frame, metric, goal), metric, goal, cost, bool(frames.surrogates(frame)))
    return or_why(figure, f"{metric} per epoch that reaches {goal:.3g}", frame)


def comparison(a: pd.DataFrame, b: pd.DataFrame, quantity: Quantity, names: tuple[str, str] = ("A", "B")) -> go.Figure:
    """One point per probe, problem and seed: its value in run ``b`` against its value in run ``a``."""
    return or_why(comparison_figure(of_quantity(pairs(a, b), quantity), quantity, names), f"{quantity} in both", b)


def history(frame: pd.DataFrame, quantity: Quantity, problem: str | None = None, step: float = STEP) -> go.Figure:
    """One line per probe over the runs, oldest first; a change of more than ``step`` is ringed."""
    problem = problem or _first(frame)
    table = history_table(frame, problem, quantity, step)
    return or_why(history_figure(table, shown_problem(frame, problem), quantity), str(quantity), frame)


def status(frame: pd.DataFrame) -> go.Figure:
    """Probe by problem: how the cells ended, by mark and colour."""
    return status_figure(views.status(frame), frames.surrogates(frame))


def growth(frame: pd.DataFrame, problem: str | None = None) -> go.Figure:
    """Exponents of cost over a sweep of sizes, counted and published; None means the first sweep."""
    table = scaling.growing(frame)
    return or_why(growth_figure(table, problem or next(iter(table["problem"]), "")), "costs in three sizes", frame)


def _first(frame: pd.DataFrame) -> str:
    return next(iter(frames.problems(frame)), "")
