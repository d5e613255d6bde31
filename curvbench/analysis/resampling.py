"""Intervals of medians of samples that were taken in several processes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DRAWS = 2000
SHARE = 0.95  # of the draws lie within the interval


def interval(processes: Sequence[Sequence[float]], over: Sequence[Sequence[float]] = ()) -> tuple[float, float]:
    """The interval of the median over processes of each process's median, by a bootstrap.

    A draw takes processes with replacement, and then samples of each with replacement, because samples of one process
    have a machine's state in common. ``over``: the samples by which the same processes are divided, median by median.
    """
    random = np.random.default_rng(0)
    chosen = random.integers(len(processes), size=(DRAWS, len(processes)))
    medians = _medians(processes, chosen, random)
    if over:
        medians = medians / _medians(over, chosen, random)
    low, high = np.quantile(np.median(medians, axis=1), [(1 - SHARE) / 2, (1 + SHARE) / 2])
    return float(low), float(high)


def _medians(processes: Sequence[Sequence[float]], chosen: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The median of samples drawn from each chosen process, (draws, processes)."""
    medians = np.empty(chosen.shape)
    for number, samples in enumerate(processes):
        places = np.nonzero(chosen == number)
        drawn = random.integers(len(samples), size=(len(places[0]), len(samples)))
        medians[places] = np.median(np.asarray(samples)[drawn], axis=1)
    return medians
