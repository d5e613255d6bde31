"""The verdict of a comparison of measured values on a claim: it holds, is refuted or stays undecided.

Every comparison asks whether one reading is smaller than another, or is not larger. ``a > b`` is ``b < a``, and
``a ~ b`` is both ``a <= b`` and ``b <= a``; the claim's slack is allowed in each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median
from typing import NamedTuple

from curvbench.analysis.summary import digits

LEAST_SHARE = 0.5
"""Share of the paper's printed effect: a smaller effect neither bears a claim out nor refutes it."""

LEAST_RATIO = 1.05
"""Ratio of medians that is asked for if the paper prints no effect in the metric that is measured."""

FEWEST = 3
"""Seeds in common: fewer seeds neither bear out nor refute a claim about random values."""

MISSED = math.inf  # epochs and seconds to a target that was not reached: more than any finite number
ROUNDING = 1e-9  # relative: an effect that misses the demanded one by rounding alone is large enough


class Verdict(StrEnum):
    """The outcome of a claim."""

    HOLDS = "holds"
    DIRECTION = "holds in direction only"
    REFUTED = "refuted"
    UNDECIDED = "undecided"
    NOT_MEASURED = "not measured"


class Bounded(NamedTuple):
    """A value and its bounds: a target that was missed in a short training may be reached later."""

    value: float
    least: float
    most: float

    @classmethod
    def exactly(cls, value: float) -> Bounded:
        """A value that is fully known."""
        return cls(value, value, value)

    def over(self, base: Bounded) -> Bounded:
        """The ratio to another value; NaN if that is 0."""
        return Bounded(*map(_divided, self, (base.value, base.most, base.least)))


@dataclass(frozen=True)
class Reading:
    """A member of a claim as measured: a value per seed, or the reason why it has none.

    ``name``: the row of the paper; empty for a number that the claim itself states. ``failed``: the member was tried
    without success, and the reason says how that ended. ``counted``: the value is the same for every seed. ``note``:
    why a value is known only by its bounds. ``unit``: what a seed stands for. ``interval``: where the median may lie,
    for values that are themselves medians of samples. None means the range of the values.
    """

    name: str
    values: Mapping[int, Bounded] = field(default_factory=dict)
    reason: str = ""
    failed: bool = False
    counted: bool = False
    note: str = ""
    unit: str = "seed"
    interval: tuple[float, float] | None = None

    @property
    def middle(self) -> float:
        """The median over seeds."""
        return median(value.value for value in self.values.values())

    def __str__(self) -> str:
        values = [value.value for value in self.values.values()]
        low, high = self.interval or (min(values), max(values))
        spread = f" [{as_text(low)}, {as_text(high)}]" if low < high else ""
        return f"{self.name} {as_text(self.middle)}{spread}".lstrip()


class Criterion(NamedTuple):
    """The demand of a comparison: ``small`` is below ``large`` + ``slack``, by an effect of some size.

    ``strict``: equal values are not enough; a comparison that is not strict claims no effect, so that only its
    refutation needs one. ``effect``: half of the paper's effect, as a logarithm of a ratio, or as a difference of
    scores if ``is_ratio`` is False. None means that the paper prints no effect, 0 that the slack is the whole demand.
    ``flipped``: the claim names ``large`` first.
    """

    strict: bool = True
    slack: float = 0.0
    effect: float | None = None
    is_ratio: bool = True
    flipped: bool = False


class Finding(NamedTuple):
    """A verdict with its reason; ``strength``: the measured effect in units of the effect that is asked for."""

    verdict: Verdict
    reason: str
    strength: float = 0.0


def compare(small: Reading, large: Reading, criterion: Criterion) -> Finding:
    """Whether the values bear out that ``small`` is below ``large``, on the seeds that both have.

    The comparison holds, or is refuted, if the medians are as far apart as the criterion asks, the ranges do not meet
    and there are enough seeds. A median known only by its bounds refutes nothing, and counts as its worse bound.
    """
    a, b = common(small, large)
    if not a or not b:
        return Finding(Verdict.UNDECIDED, f"{small.name} and {large.name} have no seed in common")
    if _middle(a, "value") == _middle(b, "value") == MISSED:
        return Finding(Verdict.UNDECIDED, f"{small.name} and {large.name} miss the target; {_seeds(small, large)}")
    against, favour = (_middle(a, "most"), _middle(b, "least")), (_middle(a, "least"), _middle(b, "most"))
    if _is_below(*against, criterion):
        return _right(small, large, criterion, effect(*against, criterion))
    if _is_below(*favour, criterion) or not _are_known(a, b):
        notes = [reading.note for reading in (small, large) if reading.note]
        return Finding(Verdict.UNDECIDED, "; ".join([_order(small, large, criterion), *notes, _seeds(small, large)]))
    return _wrong(small, large, criterion, effect(*favour, criterion))


