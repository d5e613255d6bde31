"""The best length of a step: the one at which a loss falls most."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

DOUBLINGS = 10  # of the first length, upwards and downwards
REFINEMENTS = 5
CLOSE = 0.01  # share of the decrease up to which the best length is found: plateaus are judged at 0.95


class Point(NamedTuple):
    """A length of a step, and the decrease of the loss there; -inf if the loss is not finite."""

    length: float
    decrease: float


ZERO = Point(0.0, 0.0)
Three = tuple[Point, Point, Point]
"""Lengths in rising order, whose decrease is largest in the middle."""


def best_length(decrease: Callable[[float], float], first: float) -> Point:
    """The length above zero with the largest decrease, up to a share of ``CLOSE``, for a decrease with one maximum.

    The search begins at the length ``first``, doubles or halves it until the decrease falls, and goes on with the
    vertices of parabolas through the three lengths around the maximum. Without any decrease the result is zero, 0.
    """
    evaluate = _evaluated(decrease)
    around = _bracket(evaluate, evaluate(first))
    if around is None:
        return ZERO
    for _ in range(REFINEMENTS):
        vertex = _vertex(*around)
        if not vertex.decrease > around[1].decrease * (1 + CLOSE):
            break
        around = _narrowed(around, evaluate(vertex.length))
    return around[1]


def _evaluated(decrease: Callable[[float], float]) -> Callable[[float], Point]:
    def at(length: float) -> Point:
        value = decrease(length)
        return Point(length, value if math.isfinite(value) else -math.inf)

    return at


def _bracket(evaluate: Callable[[float], Point], first: Point) -> Three | None:
    """Three lengths around the maximum; None if the loss does not fall at any length."""
    return _upwards(evaluate, first) if first.decrease > 0 else _downwards(evaluate, first)


def _upwards(evaluate: Callable[[float], Point], first: Point) -> Three:
    before, middle = ZERO, first
    for _ in range(DOUBLINGS):
        after = evaluate(2 * middle.length)
        if after.decrease <= middle.decrease:
            return before, middle, after
        before, middle = middle, after
    return before, middle, middle


def _downwards(evaluate: Callable[[float], Point], first: Point) -> Three | None:
    middle = first
    for _ in range(DOUBLINGS):
        after, middle = middle, evaluate(middle.length / 2)
        if middle.decrease > 0:
            return ZERO, middle, after
    return None


def _vertex(left: Point, middle: Point, right: Point) -> Point:
    """The maximum of the parabola through three points; half the way to the middle if the right one is not finite."""
    if not math.isfinite(right.decrease):
        return Point((left.length + middle.length) / 2, math.inf)
    rise = (middle.decrease - left.decrease) / (middle.length - left.length)
    fall = (right.decrease - middle.decrease) / (right.length - middle.length) if right.length > middle.length else rise
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
