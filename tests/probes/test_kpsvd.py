"""KPSVD: the best Kronecker product of every block, against the SVD of the dense rearranged block."""

from __future__ import annotations

import math
from typing import Any

import oracles
import pytest
import torch
from cases import Case, Truth, instance_of, truth
from judging import group_blocks, near, rescaled
from torch import Tensor

import curvbench as cb
from curvbench.parts.lanczos import leading

KINDS = ("type-2", "empirical")


def dense_of(case: str, **hyperparameters: Any) -> Tensor:
    return cb.fit(cb.probe("kpsvd", **hyperparameters), instance_of(case)).to_dense()


@pytest.mark.parametrize("kind", KINDS)
def test_is_the_best_kronecker_product(case: Case, judge: Truth, kind: str) -> None:
    """The tolerance is of the factors; the distance to the block depends on its square."""
    found = group_blocks(judge, dense_of(case.name, fisher_type=kind), kind)
    for (part, block), (_, fisher) in zip(found, group_blocks(judge, judge.fisher(kind), kind), strict=True):
        if float(fisher.norm()) == 0:
            assert float(block.norm()) == 0
            continue
        best = oracles.kpsvd_block(fisher, part.gradients[0].shape[1], part.inputs[0].shape[1])
        assert abs(oracles.relative(block, fisher) - oracles.relative(best, fisher)) <= 1e-10
        assert near(block, best, 1e-5)


def test_a_smaller_tolerance_comes_nearer() -> None:
    judge = truth("conv1d")
    for (part, block), (_, fisher) in zip(
        group_blocks(judge, dense_of("conv1d", tolerance=1e-13)), group_blocks(judge, judge.fisher()), strict=True
    ):
        best = oracles.kpsvd_block(fisher, part.gradients[0].shape[1], part.inputs[0].shape[1])
        assert near(block, best, 1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_no_kronecker_product_is_nearer(case: Case, judge: Truth, kind: str) -> None:
    """In every layer K-FAC and TKFAC have no smaller error."""
    exact = group_blocks(judge, judge.fisher(kind), kind)

    def errors(probe: str, **hyperparameters: Any) -> Tensor:
        found = cb.fit(cb.probe(probe, fisher_type=kind, **hyperparameters), instance_of(case.name)).to_dense()
        pairs = zip(group_blocks(judge, found, kind), exact, strict=True)
        return torch.stack(
            [(block - fisher).norm() / fisher.norm().clamp(min=1e-300) for (_, block), (_, fisher) in pairs]
        )

    best = errors("kpsvd")
    assert bool((best <= errors("kfac") + 1e-10).all())
    assert bool((best <= errors("kfac", kfac_approx="reduce") + 1e-10).all())
    assert bool((best <= errors("tkfac") + 1e-10).all())


@pytest.mark.parametrize("order", [1, 2, 7])
def test_leading_eigenvector_of_a_positive_map(order: int) -> None:
    """B -> sum of W B W^T + W^T B W per group, against its dense matrix; one group is zero, one a multiple of I."""
    torch.manual_seed(order)
    W = torch.randn(3, 4, order, order, dtype=torch.float64)
    W[1], W[2] = 0, torch.eye(order)
    start = torch.eye(order, dtype=torch.float64).expand(3, -1, -1)

    def image(B: Tensor) -> Tensor:
        return (W @ B[:, None] @ W.mT + W.mT @ B[:, None] @ W).sum(1)

    found = leading(image, start, rounds=50, tolerance=1e-12)
    dense = sum(torch.kron(w, w) + torch.kron(w.T, w.T) for w in W[0])
    expected = torch.linalg.eigh(dense).eigenvectors[:, -1].reshape(order, order)
    assert near(found[0], expected * expected.trace().sign(), 1e-9)
    assert near(found[2], start[2] / order**0.5, 1e-12)
    assert bool(found.isfinite().all())


def test_factors_are_positive_semi_definite() -> None:
    for name in ("nasty_cnn", "dead_channel", "mlp_relu_no_bias"):
        for block in cb.fit(cb.probe("kpsvd"), instance_of(name)).blocks:
            for factor in (block.left, block.right):
                eigenvalues = torch.linalg.eigvalsh(factor)
                assert bool((eigenvalues[:, 0] >= -1e-14 * eigenvalues[:, -1]).all())


@pytest.mark.parametrize("kind", ["type-2", "mc", "empirical"])
def test_exact_for_one_sample(kind: str) -> None:
    """The block of one sample of a layer without positions is a Kronecker product."""
    found = dense_of("one_sample", fisher_type=kind, seed=3)
    dense = cb.exact_fisher(instance_of("one_sample"), fisher_type=kind, seed=3).to_dense()
    assert near(found, oracles.keep(dense, oracles.layer_sizes(truth("one_sample").model)))


@pytest.mark.parametrize("name", ["mlp_gaussian", "tokens_gaussian", "padded_cnn"])
def test_scales_with_the_loss(name: str) -> None:
    """Scores times c make the empirical matrix c^2 times as large."""
    found = cb.fit(cb.probe("kpsvd", fisher_type="empirical"), rescaled(name, 3.0)).to_dense()
    assert near(found, 9 * dense_of(name, fisher_type="empirical"), 1e-12)


@pytest.mark.parametrize(
    ("key", "value"), [("iterations", 0), ("tolerance", 0.0), ("tolerance", 1.0), ("tolerance", math.nan)]
)
def test_bad_limits_are_refused(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=key) as caught:
        cb.probe("kpsvd", **{key: value})
    assert "\n" not in str(caught.value)


def test_rounds_that_do_not_reach_the_tolerance_are_an_error() -> None:
    """What is not the best product is no lower bound."""
    with pytest.raises(ValueError, match="raise iterations or tolerance"):
        cb.fit(cb.probe("kpsvd", iterations=1, tolerance=1e-12), instance_of("nasty_cnn"))
