"""Kronecker sum: the best sum of products of every block, against the SVD of the dense rearranged block."""

from __future__ import annotations

import math
from typing import Any

import oracles
import pytest
import torch
from cases import Case, Truth, instance_of, truth
from judging import group_blocks, near
from kinds import blocks, kind
from torch import Tensor

import curvbench as cb
from curvbench.operators import KroneckerSum
from curvbench.parts.lanczos import Search


def found(name: str, rank: int, **options: Any) -> Any:
    return cb.fit(cb.probe("kronsum", rank=rank, **options), instance_of(name))


def rearranged(block: Tensor, M: int, D: int) -> Tensor:
    return block.reshape(M, D, M, D).permute(0, 2, 1, 3).reshape(M * M, D * D)


def singular_values(block: Tensor, M: int, D: int) -> Tensor:
    return torch.linalg.svdvals(rearranged(block, M, D))


def groups_of(judge: Truth, dense: Tensor, kind: str = "type-2") -> list[tuple[Tensor, Tensor, int, int]]:
    """Per group the found block, the exact one, M and D."""
    pairs = zip(group_blocks(judge, dense, kind), group_blocks(judge, judge.fisher(kind), kind), strict=True)
    return [(b, e, part.gradients[0].shape[1], part.inputs[0].shape[1]) for (part, b), (_, e) in pairs]


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_error_is_the_tail_of_the_singular_values(case: Case, judge: Truth, rank: int) -> None:
    """Eckart and Young on the rearranged block: no sum of as many products is nearer."""
    for block, exact, M, D in groups_of(judge, found(case.name, rank).to_dense()):
        values = singular_values(exact, M, D)
        size = float(values.square().sum())
        assert abs(float((block - exact).square().sum()) - float(values[rank:].square().sum())) <= 1e-9 * size


def test_all_pairs_are_the_block() -> None:
    for name in ("conv1d", "mlp_two_classes"):
        for block, exact, _, _ in groups_of(truth(name), found(name, 16).to_dense()):
            assert near(block, exact, 1e-12)


def test_one_product_is_that_of_kpsvd() -> None:
    for name in ("mlp_tanh", "nasty_cnn"):
        assert near(found(name, 1).to_dense(), cb.fit(cb.probe("kpsvd"), instance_of(name)).to_dense(), 1e-5)


def without_skew(exact: Tensor, M: int, D: int, rank: int) -> float:
    """The squared error of the best sum of symmetric products."""
    left = torch.eye(M * M).double().reshape(M * M, M, M)
    right = torch.eye(D * D).double().reshape(D * D, D, D)
    project = [((e + e.mT) / 2).reshape(len(e), -1) for e in (left, right)]
    table = rearranged(exact, M, D)
    values = torch.linalg.svdvals(project[0] @ table @ project[1])
    return float(table.square().sum() - values[:rank].square().sum())


def test_skew_pairs_are_found_where_weights_are_shared() -> None:
    """The control: the best sum of symmetric products has a larger error there, and the same one without positions."""
    rank, gains = 4, {}
    for name in ("conv1d", "linear_tokens", "mlp_tanh"):
        gains[name] = 0.0
        for block, exact, M, D in groups_of(truth(name), found(name, rank).to_dense()):
            gap = without_skew(exact, M, D, rank) - float((block - exact).square().sum())
            assert gap >= -1e-9 * float(exact.square().sum())
            gains[name] = max(gains[name], gap / max(float(exact.square().sum()), 1e-300))
    assert gains["conv1d"] > 1e-4 and gains["mlp_tanh"] <= 1e-9


def is_skew(factor: Tensor) -> bool:
    return bool((factor + factor.T).norm() < 1e-6 * factor.norm())


def test_every_pair_is_of_one_kind() -> None:
    kinds = set()
    for name in ("conv1d", "nasty_cnn"):
        for block in found(name, 4).blocks:
            for left, right in zip(block.lefts.flatten(0, 1), block.rights.flatten(0, 1), strict=True):
                if float(left.norm() * right.norm()) > 1e-6 * block.frobenius_norm():
                    assert is_skew(left) == is_skew(right)
                    kinds.add(is_skew(left))
                    assert is_skew(left) or near(left, left.T, 1e-6)
    assert kinds == {False, True}


