"""Unit blocks that are never stored, against the dense Fisher's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases import CASES, Truth, fisher_of, instance_of, truth
from torch import Tensor

from curvbench.fisher import units
from curvbench.fisher.columns import Columns
from curvbench.fisher.units import UnitFisher

LAYERS = [(case, layer.name) for case in CASES for layer in instance_of(case).layers]


def pair(case: str, name: str, kind: str = "type-2") -> tuple[UnitFisher, Tensor]:
    """The operator of a layer, and its dense matrix."""
    fisher = fisher_of(case, kind)
    (columns,) = (c for c in fisher.columns if c.layer.name == name)
    judge: Truth = truth(case)
    block = judge.fisher(kind)[columns.layer.slice, columns.layer.slice]
    order = columns.layer.inputs
    mask = torch.arange(len(block)) // order
    return UnitFisher(columns, fisher.terms), torch.where(mask[:, None] == mask, block, 0.0)


def assert_close(value: Tensor | float, expected: Tensor | float) -> None:
    actual, wanted = (torch.as_tensor(x, dtype=torch.float64) for x in (value, expected))
    torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-12)


@pytest.fixture(params=[2**26, 1], ids=["one tile", "a unit at a time"], autouse=True)
def tile_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "TILE_BYTES", request.param)


@pytest.mark.parametrize(("case", "name"), LAYERS)
def test_every_number_is_that_of_the_dense_blocks(case: str, name: str) -> None:
    operator, dense = pair(case, name)
    assert operator.shape == dense.shape
    assert_close(operator.to_dense(), dense)
    assert_close(operator.trace(), float(dense.trace()))
    assert_close(operator.frobenius_norm(), float(dense.norm()))
    assert_close(operator.diagonal(), dense.diagonal())
    values = torch.linalg.eigvalsh(dense).flip(0).clamp(min=0)
    for k in (1, 3, len(dense) + 2):
        assert_close(operator.eigenvalues(k), values[:k])
    assert_close(operator.smallest_eigenvalue(), float(values[-1]))


@pytest.mark.parametrize(("case", "name"), LAYERS)
def test_solve(case: str, name: str) -> None:
    operator, dense = pair(case, name)
    damping = float(dense.diagonal().mean()) + 1e-3
    V = torch.randn(len(dense), 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    expected = torch.linalg.solve(dense + damping * torch.eye(len(dense), dtype=torch.float64), V)
    assert_close(operator.solve(V, damping), expected)
    factors = list(operator.factorize(damping))
    assert_close(operator.solve_factorized(V, damping, factors), expected)


@pytest.mark.parametrize(("case", "name"), LAYERS)
def test_inverse(case: str, name: str) -> None:
    """Every number of it against the dense inverse, and its product with the Fisher of another type."""
    operator, dense = pair(case, name, "empirical")
    damping = float(dense.diagonal().mean()) + 1e-3
    eye = torch.eye(len(dense), dtype=torch.float64)
    found, expected = operator.inverse(damping), torch.linalg.inv(dense + damping * eye)
    assert_close(found.to_dense(), expected)
    assert_close(found.trace(), expected.trace())
    assert_close(found.log_determinant(), torch.linalg.slogdet(expected).logabsdet)
    assert_close(found.frobenius_norm(), expected.norm())
    assert_close(found.diagonal(), expected.diagonal())
    values = torch.linalg.eigvalsh(expected).flip(0)
    assert_close(found.eigenvalues(3), values[:3])
    assert_close(found.smallest_eigenvalue(), values[-1])
    for again in (0.0, 0.5):
        assert_close(found.solve(eye, again), torch.linalg.inv(expected + again * eye))
    layer = fisher_of(case).layer(name)
    judge = truth(case).fisher()[layer.columns[0].layer.slice, layer.columns[0].layer.slice]
    assert_close(layer.inner(found), (expected * judge).sum())


@pytest.mark.parametrize(("case", "name"), LAYERS)
def test_inner_product_with_another_fisher(case: str, name: str) -> None:
    """Of the empirical unit blocks with the type-2 Fisher, which has more columns: tiles of unequal size."""
    operator, dense = pair(case, name, "empirical")
    layer = fisher_of(case).layer(name)
    judge = truth(case).fisher()[layer.columns[0].layer.slice, layer.columns[0].layer.slice]
    assert_close(layer.inner(operator), float((dense * judge).sum()))


def test_no_damping_is_refused() -> None:
    operator, dense = pair("mlp_tanh", instance_of("mlp_tanh").layers[0].name)
    with pytest.raises(ValueError, match="give a damping above zero"):
        operator.solve(torch.ones(len(dense), dtype=torch.float64), 0.0)
    with pytest.raises(ValueError, match="give a damping above zero"):
        operator.inverse(0.0)


def test_float32_columns_are_solved_in_float64() -> None:
    """Woodbury in float32 would lose what lies far below the largest eigenvalue."""
    case, name = "nasty_cnn", instance_of("nasty_cnn").layers[0].name
    operator, dense = pair(case, name)
    c = operator.columns
    single = replace(operator, columns=Columns(c.layer, c.inputs.float(), c.slopes.float()))
    damping, v = 1e-5 * float(dense.norm()), torch.ones(len(dense), dtype=torch.float64)
    expected = torch.linalg.solve(dense + damping * torch.eye(len(dense), dtype=torch.float64), v)
    error = (single.solve(v.float(), damping).double() - expected).norm() / expected.norm()
    assert float(error) <= 1e-2
