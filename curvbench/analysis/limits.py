"""How much a metric may change before the change counts: what repeats exactly, what rounding moves, what is sampled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import pandas as pd

from curvbench.spec import METRICS
from curvbench.words import near_misses


class Limit(NamedTuple):
    """A change up to ``relative`` times the value, or up to ``absolute``, is none.

    ``sampled``: the change is that of a ratio of medians, of which the whole interval has to lie beyond ``relative``.
    """

    relative: float = 0.0
    absolute: float = 0.0
    sampled: bool = False


# By the longest prefix of a metric's name. FLOPs and live bytes repeat to the bit, on other processors too. What is
# computed in floating point depends on the kernels that torch takes there: in suites/regression up to 3e-5 of the
# value, and near 0 up to the root of float64's rounding, for |F^ - F| is found from squares.
LIMITS: Mapping[str, Limit] = {
    "": Limit(1e-4, 1e-7),
    "flops": Limit(),
    "memory": Limit(),
    "time": Limit(0.1, sampled=True),
    "train.seconds": Limit(0.1, sampled=True),
    "machine": Limit(0.1, sampled=True),
}
CUDA_PEAK = Limit(0.01)  # its allocator takes blocks, and which ones depends on what was there before


def limit_of(metric: str, method: str = "", limits: Mapping[str, Limit] = LIMITS) -> Limit:
    """The limit of the longest prefix of ``metric``; peaks that CUDA's allocator has reported may move more."""
    prefix = max((name for name in limits if metric.startswith(name)), key=len)
    found = limits[prefix]
    return CUDA_PEAK if method.startswith("cuda") and found == LIMITS["memory"] else found


def with_thresholds(texts: Iterable[str]) -> dict[str, Limit]:
    """``LIMITS`` with the relative part replaced by ``PREFIX=SHARE``, for example ``error=1e-3`` or ``time.wall=0.2``.

    Raises:
        ValueError: it has another form, or no metric begins so.
    """
    limits = dict(LIMITS)
    for text in texts:
        prefix, _, share = text.partition("=")
        if not any(metric.startswith(prefix) for metric in METRICS):
            raise ValueError(f"--threshold {text}: no metric begins with {prefix!r}: {near_misses(prefix, METRICS)}")
        limits[prefix] = limit_of(prefix)._replace(relative=_share(text, share))
    return limits


def of_rows(table: pd.DataFrame, limits: Mapping[str, Limit]) -> pd.DataFrame:
    """``relative``, ``absolute`` and ``sampled`` of each row, from its metric and method."""
    pairs = list(zip(table["metric"], table["method"], strict=True))
    known = {pair: limit_of(*pair, limits) for pair in set(pairs)}
    return pd.DataFrame([known[pair] for pair in pairs], index=table.index, columns=list(Limit._fields))


def _share(text: str, share: str) -> float:
    try:
        value = float(share)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ValueError(f"--threshold {text}: expected METRIC=SHARE with a share of at least 0, such as error=1e-3")
    return value
