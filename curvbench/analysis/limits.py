"""How much a metric may change before the change counts: by rounding, by sampling, or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import pandas as pd

from curvbench.spec import METRICS
from curvbench.words import near_misses


class Limit(NamedTuple):
    """A change up to ``relative`` times the value, or up to ``absolute``, does not count.

    ``sampled``: a change of the ratio of medians counts if the whole interval of the ratio lies beyond ``relative``.
    """

    relative: float = 0.0
    absolute: float = 0.0
    sampled: bool = False


# By the longest prefix of a metric's name. FLOPs and live bytes repeat to the bit, on other processors too. Values in
# floating point depend on the kernels that torch chooses for a processor: in suites/regression by up to 3e-5 of the
# value, and near 0 by up to the root of float64's rounding, because |F^ - F| is computed from squares.
LIMITS: Mapping[str, Limit] = {
    "": Limit(1e-4, 1e-7),
    "flops": Limit(),
    "memory": Limit(),
    "damping.decrease": Limit(1e-2, 1e-7),  # a search for the best length, which rounding may end elsewhere
    "damping.plateau": Limit(1e-2, 0.1),
    "time": Limit(0.1, sampled=True),
    "train.seconds": Limit(0.1, sampled=True),
    "machine": Limit(0.1, sampled=True),
}
CUDA_PEAK = Limit(0.01)  # the allocator of CUDA reserves blocks, whose sizes depend on earlier allocations


def limit_of(metric: str, method: str = "", limits: Mapping[str, Limit] = LIMITS) -> Limit:
    """The limit of the longest prefix of ``metric``; peaks that the allocator of CUDA reports have a wider one."""
    prefix = max((name for name in limits if metric.startswith(name)), key=len)
    limit = limits[prefix]
    return CUDA_PEAK if method.startswith("cuda") and limit == LIMITS["memory"] else limit


def with_thresholds(texts: Iterable[str]) -> dict[str, Limit]:
    """``LIMITS`` with the relative part replaced by ``PREFIX=SHARE``, for example ``error=1e-3`` or ``time.wall=0.2``.

    Raises:
        ValueError: a text has another form, or no metric begins with its prefix.
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
    limit_by_pair = {pair: limit_of(*pair, limits) for pair in set(pairs)}
    return pd.DataFrame([limit_by_pair[pair] for pair in pairs], index=table.index, columns=list(Limit._fields))


def _share(text: str, share: str) -> float:
    try:
        value = float(share)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ValueError(f"--threshold {text}: expected METRIC=SHARE with a share of at least 0, such as error=1e-3")
    return value