def test_two_products_are_nearer_than_any_kronecker_sum_of_two() -> None:
    """B (x) I + I (x) A is one, by its own least squares."""
    for block, exact, M, D in groups_of(truth("mlp_tanh"), found("mlp_tanh", 2).to_dense()):
        left, right = oracles.partial_traces(exact, M, D)
        trace = float(exact.trace())
        B, A = left / D - trace / (2 * M * D) * torch.eye(M), right / M - trace / (2 * M * D) * torch.eye(D)
        rival = torch.kron(B, torch.eye(D).double()) + torch.kron(torch.eye(M).double(), A)
        assert float((block - exact).norm()) <= float((rival - exact).norm())


def test_a_tied_weight_has_its_pairs() -> None:
    """Of the sum of its uses, skew ones included."""
    dense = cb.fit(cb.probe("kronsum", rank=3), kind("tied")[3]).to_dense()
    start = 0
    for block in blocks("tied").values():
        part, (M, D) = slice(start, start + len(block.matrix)), block.shape
        start = part.stop
        error = float((dense[part, part] - block.matrix).square().sum())
        values = singular_values(block.matrix, M, D)
        tail = float(values[3:].square().sum()) if block.roles else 0.0
        assert abs(error - tail) <= 1e-9 * float(values.square().sum())


# --- the step ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp_tanh", "conv1d"])
def test_an_indefinite_block_takes_twice_its_most_negative_eigenvalue_for_its_damping(name: str) -> None:
    """So that the step is that of a positive definite matrix; other blocks keep the probe's damping."""
    probe = cb.probe("kronsum", rank=3, damping=1e-3)
    state = probe.refresh(probe.fit(instance_of(name)))
    raised = 0
    for block, damping in zip(state.blocks, state.dampings, strict=True):
        least = float(torch.linalg.eigvalsh(block.to_dense())[0])
        assert damping == pytest.approx(max(1e-3, -2 * least), rel=1e-9)
        raised += damping > 1e-3
    gradient = instance_of(name).gradient()
    step = probe.precondition(state, gradient)
    assert near(torch.linalg.solve(probe.damped(state).to_dense(), gradient), step, 1e-9)
    assert raised or name != "conv1d"


def test_without_damping_an_indefinite_block_is_refused() -> None:
    probe = cb.probe("kronsum", rank=3, damping=0.0)
    state = probe.refresh(probe.fit(instance_of("conv1d")))
    with pytest.raises(ValueError, match="damping"):
        probe.precondition(state, instance_of("conv1d").gradient())


@pytest.mark.parametrize("key", ["rank", "iterations", "tolerance"])
def test_bad_limits_are_refused(key: str) -> None:
    for value in (0, math.nan) if key == "tolerance" else (0,):
        with pytest.raises(ValueError, match=key):
            cb.probe("kronsum", **{key: value})


def test_rounds_that_do_not_reach_the_tolerance_are_an_error() -> None:
    with pytest.raises(ValueError, match="raise iterations or tolerance"):
        found("nasty_cnn", 2, iterations=1, tolerance=1e-12)


def test_equal_singular_values_are_found_one_after_the_other() -> None:
    """A Krylov space has one direction of each value, so that every pair has a search of its own."""
    table = torch.zeros(9, 9, dtype=torch.float64)
    basis = [torch.eye(3).double() / 3**0.5, torch.diag(torch.tensor([1.0, -1.0, 0.0]).double()) / 2**0.5]
    table = sum((torch.outer(b.flatten(), b.flatten()) for b in basis), table)
    search = Search(
        lambda X: (table @ X.flatten()).reshape(1, 3, 3), lambda X: (table @ X.flatten()).reshape(1, 3, 3), 50, 1e-9
    )
    vectors, images = search.symmetric(torch.eye(3).double()[None], 3)
    assert near(torch.linalg.matrix_norm(images)[:, 0], torch.tensor([1.0, 1.0, 0.0]).double(), 1e-6)
    assert abs(float((vectors[0] * vectors[1]).sum())) <= 1e-9


def test_the_sum_is_one_operator() -> None:
    assert all(isinstance(block, KroneckerSum) for block in found("mlp_tanh", 2).blocks)