def common(a: Reading, b: Reading) -> tuple[list[Bounded], list[Bounded]]:
    """The values of both on the seeds that both have; a counted value is the same on all seeds."""
    if a.counted or b.counted:
        return list(a.values.values()), list(b.values.values())
    seeds = sorted(a.values.keys() & b.values.keys())
    return [a.values[seed] for seed in seeds], [b.values[seed] for seed in seeds]


def seeds(a: Reading, b: Reading) -> int | None:
    """The number of seeds behind a comparison. None means that nothing in it is random."""
    if a.counted and b.counted:
        return None
    return min(len(values) for values, reading in zip(common(a, b), (a, b), strict=True) if not reading.counted)


def effect(small: float, large: float, criterion: Criterion) -> float:
    """The distance of two values: the logarithm of their ratio, or their difference; NaN if they have no ratio."""
    large += criterion.slack
    if small == large:
        return 0.0
    if not criterion.is_ratio:
        return abs(small - large)
    if min(small, large) < 0:
        return math.nan
    return MISSED if min(small, large) == 0 or MISSED in (small, large) else abs(math.log(small / large))


def as_text(value: float) -> str:
    """A value of a reading as text."""
    return "missed" if value == MISSED else digits(value)


def _right(small: Reading, large: Reading, criterion: Criterion, distance: float) -> Finding:
    a, b = common(small, large)
    needed = _needed(criterion) if criterion.strict else 0.0
    are_apart = not criterion.strict or _most(small, a) < _least(large, b) + criterion.slack
    enough = are_apart and _suffices(distance, needed) and _are_many(small, large)
    reason = _reason(small, large, criterion, distance, needed, are_apart)
    return Finding(Verdict.HOLDS if enough else Verdict.DIRECTION, reason, distance / needed if needed else MISSED)


def _wrong(small: Reading, large: Reading, criterion: Criterion, distance: float) -> Finding:
    a, b = common(small, large)
    needed = _needed(criterion)
    are_apart = _least(small, a) > _most(large, b) + criterion.slack
    enough = are_apart and _suffices(distance, needed) and _are_many(small, large)
    reason = _reason(small, large, criterion, distance, needed, are_apart)
    return Finding(Verdict.REFUTED if enough else Verdict.UNDECIDED, reason)


def _least(reading: Reading, values: Sequence[Bounded]) -> float:
    return reading.interval[0] if reading.interval else min(value.least for value in values)


def _most(reading: Reading, values: Sequence[Bounded]) -> float:
    return reading.interval[1] if reading.interval else max(value.most for value in values)


def _needed(criterion: Criterion) -> float:
    return math.log(LEAST_RATIO) if criterion.effect is None else criterion.effect


def _suffices(distance: float, needed: float) -> bool:
    return not needed or distance >= needed * (1 - ROUNDING)


def _are_many(a: Reading, b: Reading) -> bool:
    count = seeds(a, b)
    return count is None or count >= FEWEST


def _is_below(small: float, large: float, criterion: Criterion) -> bool:
    return small < large + criterion.slack if criterion.strict else small <= large + criterion.slack


def _are_known(*sides: Sequence[Bounded]) -> bool:
    """Whether the medians are fully known, even if some values are known only by their bounds."""
    return all(_middle(side, "least") == _middle(side, "most") for side in sides)


def _middle(values: Sequence[Bounded], which: str) -> float:
    return median(getattr(value, which) for value in values)


def _reason(
    small: Reading, large: Reading, criterion: Criterion, distance: float, needed: float, are_apart: bool
) -> str:
    """The medians, their distance beside the demanded one, whether the ranges meet, and the seeds."""
    parts = [_order(small, large, criterion), _distance(criterion, distance, needed)]
    parts += [] if are_apart else ["the ranges meet"]
    return "; ".join(filter(None, [*parts, _seeds(small, large)]))


def _distance(criterion: Criterion, distance: float, needed: float) -> str:
    if not needed or distance == MISSED:
        return ""
    if math.isnan(distance):
        return "numbers of which one is negative have no ratio"
    if not criterion.is_ratio:
        return f"{distance:.3g} apart, {needed:.3g} asked"
    return f"a factor of {math.exp(distance):.3g}, {math.exp(needed):.3g} asked"


def _order(small: Reading, large: Reading, criterion: Criterion) -> str:
    a, b = (large, small) if criterion.flipped else (small, large)
    x, y = (_middle(side, "value") for side in common(a, b))
    sign = "=" if x == y else "<" if x < y else ">"
    return f"{a.name} {as_text(x)} {sign} {b.name} {as_text(y)}".replace("  ", " ").strip()


def _seeds(a: Reading, b: Reading) -> str:
    count = seeds(a, b)
    if count is None:
        return "counted"
    unit = b.unit if a.counted else a.unit
    kind = unit if a.counted or b.counted or unit != "seed" else f"common {unit}"
    plural = "" if count == 1 else "es" if unit.endswith("s") else "s"
    return f"{count} {kind}{plural}{f' of {FEWEST}' if count < FEWEST else ''}"


def _divided(a: float, b: float) -> float:
    return math.nan if b == 0 else a / b
