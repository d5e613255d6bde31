"""Whether two sets of repeated measurements differ, and by how much."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

FEWEST = 5  # samples per side: fewer cannot reach a p-value below 0.01
SIGNIFICANT = 0.01  # p-values below it are significant
RESAMPLES = 1000  # of the bootstrap: 25 of them lie beyond each end of the interval
COVERAGE = 95  # percent, of the interval
Samples = Sequence[float]
Rounds = Sequence[Samples]


class Ratio(NamedTuple):
    """The ratio of medians, b over a, with its bootstrap interval and the p-value of the Mann-Whitney U test."""

    ratio: float
    low: float
    high: float
    p: float


def compare_samples(a: Rounds, b: Rounds) -> Ratio:
    """Compare the samples of ``b`` with those of ``a``; each has one entry per run.

    The bootstrap draws runs and then samples within them, because the samples of one process resemble each other. Its
    draws are the same every time.
    """
    from scipy.stats import mannwhitneyu  # slow to import

    pooled = [np.concatenate([np.asarray(samples, dtype="float64") for samples in side]) for side in (a, b)]
    generator = np.random.default_rng(0)
    below, above = (_medians(side, generator) for side in (a, b))
    low, high = np.percentile(above / below, [(100 - COVERAGE) / 2, (100 + COVERAGE) / 2])
    ratio = np.median(pooled[1]) / np.median(pooled[0])
    return Ratio(float(ratio), float(low), float(high), float(mannwhitneyu(*pooled).pvalue))


def _medians(rounds: Rounds, generator: np.random.Generator) -> np.ndarray:
    """Medians of resampled rounds, (RESAMPLES,)."""
    width = max(map(len, rounds))
    draws = []
    for samples in rounds:  # each run has as many draws as the longest run has samples, so that runs weigh alike
        values = np.asarray(samples, dtype="float64")
        draws.append(values[generator.integers(len(values), size=(RESAMPLES, len(rounds), width))])
    chosen = generator.integers(len(rounds), size=(RESAMPLES, len(rounds)))
    picked = np.stack(draws)[chosen, np.arange(RESAMPLES)[:, None], np.arange(len(rounds))]
    medians: np.ndarray = np.median(picked.reshape(RESAMPLES, -1), axis=1)
    return medians
