"""EKFAC: the projection of the exact block on the matrices that are diagonal in K-FAC's eigenbasis (O4, O5, O20)."""

from __future__ import annotations

from typing import Any

import oracles
import pytest
import torch
from cases import CASES, Case, Truth, instance_of, truth
from judging import cases_with_regular_factors, group_blocks, near, rescaled
from torch import Tensor

import curvbench as cb


def dense_of(case: str, **hyperparameters: Any) -> Tensor:
    return cb.fit(cb.probe("ekfac", **hyperparameters), instance_of(case)).to_dense()


@pytest.mark.parametrize("kind", ["type-2", "empirical"])
def test_is_the_projection_in_the_basis_of_kfac(kind: str) -> None:
    """The dense projection depends on the basis, which is unique where no eigenvalue is repeated."""
    checked = 0
    for name in cases_with_regular_factors(kind):
        found = group_blocks(truth(name), dense_of(name, fisher_type=kind), kind)
        exact = group_blocks(truth(name), truth(name).fisher(kind), kind)
        for (part, block), (_, fisher) in zip(found, exact, strict=True):
            assert near(block, oracles.ekfac_block(fisher, *oracles.kfac_factors(part)), 1e-8), name
            checked += 1
    assert checked >= 3


@pytest.mark.parametrize("kind", ["type-2", "empirical"])
def test_no_worse_than_kfac_in_every_layer(case: Case, judge: Truth, kind: str) -> None:
    """O4, and Pythagoras of a projection: |F^|^2 + |F^ - F|^2 = |F|^2."""
    found = group_blocks(judge, dense_of(case.name, fisher_type=kind), kind)
    exact = group_blocks(judge, judge.fisher(kind), kind)
    for (part, block), (_, fisher) in zip(found, exact, strict=True):
        b, a = oracles.kfac_factors(part)
        scale = max(float(fisher.norm()), 1e-300)
        error = float((block - fisher).norm()) / scale
        assert error <= float((torch.kron(b, a) - fisher).norm()) / scale + 1e-13
        assert (float(block.norm()) / scale) ** 2 + error**2 == pytest.approx(float(fisher.norm() / scale), abs=1e-12)


@pytest.mark.parametrize("kind", ["type-2", "mc", "empirical"])
def test_trace_is_exact(case: Case, kind: str) -> None:
    """O4, in every layer, convolutions included."""
    instance = instance_of(case.name)
    operator = cb.fit(cb.probe("ekfac", fisher_type=kind, seed=3), instance)
    fisher = cb.exact_fisher(instance, fisher_type=kind, seed=3)
    for layer in instance.layers:
        found = operator.block(layer.start, layer.start + layer.size).trace()
        assert found == pytest.approx(fisher.layer(layer.name).trace(), rel=1e-12, abs=1e-300)


@pytest.mark.parametrize("kind", ["type-2", "mc", "empirical"])
def test_exact_for_one_sample(kind: str) -> None:
    """O5."""
    found = dense_of("one_sample", fisher_type=kind, seed=3)
    dense = cb.exact_fisher(instance_of("one_sample"), fisher_type=kind, seed=3).to_dense()
    assert near(found, oracles.keep(dense, oracles.layer_sizes(truth("one_sample").model)))


@pytest.mark.parametrize("factor", [0.5, 3.0])
@pytest.mark.parametrize("name", ["mlp_gaussian", "tokens_gaussian", "padded_cnn"])
def test_scales_with_the_loss(name: str, factor: float) -> None:
    """O20."""
    found = cb.fit(cb.probe("ekfac", fisher_type="empirical"), rescaled(name, factor)).to_dense()
    assert near(found, factor**2 * dense_of(name, fisher_type="empirical"), 1e-12)


# --- the variant of public code -----------------------------------------------------------------------------


def test_running_average_is_one_square_of_the_mean_gradient() -> None:
    for name in cases_with_regular_factors("empirical"):
        judge = truth(name)
        found = group_blocks(judge, dense_of(name, fisher_type="empirical", scalings="running-average"), "empirical")
        rank_one = len(judge.terms) * torch.outer(judge.gradient, judge.gradient)
        for (part, block), (_, square) in zip(found, group_blocks(judge, rank_one, "empirical"), strict=True):
            assert near(block, oracles.ekfac_block(square, *oracles.kfac_factors(part)), 1e-8), name


def test_running_average_is_no_projection() -> None:
    """The control: it is worse than K-FAC somewhere, misses the trace, and grows with a batch given twice."""
    judge = truth("mlp_tanh")
    blocks = oracles.keep(judge.fisher("empirical"), oracles.layer_sizes(judge.model))
    kfac = oracles.kfac(judge.factors("empirical"))
    found = dense_of("mlp_tanh", fisher_type="empirical", scalings="running-average")
    assert oracles.relative(dense_of("mlp_tanh", fisher_type="empirical"), blocks) <= oracles.relative(kfac, blocks)
    assert oracles.relative(found, blocks) > oracles.relative(kfac, blocks)
    assert abs(float(found.trace() / blocks.trace()) - 1) > 0.05
    model, inputs, targets = CASES["mlp_tanh"].build()
    twice = cb.Instance(model, inputs.repeat(2, 1), targets.repeat(2))
    again = cb.fit(cb.probe("ekfac", fisher_type="empirical", scalings="running-average"), twice).to_dense()
    assert near(again, 2 * found, 1e-8)


def test_running_average_comes_near_on_average_over_sampled_labels() -> None:
    """With labels of the model the cross terms vanish in expectation, so that many draws give the exact scalings."""
    instance, exact = instance_of("mlp_tanh"), cb.fit(cb.probe("ekfac"), instance_of("mlp_tanh"))
    for draws, low, high in ((1, 0.05, 10.0), (4000, 0.0, 0.05)):
        probe = cb.probe("ekfac", fisher_type="mc", mc_samples=draws, scalings="running-average")
        assert low <= abs(cb.fit(probe, instance).trace() / exact.trace() - 1) <= high


def test_running_average_needs_scores() -> None:
    with pytest.raises(ValueError, match="fisher_type=empirical") as caught:
        cb.probe("ekfac", scalings="running-average")
    assert "\n" not in str(caught.value)


def test_unknown_scalings_are_refused() -> None:
    with pytest.raises(ValueError, match="scalings"):
        cb.probe("ekfac", scalings="nonsense")
