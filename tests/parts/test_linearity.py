"""The character of maps that are linear, and of maps that are not, each for its own reason."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from curvbench.operators import Dense, Diagonal
from curvbench.parts.linearity import MOST_COLUMNS, Character, Map, character, inverse, read
from curvbench.spec import Status

DRAWS = torch.Generator().manual_seed(0)
SIZE = 5
ROOT = torch.randn(SIZE, SIZE, generator=DRAWS, dtype=torch.float64)
SPD = ROOT @ ROOT.T + torch.eye(SIZE)
MOMENTUM = torch.randn(SIZE, generator=DRAWS, dtype=torch.float64)
G, H, K = torch.randn(3, SIZE, generator=DRAWS, dtype=torch.float64)


def of(step: Map) -> Character:
    return character(step, G, (H, K))


def linear(g: Tensor) -> Tensor:
    return SPD @ g


def with_momentum(g: Tensor) -> Tensor:
    return SPD @ g + MOMENTUM


def own_square(g: Tensor) -> Tensor:
    return g / (0.1 * g.square() + 1).sqrt() + MOMENTUM


def sign(g: Tensor) -> Tensor:
    return g.sign()


def clipped(g: Tensor) -> Tensor:
    return (1e9 * g).clamp(-1, 1) + MOMENTUM


VERDICTS = {
    linear: "the step is linear in the gradient",
    with_momentum: "the step is linear in the gradient apart from its momentum",
    own_square: "the step is not linear in the gradient, its slope is",
    sign: "the step is homogeneous of degree 0 in the gradient",
    clipped: "the step is not linear in the gradient",
}


@pytest.mark.parametrize(("step", "verdict"), VERDICTS.items(), ids=[step.__name__ for step in VERDICTS])
def test_verdicts(step: Map, verdict: str) -> None:
    found = of(step)
    assert found.verdict == verdict
    assert bool(found.no_matrix) == (step in (sign, clipped))


def test_distances_are_those_of_their_definition() -> None:
    cubed = of(lambda g: g**3).linearity["asis"]
    assert cubed.homogeneity == pytest.approx(3.0, rel=1e-12)  # |8 - 2| / 2
    both, apart = (H + K) ** 3, H**3 + K**3
    assert cubed.additivity == pytest.approx(float((apart - both).norm() / both.norm()), rel=1e-12)
    assert of(lambda g: g * g.abs()).linearity["asis"].direction == pytest.approx(3.0, rel=1e-12)  # |4 - 1|


@pytest.mark.parametrize("matrix", [ROOT, SPD - 3 * SPD.trace() * torch.eye(SIZE)], ids=["not symmetric", "negative"])
def test_only_spd_slopes_are_matrices(matrix: Tensor) -> None:
    found = of(lambda g: matrix @ g)
    assert found.verdict == VERDICTS[linear]
    assert found.no_matrix == "no matrix: on random vectors the slope is not symmetric and positive"


@pytest.mark.parametrize("step", [linear, with_momentum])
def test_the_matrix_is_the_inverse_of_the_slope(step: Map) -> None:
    operator = inverse(read(step, "slope"), G, 1.0)
    assert isinstance(operator, Dense)
    assert torch.allclose(operator.to_dense(), torch.linalg.inv(SPD), rtol=1e-7, atol=1e-9)


def test_a_diagonal_is_seen_at_any_size_and_no_other_matrix_above_a_size() -> None:
    many = torch.zeros(MOST_COLUMNS + 1, dtype=torch.float64)
    entries = torch.linspace(1, 2, len(many), dtype=torch.float64)
    operator = inverse(lambda g: entries * g, many, 0.1)
    assert isinstance(operator, Diagonal)
    assert torch.allclose(operator.diagonal(), 1 / entries)
    assert inverse(lambda g: g + g.mean(), many, 0.1) is None


@pytest.mark.parametrize(
    ("step", "verdict"), [(linear, linear), (with_momentum, with_momentum), (own_square, own_square)]
)
def test_float32_has_a_tolerance_of_its_own(step: Map, verdict: Map) -> None:
    found = character(lambda g: step(g.double()).float(), G.float(), (H.float(), K.float()))
    assert found.verdict == VERDICTS[verdict]


def test_a_step_of_zero_is_not_linear() -> None:
    found = of(lambda g: 0 * g)
    assert not any(linearity.is_linear for linearity in found.linearity.values())
    assert {(row.status, row.value) for row in found.rows()} == {(Status.SKIPPED, None)}


def test_rows_have_the_reading_as_scope() -> None:
    rows = list(of(sign).rows())
    assert {row.scope for row in rows} == {"asis", "affine", "slope"}
    assert {row.metric for row in rows} == {"linearity.homogeneity", "linearity.additivity"}
    assert all(math.isfinite(row.value or 0.0) for row in rows)
