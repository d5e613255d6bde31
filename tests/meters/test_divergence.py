"""The divergence of damped matrices against dense inverses and determinants."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from cases import fisher_of, instance_of, truth, weights_of
from torch import Tensor, nn

import curvbench as cb
from curvbench import operators, registry
from curvbench.meters.direction import with_damping
from curvbench.meters.divergence import divergence_rows, divergences
from curvbench.operators import Operator
from curvbench.spec import METRICS, Row, Status

DAMPING = 0.02
NETWORKS = ("mlp_tanh", "nasty_cnn")
PROBES = [
    *(cb.probe(name) for name in sorted(registry.probes())),
    cb.probe("kfac", damping_rule="factored"),
    cb.probe("eigen", rank=2),
    cb.probe("ginger", updates=3, scope="per_tensor"),
]


@cache
def damped_of(probe: cb.Probe, name: str) -> Operator | None:
    instance = instance_of(name)
    if probe.unsupported(instance):
        return None
    judged = with_damping(probe, DAMPING, instance.terms)
    return judged.damped(judged.refresh(judged.fit(instance)))


@cache
def exact(name: str) -> Tensor:
    dense = truth(name).fisher()
    return dense + DAMPING * torch.eye(len(dense), dtype=torch.float64)


def dense_kl(C: Tensor, damped: Tensor) -> float:
    """KL(C | C^) per parameter, from eigenvalues of C^^-1 C."""
    root = torch.linalg.cholesky(damped)
    halfway = torch.linalg.solve_triangular(root, C, upper=False)
    values = torch.linalg.eigvalsh(torch.linalg.solve_triangular(root, halfway.T, upper=False))
    return float((values - 1 - values.log()).sum()) / 2 / len(C)


def blocks_of(matrix: Tensor, name: str) -> dict[str, Tensor]:
    return {layer.name: matrix[layer.slice, layer.slice] for layer in instance_of(name).layers}


def values(rows: list[Row], metric: str) -> dict[str, float]:
    assert {row.metric for row in rows} <= METRICS.keys()
    return {row.scope: row.value for row in rows if row.metric == metric and row.value is not None}


def rows_of(damped: Operator | None, name: str, damping: float = DAMPING) -> list[Row]:
    return list(divergence_rows(damped, fisher_of(name), damping))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.label)
def test_every_probe_in_every_scope(probe: cb.Probe, name: str) -> None:
    damped = damped_of(probe, name)
    if damped is None:
        return
    rows, C, matrix = rows_of(damped, name), exact(name), damped.to_dense()
    parts = zip(blocks_of(C, name).items(), blocks_of(matrix, name).values(), strict=True)
    expected = {layer: dense_kl(block, approximate) for (layer, block), approximate in parts}
    expected["layer blocks"] = dense_kl(
        torch.block_diag(*blocks_of(C, name).values()), torch.block_diag(*blocks_of(matrix, name).values())
    )
    expected["network"] = dense_kl(C, matrix)
    found = values(rows, "error.kl")
    assert set(found) == set(expected) or (found.keys() == {"network"} and rows[-2].status is Status.UNSUPPORTED)
    for scope, value in found.items():
        assert value == pytest.approx(expected[scope], rel=1e-9, abs=1e-11), scope


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("probe", ["kfac", "diag", "layer", "lbfgs"])
@pytest.mark.parametrize("factor", [1e-3, 7.0])
def test_a_multiple_changes_the_divergence_but_not_the_scaled_one(probe: str, factor: float, name: str) -> None:
    """The best multiple has the least divergence."""
    damped = damped_of(cb.probe(probe), name)
    assert damped is not None
    dense = damped.to_dense()
    best = dense * torch.linalg.solve(dense, exact(name)).trace() / len(dense)
    before, after = (rows_of(operators.Dense(matrix), name) for matrix in (best, factor * best))
    once, again = (values(rows, "error.kl_scaled") for rows in (before, after))
    assert again == pytest.approx(once, abs=1e-11)
    assert once["network"] == pytest.approx(values(before, "error.kl")["network"], abs=1e-11)
    assert values(after, "error.kl")["network"] > once["network"] + 0.1
    assert once["network"] < min(dense_kl(exact(name), near * best) for near in (0.99, 1.01))


@pytest.mark.parametrize("name", NETWORKS)
def test_pythagoras(name: str) -> None:
    """Of every matrix without entries between layers, whose least divergence is that of the exact blocks."""
    C = exact(name)
    floor = dense_kl(C, torch.block_diag(*blocks_of(C, name).values()))
    assert floor > 1e-3, "a test of nothing"
    for probe in ("kfac", "diag", "mbf", "layer", "unit", "shampoo"):
        rows = rows_of(damped_of(cb.probe(probe), name), name)
        whole, blocks = (values(rows, "error.kl")[scope] for scope in ("network", "layer blocks"))
        assert values(rows, "error.kl_off_block") == pytest.approx({"network": floor}, abs=1e-12)
        assert whole == pytest.approx(floor + blocks, abs=1e-12)


def test_pythagoras_needs_a_matrix_without_entries_between_layers() -> None:
    rows = rows_of(damped_of(cb.probe("full"), "mlp_tanh"), "mlp_tanh")
    found, floor = values(rows, "error.kl"), values(rows, "error.kl_off_block")["network"]
    assert found["network"] == found["layer blocks"] == pytest.approx(0, abs=1e-12) and floor > 1e-3


@pytest.mark.parametrize("name", NETWORKS)
def test_only_what_is_exact_has_no_divergence(name: str) -> None:
    full, layer = (values(rows_of(damped_of(cb.probe(p), name), name), "error.kl") for p in ("full", "layer"))
    assert all(value <= 1e-12 for scope, value in {**full, **layer}.items() if scope != "network")
    assert full["network"] <= 1e-12
    other = values(rows_of(fisher_of(name).damped(2 * DAMPING), name), "error.kl")
    assert all(value > 0.01 for value in other.values())


def test_streamed_columns_give_the_same_numbers() -> None:
    streamed = cb.exact_fisher(instance_of("nasty_cnn"), memory=0)
    for name in ("kfac", "mbf", "unit", "full", "eigen"):
        probe = cb.probe(name, rank=2) if name == "eigen" else cb.probe(name)
        damped = damped_of(probe, "nasty_cnn")
        assert damped is not None
        for row, again in zip(rows_of(damped, "nasty_cnn"), divergence_rows(damped, streamed, DAMPING), strict=True):
            assert again.value == pytest.approx(row.value, rel=1e-9, abs=1e-12)


def test_float32_matrices_are_compared() -> None:
    """A single precision matrix has divergences near those of float64."""
    instance = weights_of(*_small(torch.float32))
    exact_one = weights_of(*_small(torch.float64))
    for name in ("kfac", "diag", "unit", "layer", "full", "mbf", "ginger"):
        probe = cb.probe(name, damping=DAMPING)
        found, expected = (
            divergences(fitted, cb.exact_fisher(batch), DAMPING)
            for batch in (instance, exact_one)
            if (fitted := probe.damped(probe.refresh(probe.fit(batch)))) is not None
        )
        assert found.network.kl == pytest.approx(expected.network.kl, rel=1e-3, abs=1e-4)
        assert found.blocks.kl_scaled == pytest.approx(expected.blocks.kl_scaled, rel=1e-3, abs=1e-4)


def _small(dtype: torch.dtype) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(2, 5, 3), nn.Tanh(), nn.Flatten(), nn.Linear(45, 3)).double()
    inputs, targets = torch.randn(6, 2, 5, 5).double(), torch.randint(3, (6,))
    return model.to(dtype), inputs.to(dtype), targets


def test_reasons_instead_of_values() -> None:
    """None is an error: no symmetric matrix, a singular one, no closed form, and no blocks of layers."""
    assert not rows_of(None, "mlp_tanh")
    size = truth("mlp_tanh").size
    zeros = torch.zeros(size, dtype=torch.float64)
    (row,) = rows_of(operators.Diagonal(zeros), "mlp_tanh")
    assert row.status is Status.SKIPPED and "singular without damping" in row.reason
    turned = operators.Permuted(operators.Diagonal(zeros + 1), torch.arange(size).flip(0))
    rows = rows_of(turned, "mlp_tanh")
    assert [row.scope for row in rows if row.status is Status.UNSUPPORTED] == ["layer blocks"]
    assert values(rows, "error.kl")["network"] == pytest.approx(dense_kl(exact("mlp_tanh"), torch.eye(size).double()))


def test_never_forms_the_matrix() -> None:
    """Of 1.2 million parameters, of which a dense matrix would take 11 TB."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1000, 1200, bias=False), nn.Tanh(), nn.Linear(1200, 3)).double()
    instance = cb.Instance(model, torch.randn(4, 1000).double(), torch.tensor([0, 1, 2, 0]))
    fisher = cb.exact_fisher(instance)
    spectrum = fisher.eigenvalues(8)
    for name, expected in (
        ("full", 0.0),
        ("identity", float((DAMPING - 1) * fisher.size + spectrum.sum() - _log_determinant(spectrum, fisher.size))),
    ):
        probe = cb.probe(name)
        damped = (judged := with_damping(probe, DAMPING, 4)).damped(judged.refresh(judged.fit(instance)))
        assert damped is not None
        found = divergences(damped, fisher, DAMPING)
        assert found.network.kl == pytest.approx(expected / 2 / fisher.size, rel=1e-9, abs=1e-9)


def _log_determinant(spectrum: Tensor, size: int) -> float:
    return float((spectrum + DAMPING).log().sum()) + (size - len(spectrum)) * math.log(DAMPING)
