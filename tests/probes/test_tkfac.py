"""TKFAC: the Kronecker product with the partial traces of the exact block."""

from __future__ import annotations

from typing import Any

import oracles
import pytest
import torch
from cases import Case, Truth, instance_of, truth
from judging import group_blocks, near, rescaled
from torch import Tensor

import curvbench as cb

ONE_POSITION = ("mlp_tanh", "mlp_relu_no_bias", "mlp_two_classes", "mlp_gaussian", "mlp_many_samples", "dead_unit")
KINDS = ("type-2", "empirical")


def dense_of(case: str, **hyperparameters: Any) -> Tensor:
    return cb.fit(cb.probe("tkfac", **hyperparameters), instance_of(case)).to_dense()


def expanded_block(part: oracles.Factors) -> Tensor:
    """The exact block with every position a sample of its own: positions do not see each other."""
    outputs, inputs = part.gradients[0].shape[1], part.inputs[0].shape[1]
    block = torch.zeros(outputs * inputs, outputs * inputs, dtype=torch.float64)
    for gradient, owner in zip(part.gradients, part.owner, strict=True):
        for g, a in zip(gradient, part.inputs[owner], strict=True):
            score = torch.outer(g, a).flatten()
            block += torch.outer(score, score) / part.terms
    return block


@pytest.mark.parametrize("kind", KINDS)
def test_is_the_product_of_the_partial_traces(case: Case, judge: Truth, kind: str) -> None:
    """Of the block that treats positions as samples; zero where that block is zero."""
    for part, block in group_blocks(judge, dense_of(case.name, fisher_type=kind), kind):
        expected = expanded_block(part)
        if float(expected.norm()) == 0:
            assert float(block.norm()) == 0
            continue
        outputs, inputs = part.gradients[0].shape[1], part.inputs[0].shape[1]
        assert near(block, oracles.tkfac_block(expected, outputs, inputs))
        assert float(block.trace()) == pytest.approx(float(expected.trace()), rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ONE_POSITION)
def test_both_partial_traces_are_exact(name: str, kind: str) -> None:
    """The partial traces of layers that are applied once are those of the exact block."""
    judge = truth(name)
    exact = group_blocks(judge, judge.fisher(kind), kind)
    for (part, block), (_, fisher) in zip(
        group_blocks(judge, dense_of(name, fisher_type=kind), kind), exact, strict=True
    ):
        sizes = part.gradients[0].shape[1], part.inputs[0].shape[1]
        found, expected = oracles.partial_traces(block, *sizes), oracles.partial_traces(fisher, *sizes)
        assert near(found[0], expected[0], 1e-12) and near(found[1], expected[1], 1e-12)


def test_partial_traces_of_kfac_are_not_exact() -> None:
    """The control."""
    judge = truth("mlp_tanh")
    exact = group_blocks(judge, judge.fisher())
    kfac = group_blocks(judge, cb.fit(cb.probe("kfac"), instance_of("mlp_tanh")).to_dense())
    assert all(abs(float(k.trace() / f.trace()) - 1) > 1e-3 for (_, k), (_, f) in zip(kfac, exact, strict=True))


def test_trace_of_a_shared_layer_is_not_exact() -> None:
    """The control of the control: cross terms of positions are what it leaves out."""
    judge = truth("conv1d")
    pairs = zip(group_blocks(judge, dense_of("conv1d")), group_blocks(judge, judge.fisher()), strict=True)
    assert max(abs(float(found.trace() / exact.trace()) - 1) for (_, found), (_, exact) in pairs) > 0.05


@pytest.mark.parametrize("kind", ["type-2", "mc", "empirical"])
def test_exact_for_one_sample(kind: str) -> None:
    """The Fisher blocks of one sample are represented exactly."""
    found = dense_of("one_sample", fisher_type=kind, seed=3)
    dense = cb.exact_fisher(instance_of("one_sample"), fisher_type=kind, seed=3).to_dense()
    assert near(found, oracles.keep(dense, oracles.layer_sizes(truth("one_sample").model)))


@pytest.mark.parametrize("rule", ["factored", "exact"])
def test_damped_inverse(rule: str) -> None:
    """The damped inverses are the dense ones, with both factors of trace sqrt(t)."""
    instance, judge = instance_of("conv1d"), truth("conv1d")
    probe = cb.probe("tkfac", damping=1e-2, damping_rule=rule)
    state = probe.refresh(probe.fit(instance))
    vector = torch.randn(judge.size, dtype=torch.float64)
    found, start = probe.precondition(state, vector), 0
    for part, block in group_blocks(judge, probe.operator(state).to_dense()):
        outputs, inputs = part.gradients[0].shape[1], part.inputs[0].shape[1]
        left, right = (f / block.trace().sqrt() for f in oracles.partial_traces(block, outputs, inputs))
        stop = start + len(block)
        expected = oracles.damped_kronecker_solve(left, right, vector[start:stop], 1e-2, rule)
        assert near(found[start:stop], expected, 1e-9)
        start = stop


@pytest.mark.parametrize("factor", [0.5, 3.0])
@pytest.mark.parametrize("name", ["mlp_gaussian", "tokens_gaussian", "padded_cnn"])
def test_scales_with_the_loss(name: str, factor: float) -> None:
    """Scores times c make the empirical matrix c^2 times as large."""
    found = cb.fit(cb.probe("tkfac", fisher_type="empirical"), rescaled(name, factor)).to_dense()
    assert near(found, factor**2 * dense_of(name, fisher_type="empirical"), 1e-12)


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="damping_rule"):
        cb.probe("tkfac", damping_rule="pi")
