"""Diagonal pair: the best outer product of the exact diagonal, against its dense SVD."""

from __future__ import annotations

from collections.abc import Callable

import oracles
import pytest
import torch
from cases import Case, Truth, instance_of, truth
from judging import group_blocks, near
from torch import Tensor

import curvbench as cb
from curvbench.probes.diagpair import nearest_pair


def found(name: str, kind: str = "type-2") -> Tensor:
    return cb.fit(cb.probe("diagpair", fisher_type=kind), instance_of(name)).to_dense()


def best(delta: Tensor) -> Tensor:
    u, s, v = torch.linalg.svd(delta)
    return s[0] * torch.outer(u[:, 0], v[0])


def racs(delta: Tensor) -> Tensor:
    """The alternation of RACS, to its end."""
    q = torch.ones(delta.shape[1], dtype=torch.float64)
    for _ in range(300):
        s = delta @ q / q.dot(q)
        q = delta.T @ s / s.dot(s)
    return torch.outer(s, q)


def adafactor(delta: Tensor) -> Tensor:
    return torch.outer(delta.sum(1), delta.sum(0)) / delta.sum()


@pytest.mark.parametrize("kind", ["type-2", "empirical"])
def test_is_the_leading_singular_pair_of_the_diagonal(case: Case, judge: Truth, kind: str) -> None:
    dense = found(case.name, kind)
    assert near(dense, dense.diagonal().diag())
    for (part, block), (_, exact) in zip(
        group_blocks(judge, dense, kind), group_blocks(judge, judge.fisher(kind), kind), strict=True
    ):
        delta = exact.diagonal().reshape(part.gradients[0].shape[1], -1)
        mine = block.diagonal().reshape(delta.shape)
        assert bool((mine >= 0).all())
        if delta.any():
            assert near(mine, best(delta), 1e-9)
            assert near(mine, racs(delta), 1e-6)
        else:
            assert not mine.any()


@pytest.mark.parametrize("name", ["mlp_tanh", "nasty_cnn", "tokens"])
def test_no_product_of_diagonals_is_nearer(name: str) -> None:
    """The exact diagonal is nearer; row and column means, and the diagonals of K-FAC, are not. The trace is inexact."""
    judge = truth(name)
    rivals: list[Callable[[oracles.Factors, Tensor], Tensor]] = [
        lambda _, delta: adafactor(delta),
        lambda part, _: torch.outer(*(factor.diagonal() for factor in oracles.kfac_factors(part))),
    ]
    gaps = []
    pairs = zip(group_blocks(judge, found(name)), group_blocks(judge, judge.fisher()), strict=True)
    for (part, block), (_, exact) in pairs:
        delta = exact.diagonal().reshape(part.gradients[0].shape[1], -1)
        error = float((block - exact).norm())
        assert float((exact - delta.flatten().diag()).norm()) <= error * (1 + 1e-12)
        for rival in rivals:
            assert error <= float((rival(part, delta).flatten().diag() - exact).norm()) * (1 + 1e-12)
        gaps.append(abs(float(block.trace() / exact.trace()) - 1))
    assert max(gaps) > 1e-3


def test_one_sample_without_positions_is_exact() -> None:
    dense = found("one_sample")
    assert near(dense.diagonal(), truth("one_sample").fisher().diagonal())


@pytest.mark.parametrize("shape", [(2, 5, 3), (2, 3, 5), (1, 1, 4), (1, 4, 1)])
@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e100])
def test_pairs_of_any_shape_and_scale(shape: tuple[int, int, int], scale: float) -> None:
    delta = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    delta[0, 0] = 0
    pair = nearest_pair(scale * delta, torch.float64)
    for made, group in zip((pair.left[:, :, None] * pair.right[:, None]) / scale, delta, strict=True):
        assert near(made, best(group))


def test_two_equal_singular_values_leave_a_pair_that_is_not_negative() -> None:
    delta = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2)).double()[None]
    pair = nearest_pair(delta, torch.float64)
    assert float(pair.left.min()) >= 0 and float(pair.right.min()) >= 0
    error = (pair.left[:, :, None] * pair.right[:, None] - delta).norm()
    assert float(error) == pytest.approx(2.0), "the other singular value is all that is left"
