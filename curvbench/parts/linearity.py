"""How far a map of gradients to steps is from linear, and what its linear part represents."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from curvbench.operators import Dense, Diagonal, Operator
from curvbench.spec import Row, Status

Map = Callable[[Tensor], Tensor]
"""A map of vectors (P,) -> (P,), here from a gradient to a step."""

Reading = Literal["asis", "affine", "slope"]
PRECISION = {  # by dtype of the steps: the distance below which a map counts as linear, the multiple for slopes
    torch.float64: (1e-6, 1e-6),
    torch.float32: (1e-3, 1e-2),  # shorter multiples lose digits, longer ones bend
}
PAIRS = 8  # of random vectors, on which a matrix must be symmetric and positive
MOST_COLUMNS = 2048  # of a matrix that is made column by column


class Linearity(NamedTuple):
    """The distances of a map P from linear.

    ``homogeneity``: the largest |P(cg) - cP(g)| / |cP(g)| over multiples c. ``additivity``: |P(g + h) - P(g) - P(h)| /
    |P(g + h)|. ``direction``: the largest |P(cg) - sign(c) P(g)| / |P(g)|, which is 0 for a step whose length does not
    depend on the gradient's. ``dtype``: the dtype of the steps.
    """

    homogeneity: float
    additivity: float
    direction: float
    dtype: torch.dtype

    @property
    def is_linear(self) -> bool:
        """Whether both distances are rounding."""
        return max(self.homogeneity, self.additivity) < PRECISION[self.dtype][0]

    @property
    def is_of_degree_0(self) -> bool:
        """Whether only the direction of the gradient decides the step."""
        return self.direction < PRECISION[self.dtype][0]


class Character(NamedTuple):
    """What a step is as a function of the gradient.

    ``linearity``: the distances by reading. ``is_definite``: whether the slope is symmetric and positive. ``scale``:
    the root mean square of the gradient's entries, the size of vectors for which a slope is linear.
    """

    linearity: dict[Reading, Linearity]
    is_definite: bool
    scale: float

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the steps."""
        return self.linearity["asis"].dtype

    @property
    def verdict(self) -> str:
        """One of the words with which a row says how the step depends on the gradient."""
        if self.linearity["asis"].is_linear:
            return "the step is linear in the gradient"
        if self.linearity["affine"].is_linear:
            return "the step is linear in the gradient apart from its momentum"
        if self.linearity["slope"].is_linear:
            return "the step is not linear in the gradient, its slope is"
        if self.linearity["asis"].is_of_degree_0:
            return "the step is homogeneous of degree 0 in the gradient"
        return "the step is not linear in the gradient"

    @property
    def no_matrix(self) -> str:
        """Why the step has no matrix; empty if it has one."""
        if not self.linearity["slope"].is_linear:
            return f"no matrix: {self.verdict}"
        return "" if self.is_definite else "no matrix: on random vectors the slope is not symmetric and positive"

    def rows(self) -> Iterator[Row]:
        """The distances as rows, whose scope is the reading."""
        for reading, of in self.linearity.items():
            for name in ("homogeneity", "additivity"):
                value = getattr(of, name)
                if math.isfinite(value):
                    yield Row(f"linearity.{name}", value, reading)
                else:
                    reason = "read so, the step is zero or not finite for one of the gradients"
                    yield Row(f"linearity.{name}", scope=reading, status=Status.SKIPPED, reason=reason)


def read(step: Map, reading: Reading) -> Map:
    """The map of a reading: the step as it is, without what it is for no gradient, or its derivative at no gradient."""
    if reading == "asis":
        return step
    if reading == "slope":
        return lambda g: _slope(step, g)
    return lambda g: step(g) - step(torch.zeros_like(g))


def _slope(step: Map, g: Tensor) -> Tensor:
    short = PRECISION[g.dtype][1]
    return (step(short * g) - step(-short * g)) / (2 * short)


def character(step: Map, gradient: Tensor, others: Sequence[Tensor]) -> Character:
    """The character of a step; ``others`` are gradients of two other batches, whose span a step may be made for."""
    measured = {reading: _linearity(read(step, reading), gradient, others) for reading in get_args(Reading)}
    scale = float(gradient.square().mean().sqrt()) or 1.0
    is_definite = measured["slope"].is_linear and _is_definite(read(step, "slope"), gradient, scale)
    return Character(measured, is_definite, scale)


def _linearity(map_: Map, gradient: Tensor, others: Sequence[Tensor]) -> Linearity:
    at = map_(gradient)
    scaled = {c: map_(c * gradient) for c in (2.0, 0.5, -1.0)}
    first, second = others
    both = map_(first + second)
    return Linearity(
        max(_distance(value, c * at) for c, value in scaled.items()),
        _distance(map_(first) + map_(second), both),
        max(_distance(value, at if c > 0 else -at) for c, value in scaled.items()),
        gradient.dtype,
    )


def _distance(value: Tensor, expected: Tensor) -> float:
    """|value - expected| / |expected|; infinite for an expected zero, because a map to zero is no step."""
    length = float(expected.norm())
    return float((value - expected).norm()) / length if length else math.inf


def _is_definite(map_: Map, like: Tensor, scale: float) -> bool:
    """Whether a map is symmetric and positive on random pairs."""
    for seed in range(PAIRS):
        x, y = _pair(like, scale, seed)
        Px, Py = map_(x), map_(y)
        size = float(x.norm() * Py.norm() + y.norm() * Px.norm())
        if not (abs(float(x @ Py - y @ Px)) <= PRECISION[like.dtype][0] * size and float(x @ Px) > 0):
            return False
    return True


def _pair(like: Tensor, scale: float, seed: int) -> tuple[Tensor, Tensor]:
    """Two random vectors like another one, with entries of about ``scale``."""
    draws = torch.Generator().manual_seed(seed)
    x, y = scale * torch.randn(2, *like.shape, device="cpu", generator=draws, dtype=torch.float64).to(like)
    return x, y


def inverse(map_: Map, like: Tensor, scale: float) -> Operator | None:
    """The matrix whose inverse a linear SPD map applies to vectors with entries of about ``scale``.

    None means that the matrix is not diagonal and too large to be made column by column.
    """
    x, y = _pair(like, scale, PAIRS)
    entries = map_(x) / x
    if _distance(entries * y, map_(y)) < PRECISION[like.dtype][0]:
        return Diagonal(1 / entries)
    if len(like) > MOST_COLUMNS:
        return None
    matrix = torch.stack(
        [map_(scale * unit) / scale for unit in torch.eye(len(like), dtype=like.dtype, device=like.device)]
    )
    inverted = torch.linalg.inv((matrix + matrix.mT) / 2)
    return Dense((inverted + inverted.mT) / 2)
