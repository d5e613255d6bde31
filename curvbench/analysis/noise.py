"""How far the samples of a clock lie apart, and whether the clock was noisy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from curvbench.analysis.limits import limit_of

NOISY = limit_of("time").relative  # a time that changes by more counts as changed
LEGEND = (
    f"noisy: the middle half of a clock's samples spans more than {NOISY:.0%} of their median, so that a change of "
    f"{NOISY:.0%} would not be seen"
)


def is_noisy(samples: Sequence[float]) -> bool:
    """Whether the middle half of a clock's samples spans more than ``NOISY`` of their median."""
    return bool(_are_noisy(np.array([samples], dtype="float64"))[0])


def with_spread(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows with the columns ``least``, ``greatest`` and ``noisy`` in place of ``samples``.

    Rows of fewer than two samples have NaN, and are not noisy.
    """
    least, greatest = np.full((2, len(frame)), np.nan)
    noisy = np.zeros(len(frame), dtype=bool)
    counts = np.array([0 if samples is None else len(samples) for samples in frame["samples"]], dtype=int)
    for count in set(counts[counts > 1].tolist()):
        places = np.flatnonzero(counts == count)
        samples = np.stack([np.asarray(each, dtype="float64") for each in frame["samples"].iloc[places]])
        least[places], greatest[places], noisy[places] = samples.min(1), samples.max(1), _are_noisy(samples)
    return frame.drop(columns="samples").assign(least=least, greatest=greatest, noisy=noisy)


def ends(frame: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """The least and the greatest sample of each row, its value where it has no samples or none are here."""
    if "least" not in frame:
        return frame["value"], frame["value"]
    return frame["least"].fillna(frame["value"]), frame["greatest"].fillna(frame["value"])


def are_noisy(frame: pd.DataFrame) -> pd.Series:
    """Whether the clock of each row was noisy; 0 where nothing is known of its samples."""
    return frame["noisy"].astype("float64") if "noisy" in frame else pd.Series(0.0, frame.index)


def _are_noisy(samples: np.ndarray) -> np.ndarray:
    """``is_noisy`` of each row of samples."""
    lower, middle, upper = np.percentile(samples, [25, 50, 75], axis=1)
    noisy: np.ndarray = upper - lower > NOISY * np.abs(middle)
    return noisy
