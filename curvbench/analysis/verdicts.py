"""What a comparison of measured values says of a claim: whether it holds, is refuted, or is not decided by them.

One kind of comparison is enough: that one reading is smaller than another, or is not larger. ``a > b`` is ``b < a``,
and ``a ~ b`` is ``a <= b`` and ``b <= a``, each but for the claim's slack.
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
"""Of the effect that a paper prints: a smaller one neither bears a claim out nor refutes it."""

LEAST_RATIO = 1.05
"""Of medians, where a paper prints no effect, or prints it in another metric than the one measured."""

FEWEST = 3
"""Seeds in common: fewer neither bear out nor refute a claim about what is random."""

MISSED = math.inf  # epochs and seconds to a target that was not reached: more than any that was
ROUNDING = 1e-9  # relative: an effect that is the one asked for but for rounding is large enough


class Verdict(StrEnum):
    """What the measurement says of a claim."""

    HOLDS = "holds"
    DIRECTION = "holds in direction only"
    REFUTED = "refuted"
    UNDECIDED = "undecided"
    NOT_MEASURED = "not measured"


class Known(NamedTuple):
    """A value, and what it lies between: a target that was missed in a short training may be reached later."""

    value: float
    least: float
    most: float

    @classmethod
    def exactly(cls, value: float) -> Known:
        """A value that was measured to the end."""
        return cls(value, value, value)

    def over(self, base: Known) -> Known:
        """Its ratio to another; NaN where there is none."""
        return Known(*map(_divided, self, (base.value, base.most, base.least)))


@dataclass(frozen=True)
class Reading:
    """A member of a claim as it was measured: a value per seed, or the reason why there is none.

    A number of the claim itself has no name. ``failed``: it was tried, and its reason is how that ended. ``counted``:
    it is the same with every seed. ``note``: why a value is known in part only.
    """

    name: str
    values: Mapping[int, Known] = field(default_factory=dict)
    reason: str = ""
    failed: bool = False
    counted: bool = False
    note: str = ""

    @property
    def middle(self) -> float:
        """The median over seeds."""
        return median(known.value for known in self.values.values())

    def __str__(self) -> str:
        found = [known.value for known in self.values.values()]
        spread = f" [{shown(min(found))}, {shown(max(found))}]" if min(found) < max(found) else ""
        return f"{self.name} {shown(self.middle)}{spread}".lstrip()


class Asked(NamedTuple):
    """What a comparison asks for: ``small`` below ``large`` + ``slack``, by an effect of some size.

    ``strict``: equal is not below; what is not strict claims no effect, so that only a refutation needs one.
    ``effect``: half of the paper's, as a logarithm of a ratio, or as a difference of scores (``is_ratio`` False); None
    where the paper prints none, 0 where the slack is all that is asked for. ``flipped``: the claim names ``large``
    first.
    """

    strict: bool = True
    slack: float = 0.0
    effect: float | None = None
    is_ratio: bool = True
    flipped: bool = False


class Finding(NamedTuple):
    """A verdict with its reason, and how many times the effect that it takes to bear the claim out was found."""

    verdict: Verdict
    reason: str
    strength: float = 0.0


def compare(small: Reading, large: Reading, asked: Asked) -> Finding:
    """Whether the values bear out that ``small`` is below ``large``, on the seeds that both have.

    It holds, or is refuted, where the medians are as far apart as is asked, the ranges are apart and there are enough
    seeds. A median that is known in part only refutes nothing, and bears out no more than its bound does.
    """
    a, b = common(small, large)
    if not a or not b:
        return Finding(Verdict.UNDECIDED, f"{small.name} and {large.name} have no seed in common")
    if _middle(a, "value") == _middle(b, "value") == MISSED:
        return Finding(Verdict.UNDECIDED, f"{small.name} and {large.name} miss the target; {_seeds(small, large)}")
    against, favour = (_middle(a, "most"), _middle(b, "least")), (_middle(a, "least"), _middle(b, "most"))
    if _is_below(*against, asked):
        return _right(small, large, asked, effect(*against, asked))
    if _is_below(*favour, asked) or not _are_known(a, b):
        notes = [reading.note for reading in (small, large) if reading.note]
        return Finding(Verdict.UNDECIDED, "; ".join([_order(small, large, asked), *notes, _seeds(small, large)]))
    return _wrong(small, large, asked, effect(*favour, asked))


def common(a: Reading, b: Reading) -> tuple[list[Known], list[Known]]:
    """The values of both on the seeds that both have; what is counted has the same on all."""
    if a.counted or b.counted:
        return list(a.values.values()), list(b.values.values())
    seeds = sorted(a.values.keys() & b.values.keys())
    return [a.values[seed] for seed in seeds], [b.values[seed] for seed in seeds]


def seeds(a: Reading, b: Reading) -> int | None:
    """How many seeds stand behind a comparison; None where nothing in it is random."""
    if a.counted and b.counted:
        return None
    return min(len(values) for values, one in zip(common(a, b), (a, b), strict=True) if not one.counted)


def effect(small: float, large: float, asked: Asked) -> float:
    """How far apart two values are: by the logarithm of their ratio, or by their difference; NaN where it is none."""
    large += asked.slack
    if small == large:
        return 0.0
    if not asked.is_ratio:
        return abs(small - large)
    if min(small, large) < 0:
        return math.nan
    return MISSED if min(small, large) == 0 or MISSED in (small, large) else abs(math.log(small / large))


def shown(value: float) -> str:
    """A value of a reading."""
    return "missed" if value == MISSED else digits(value)


def _right(small: Reading, large: Reading, asked: Asked, found: float) -> Finding:
    a, b = common(small, large)
    needed = _needed(asked) if asked.strict else 0.0
    agree = not asked.strict or max(known.most for known in a) < min(known.least for known in b) + asked.slack
    enough = agree and _suffices(found, needed) and _are_many(small, large)
    reason = _reason(small, large, asked, found, needed, agree)
    return Finding(Verdict.HOLDS if enough else Verdict.DIRECTION, reason, found / needed if needed else MISSED)


def _wrong(small: Reading, large: Reading, asked: Asked, found: float) -> Finding:
    a, b = common(small, large)
    needed = _needed(asked)
    agree = min(known.least for known in a) > max(known.most for known in b) + asked.slack
    enough = agree and _suffices(found, needed) and _are_many(small, large)
    reason = _reason(small, large, asked, found, needed, agree)
    return Finding(Verdict.REFUTED if enough else Verdict.UNDECIDED, reason)


def _needed(asked: Asked) -> float:
    return math.log(LEAST_RATIO) if asked.effect is None else asked.effect


def _suffices(found: float, needed: float) -> bool:
    return not needed or found >= needed * (1 - ROUNDING)


def _are_many(a: Reading, b: Reading) -> bool:
    count = seeds(a, b)
    return count is None or count >= FEWEST


def _is_below(small: float, large: float, asked: Asked) -> bool:
    return small < large + asked.slack if asked.strict else small <= large + asked.slack


def _are_known(*sides: Sequence[Known]) -> bool:
    """Whether medians are, whatever the values that are known in part."""
    return all(_middle(side, "least") == _middle(side, "most") for side in sides)


def _middle(values: Sequence[Known], which: str) -> float:
    return median(getattr(known, which) for known in values)


def _reason(small: Reading, large: Reading, asked: Asked, found: float, needed: float, agree: bool) -> str:
    """The medians, their distance beside the one asked for, whether the ranges are apart, and the seeds."""
    parts = [_order(small, large, asked), _distance(asked, found, needed)]
    parts += [] if agree else ["the ranges meet"]
    return "; ".join(filter(None, [*parts, _seeds(small, large)]))


def _distance(asked: Asked, found: float, needed: float) -> str:
    if not needed or found == MISSED:
        return ""
    if math.isnan(found):
        return "numbers of which one is negative have no ratio"
    if not asked.is_ratio:
        return f"{found:.3g} apart, {needed:.3g} asked"
    return f"a factor of {math.exp(found):.3g}, {math.exp(needed):.3g} asked"


def _order(small: Reading, large: Reading, asked: Asked) -> str:
    a, b = (large, small) if asked.flipped else (small, large)
    x, y = (_middle(side, "value") for side in common(a, b))
    sign = "=" if x == y else "<" if x < y else ">"
    return f"{a.name} {shown(x)} {sign} {b.name} {shown(y)}".replace("  ", " ").strip()


def _seeds(a: Reading, b: Reading) -> str:
    count = seeds(a, b)
    if count is None:
        return "counted"
    kind = "seed" if a.counted or b.counted else "common seed"
    return f"{count} {kind}{'s' * (count > 1)}{f' of {FEWEST}' if count < FEWEST else ''}"


def _divided(a: float, b: float) -> float:
    return math.nan if b == 0 else a / b
