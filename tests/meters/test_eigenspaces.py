"""The parts of an error inside and outside the leading eigenspace, against dense projections."""

from __future__ import annotations

import pytest
import torch
from cases import fisher_of, instance_of, truth
from torch import Tensor

import curvbench as cb
from curvbench import operators
from curvbench.fisher.budget import LEADING
from curvbench.meters.error import error_rows

PARTS = ("inside", "cross", "outside")


def found_for(operator: operators.Operator, name: str) -> list[float]:
    rows = {row.metric: row.value for row in error_rows(operator, fisher_of(name)) if row.scope == "network"}
    return [value for part in PARTS if (value := rows.get(f"error.{part}")) is not None]


def spaces(name: str) -> tuple[Tensor, Tensor]:
    """Projections onto the leading eigenspace and its complement."""
    values, vectors = torch.linalg.eigh(truth(name).fisher())
    leading = vectors[:, -LEADING:][:, values[-LEADING:] > 1e-12 * values[-1]]
    inside = leading @ leading.T
    return inside, torch.eye(len(inside), dtype=torch.float64) - inside


@pytest.mark.parametrize("name", ["mlp_tanh", "nasty_cnn", "one_sample"])
@pytest.mark.parametrize("probe", ["kfac", "diag", "identity", "ginger"])
def test_parts_against_projections(probe: str, name: str) -> None:
    operator = cb.fit(cb.probe(probe), instance_of(name))
    inside, outside = spaces(name)
    E = operator.to_dense() - truth(name).fisher()
    parts = [inside @ E @ inside, inside @ E @ outside, outside @ E @ outside]
    squares = [
        weight * float(part.square().sum() / E.square().sum()) for weight, part in zip((1, 2, 1), parts, strict=True)
    ]
    assert found_for(operator, name) == pytest.approx(squares, abs=1e-9)
    assert sum(found_for(operator, name)) == pytest.approx(1, abs=1e-12)


def test_errors_made_in_one_part() -> None:
    """Planted inside, across and outside: each is found where it is, and nowhere else."""
    F, (inside, outside) = truth("mlp_tanh").fisher(), spaces("mlp_tanh")
    noise = torch.randn(F.shape, dtype=torch.float64)
    noise = noise + noise.T
    crossed = inside @ noise @ outside
    for place, E in enumerate((inside @ noise @ inside, crossed + crossed.T, outside @ noise @ outside)):
        found = found_for(operators.Dense(F + E), "mlp_tanh")
        assert found == pytest.approx([float(place == other) for other in range(3)], abs=1e-9)


def test_what_is_exact_has_no_parts() -> None:
    assert found_for(cb.fit(cb.probe("full"), instance_of("mlp_tanh")), "mlp_tanh") == []


def test_leading_eigenvectors(case: object) -> None:
    name = case.name  # type: ignore[attr-defined]
    values, vectors = fisher_of(name).leading
    dense = truth(name).fisher()
    expected = torch.linalg.eigvalsh(dense).flip(0)[: len(values)]
    assert len(values) <= LEADING and torch.allclose(values, expected, rtol=1e-9)
    assert torch.allclose(vectors.T @ vectors, torch.eye(len(values), dtype=torch.float64), atol=1e-8)
    assert torch.allclose(dense @ vectors, vectors * values, atol=1e-9 * float(values[0]))
