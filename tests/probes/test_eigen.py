"""The best matrix of a rank, against dense eigenvalues (Eckart and Young): a lower bound for every low-rank method."""

from __future__ import annotations

import math
from typing import Any

import oracles
import pytest
import torch
from cases import CASES, Case, Truth, instance_of, truth
from streams import truncated
from torch import Tensor

import curvbench as cb
from curvbench.meters.cost import Stepper, flop_rows, published_cost

KINDS = ("type-2", "empirical")


def dense_of(case: str, **hyperparameters: Any) -> Tensor:
    return cb.fit(cb.probe("eigen", **hyperparameters), instance_of(case)).to_dense()


def supported(case: str, rank: int, kind: str = "type-2") -> bool:
    return cb.probe("eigen", rank=rank, fisher_type=kind).unsupported(instance_of(case)) is None


@pytest.mark.parametrize("rank", [1, 2, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_the_error_is_what_the_other_eigenvalues_leave(case: Case, judge: Truth, kind: str, rank: int) -> None:
    if not supported(case.name, rank, kind):
        pytest.skip("fewer columns or parameters than ranks")
    fisher = judge.fisher(kind)
    values = torch.linalg.eigvalsh(fisher).flip(0)
    found = dense_of(case.name, rank=rank, fisher_type=kind)
    scale = float(fisher.norm())
    assert abs(float((found - fisher).norm()) - float(values[rank:].norm())) <= 1e-7 * scale
    assert float((torch.linalg.eigvalsh(found).flip(0)[:rank] - values[:rank]).norm()) <= 1e-12 * scale
    gap = float(values[rank - 1] - values[rank]) if rank < len(values) else scale
    if gap > 1e-6 * scale:  # else another matrix is as near
        assert float((found - truncated(fisher, rank)).norm()) <= 1e-8 * scale


@pytest.mark.parametrize("kind", [*KINDS, "mc"])
def test_with_a_rank_for_every_column_it_is_the_fisher(kind: str) -> None:
    options: dict[str, Any] = {"fisher_type": kind, "mc_samples": 2, "seed": 1}
    fisher = cb.exact_fisher(instance_of("mlp_tanh"), **options)
    found = dense_of("mlp_tanh", rank=len(fisher.gram()), **options)
    assert oracles.relative(found, fisher.to_dense()) <= 1e-12
    less = int(torch.linalg.matrix_rank(fisher.gram(), hermitian=True)) - 1
    assert oracles.relative(dense_of("mlp_tanh", rank=less, **options), found) > 1e-6


@pytest.mark.parametrize("rank", [1, 4, 8])
def test_nothing_of_the_rank_is_nearer(rank: int) -> None:
    """Nor a multiple of it: Ginger and what QNG has learned after many updates, other Fishers, random matrices."""
    instance = instance_of("mlp_tanh")
    fisher = truth("mlp_tanh").fisher()
    others = {
        "ginger": cb.probe("ginger", rank=rank, updates=400, decay=0.99, bc=True),
        "qng": cb.probe("qng", memory=rank, updates=50, decay=0.9, floor=False),
        "empirical": cb.probe("eigen", rank=min(rank, 6), fisher_type="empirical"),
        "mc": cb.probe("eigen", rank=rank, fisher_type="mc", mc_samples=50),
    }
    found = {name: cb.fit(probe, instance).to_dense() for name, probe in others.items()}
    random = torch.randn(len(fisher), rank, dtype=torch.float64)
    found["random"] = random @ random.T
    best = oracles.relative(dense_of("mlp_tanh", rank=rank), fisher)
    for name, matrix in found.items():
        assert int(torch.linalg.matrix_rank(matrix, hermitian=True)) <= rank
        scaled = float((matrix * fisher).sum() / matrix.norm() ** 2) * matrix
        assert best <= oracles.relative(scaled, fisher) <= oracles.relative(matrix, fisher) + 1e-12, name
    assert oracles.relative(found["mc"], fisher) <= best + 0.2  # the bound is one that can nearly be reached


def test_more_ranks_than_columns_or_parameters_are_unsupported() -> None:
    for name in ("mlp_tanh", "mlp_many_samples", "tokens"):
        instance = instance_of(name)
        columns = len(cb.exact_fisher(instance).gram())
        most = min(columns, instance.size)
        assert cb.probe("eigen", rank=most).unsupported(instance) is None
        reason = cb.probe("eigen", rank=most + 1).unsupported(instance)
        assert reason is not None and "\n" not in reason
        assert f"{columns} score columns" in reason and f"{instance.size} parameters" in reason


@pytest.mark.parametrize("name", ["certain", "one_hot"])
def test_a_fisher_of_zero_has_no_eigenvectors(name: str) -> None:
    instance, probe = instance_of(name), cb.probe("eigen", rank=4)
    state, v = probe.fit(instance), torch.randn(instance_of(name).size).double()
    fisher = truth(name).fisher()
    assert float((probe.operator(state).to_dense() - fisher).norm()) <= 1e-12
    assert bool(torch.isfinite(probe.precondition(state, v)).all())


def test_without_damping_the_solve_is_refused() -> None:
    instance, probe = instance_of("mlp_tanh"), cb.probe("eigen", rank=4, damping=0.0)
    with pytest.raises(ValueError, match="damping"):
        probe.precondition(probe.fit(instance), instance.gradient())


@pytest.mark.parametrize("name", ["nasty_cnn", "mlp_tanh"])
def test_counted_flops_are_near_those_of_its_arithmetic(name: str) -> None:
    """The Gram matrix, its eigenvectors, K combinations of its columns; two products with these."""
    instance, K = instance_of(name), 4
    of = (instance.samples, instance.columns_per_sample("type-2"))
    full = published_cost(cb.probe("full"), list(instance.sizes.values()), *of)
    gram, products = full["statistics"], (full["precondition"] - 2 * math.prod(of) ** 2) / 4
    expected = {
        "statistics": 2 * gram + 9 * math.prod(of) ** 3 + 2 * K * products,
        "precondition": 4 * K * instance.size,
    }
    rows = list(flop_rows(Stepper(cb.probe("eigen", rank=K), instance)))
    values = {(row.metric, row.scope): row.value or 0.0 for row in rows}
    for phase, flops in expected.items():
        own = values["flops.counted", phase] - values["flops.passes", phase]
        assert 0.8 < own / flops < 1.6, (phase, own / flops)


def test_cases_are_covered() -> None:
    assert sum(supported(name, 2) for name in CASES) > len(CASES) - 3
