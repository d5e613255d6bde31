"""The settings that a search tries next: a grid, a sample of it, or rounds that learn from earlier scores."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from curvbench.spec import METRICS, Search

ROUND = 4  # settings of a round, which run side by side; the settings of the first round are drawn at random
DIGITS = 3  # of a proposed number: few enough that a person can type them

Grid = Mapping[str, Sequence[Any]]
Setting = dict[str, Any]
Scored = Sequence[tuple[Mapping[str, Any], float | None]]  # settings with their scores; None: the setting failed


def proposed(grid: Grid, search: Search, scored: Scored = ()) -> list[Setting]:
    """The settings to try after the ``scored`` ones; an empty list when the search has ended.

    The settings follow from the arguments alone, so that a search that was stopped continues as if it had not been.

    Raises:
        ValueError: the package of the sampler is not installed.
    """
    if search.sampler == "tpe":
        return _learned(grid, search, scored)
    settings = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    if scored or search.trials is None or search.trials >= len(settings):
        return [] if scored else settings
    return random.Random(search.seed).sample(settings, search.trials)


def _learned(grid: Grid, search: Search, scored: Scored) -> list[Setting]:
    """The next round of a tree-structured Parzen estimator; a setting that failed counts as the worst possible.

    Source: Bergstra, Bardenet, Bengio, Kegl, "Algorithms for Hyper-Parameter Optimization", NeurIPS 2011 (optuna).
    """
    try:
        import optuna
    except ImportError as error:
        raise ValueError("a search with sampler='tpe' needs optuna: pip install 'curvbench[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    assert search.trials is not None, "a search that learns has a budget"
    is_higher_better = METRICS[search.metric].better == "higher"
    space = {name: _distribution(values) for name, values in grid.items()}
    sampler = optuna.samplers.TPESampler(n_startup_trials=ROUND, seed=search.seed + len(scored), constant_liar=True)
    study = optuna.create_study(sampler=sampler, direction="maximize" if is_higher_better else "minimize")
    worst = float("-inf" if is_higher_better else "inf")
    for setting, score in scored:
        value = worst if score is None else score
        study.add_trial(optuna.trial.create_trial(params=dict(setting), distributions=space, value=value))
    asked = [study.ask(space).params for _ in range(min(ROUND, search.trials - len(scored)))]
    before = [setting for setting, _ in scored]
    rounded = [{name: _rounded(params[name], values) for name, values in grid.items()} for params in asked]
    new = [setting for setting in rounded if setting not in before]
    return [setting for k, setting in enumerate(new) if setting not in new[:k]]


def _distribution(values: Sequence[Any]) -> Any:
    """The distribution of a hyperparameter: numbers lie between the least and the greatest, positive ones by log."""
    from optuna import distributions

    if not _are_numbers(values):
        return distributions.CategoricalDistribution(list(values))
    are_integers = all(isinstance(value, int) for value in values)
    kind = distributions.IntDistribution if are_integers else distributions.FloatDistribution
    return kind(min(values), max(values), log=min(values) > 0)


def _rounded(value: Any, values: Sequence[Any]) -> Any:
    """A number with ``DIGITS`` digits within the range of ``values``; any other value as it is."""
    return min(max(float(f"{value:.{DIGITS}g}"), min(values)), max(values)) if isinstance(value, float) else value


def _are_numbers(values: Sequence[Any]) -> bool:
    return len(set(values)) > 1 and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
