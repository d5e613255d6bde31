"""The best length of a step: the one at which a loss falls most."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

DOUBLINGS = 10  # of the first length, upwards and downwards
REFINEMENTS = 4
CLOSE = 0.001  # share of the decrease that another evaluation must promise
_CLIFF = -4.0  # times the middle's decrease: no parabola around its maximum has less at twice the length


class Point(NamedTuple):
    """A length of a step, and the decrease of the loss there; -inf if the loss is not finite."""

    length: float
    decrease: float


ZERO = Point(0.0, 0.0)
Three = tuple[Point, Point, Point]
"""Lengths in rising order, whose decrease is largest in the middle."""


def best_length(decrease: Callable[[float], float], first: float) -> Point:
    """The length above zero with the largest decrease, and that decrease, for a decrease with one maximum.

    The search doubles or halves the length ``first`` until the loss stops falling. It goes on with the vertices of
    parabolas through the three best lengths while they promise another share of ``CLOSE``. Of a smooth decrease at most
    1 % is missed, and before a cliff 10 %. The result is (0, 0) if the loss falls neither at ``first`` nor below.
    """
    evaluate = _evaluated(decrease)
    around = _bracket(evaluate, evaluate(first))
    if around is None:
        return ZERO
    for _ in range(REFINEMENTS):
        promised = _vertex(*around)
        if not promised.decrease > around[1].decrease * (1 + CLOSE):
            break
        around = _narrowed(around, evaluate(promised.length))
    return around[1]


def _evaluated(decrease: Callable[[float], float]) -> Callable[[float], Point]:
    def at(length: float) -> Point:
        value = decrease(length)
        return Point(length, value if math.isfinite(value) else -math.inf)

    return at


def _bracket(evaluate: Callable[[float], Point], first: Point) -> Three | None:
    """Lengths that double from one to the next, around the maximum; None if the loss does not fall."""
    if first.decrease > 0 and (second := evaluate(2 * first.length)).decrease > first.decrease:
        return _upwards(evaluate, first, second)
    return _downwards(evaluate, first, second if first.decrease > 0 else first)


def _upwards(evaluate: Callable[[float], Point], before: Point, middle: Point) -> Three:
    for _ in range(DOUBLINGS - 1):
        after = evaluate(2 * middle.length)
        if after.decrease <= middle.decrease:
            return before, middle, after
        before, middle = middle, after
    return before, middle, middle


def _downwards(evaluate: Callable[[float], Point], middle: Point, after: Point) -> Three | None:
    for _ in range(DOUBLINGS):
        before = evaluate(middle.length / 2)
        if middle.decrease > 0 and before.decrease <= middle.decrease:
            return before, middle, after
        middle, after = before, middle
    return (ZERO, middle, after) if middle.decrease > 0 else None


def _vertex(left: Point, middle: Point, right: Point) -> Point:
    """The maximum of the parabola through three points; a length before a cliff if the right one lies behind it."""
    if right.length == middle.length:
        return middle
    if right.decrease < _CLIFF * middle.decrease:
        return Point((middle.length * right.length) ** 0.5, math.inf)
    rise = (middle.decrease - left.decrease) / (middle.length - left.length)
    fall = (right.decrease - middle.decrease) / (right.length - middle.length)
    bend = (fall - rise) / (right.length - left.length)
    if not bend < 0:
        return middle
    length = (left.length + middle.length) / 2 - rise / (2 * bend)
    return Point(length, middle.decrease - bend * (length - middle.length) ** 2)


def _narrowed(around: Three, new: Point) -> Three:
    """The three lengths around the maximum after one more evaluation."""
    points = sorted({*around, new})
    best = max(range(1, len(points) - 1), key=lambda i: points[i].decrease)
    return points[best - 1], points[best], points[best + 1]
