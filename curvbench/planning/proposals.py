"""What a search tries next: a grid or some of it at once, or rounds of settings that learn from those before."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from curvbench.spec import METRICS, Search

ROUND = 4  # settings of a round, which are tried side by side; those of the first are drawn blindly
DIGITS = 3

Grid = Mapping[str, Sequence[Any]]
Setting = dict[str, Any]
Tried = Sequence[tuple[Mapping[str, Any], float | None]]


def proposed(grid: Grid, search: Search, tried: Tried = ()) -> list[Setting]:
    """The settings to try after those that were ``tried``, each with its score (None: it failed); none at the end.

    They follow from the arguments alone, so that a search that was stopped goes on as it would have.

    Raises:
        ValueError: the sampler is not installed.
    """
    if search.sampler == "tpe":
        return _learned(grid, search, tried)
    everything = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    if tried or search.trials is None or search.trials >= len(everything):
        return [] if tried else everything
    return random.Random(search.seed).sample(everything, search.trials)


def _learned(grid: Grid, search: Search, tried: Tried) -> list[Setting]:
    """The next round of a tree-structured Parzen estimator; a setting that failed is as bad as can be.

    Source: Bergstra, Bardenet, Bengio, Kegl, "Algorithms for Hyper-Parameter Optimization", NeurIPS 2011 (optuna).
    """
    try:
        import optuna
    except ImportError as error:
        raise ValueError("a search with sampler='tpe' needs optuna: pip install 'curvbench[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    assert search.trials is not None, "a search that learns has a budget"
    rises = METRICS[search.metric].better == "higher"
    space = {name: _distribution(values) for name, values in grid.items()}
    sampler = optuna.samplers.TPESampler(n_startup_trials=ROUND, seed=search.seed + len(tried), constant_liar=True)
    study = optuna.create_study(sampler=sampler, direction="maximize" if rises else "minimize")
    worst = float("-inf" if rises else "inf")
    for setting, score in tried:
        value = worst if score is None else score
        study.add_trial(optuna.trial.create_trial(params=dict(setting), distributions=space, value=value))
    asked = [study.ask(space).params for _ in range(min(ROUND, search.trials - len(tried)))]
    before = [setting for setting, _ in tried]
    new = [rounded for params in asked if (rounded := _rounded(params, grid)) not in before]
    return [setting for k, setting in enumerate(new) if setting not in new[:k]]


def _distribution(values: Sequence[Any]) -> Any:
    """Numbers come from anywhere between the least and the greatest, of positive ones by their logarithm."""
    from optuna import distributions

    if not _are_numbers(values):
        return distributions.CategoricalDistribution(list(values))
    whole = all(isinstance(value, int) for value in values)
    kind = distributions.IntDistribution if whole else distributions.FloatDistribution
    return kind(min(values), max(values), log=min(values) > 0)


def _rounded(params: Mapping[str, Any], grid: Grid) -> Setting:
    """In so many digits that a person can type them, within the grid and in its order."""
    return {name: _short(params[name], values) for name, values in grid.items()}


def _short(value: Any, values: Sequence[Any]) -> Any:
    return min(max(float(f"{value:.{DIGITS}g}"), min(values)), max(values)) if isinstance(value, float) else value


def _are_numbers(values: Sequence[Any]) -> bool:
    return len(set(values)) > 1 and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
