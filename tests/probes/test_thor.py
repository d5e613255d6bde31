"""THOR: the factors of K-FAC cut to diagonal blocks, each damped and inverted on its own."""

from __future__ import annotations

from typing import Any

import oracles
import pytest
import torch
from cases import Case, Truth, instance_of, truth
from judging import group_blocks, near, rescaled
from torch import Tensor

import curvbench as cb

KINDS = ("type-2", "empirical")


def dense_of(case: str, **hyperparameters: Any) -> Tensor:
    return cb.fit(cb.probe("thor", **hyperparameters), instance_of(case)).to_dense()


def cut(factor: Tensor, split: int) -> Tensor:
    """The factor with every entry whose row and column lie in different blocks set to zero."""
    block = torch.arange(len(factor)) // split
    return factor * (block[:, None] == block)


@pytest.mark.parametrize("split", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_is_the_product_of_the_cut_factors(case: Case, judge: Truth, kind: str, split: int) -> None:
    for part, block in group_blocks(judge, dense_of(case.name, fisher_type=kind, split=split), kind):
        b, a = oracles.kfac_factors(part)
        expected = torch.kron(cut(b, split), cut(a, split))
        assert near(block, expected)
        assert float(block.trace()) == pytest.approx(float(b.trace() * a.trace()), rel=1e-12, abs=1e-300)


@pytest.mark.parametrize("kind", KINDS)
def test_one_block_is_kfac(case: Case, judge: Truth, kind: str) -> None:
    """Factors that one block holds entirely are those of K-FAC."""
    assert near(dense_of(case.name, fisher_type=kind), oracles.kfac(judge.factors(kind)))


def test_cut_factors_are_not_kfac() -> None:
    """The control."""
    assert oracles.relative(dense_of("mlp_tanh", split=2), oracles.kfac(truth("mlp_tanh").factors())) > 0.05


@pytest.mark.parametrize("split", [2, 3, 128])
def test_step_is_the_dense_inverse_of_the_damped_blocks(case: Case, judge: Truth, split: int) -> None:
    damping = 0.1 * max(float(oracles.kfac(judge.factors()).trace()) / judge.size, 1e-6)
    probe = cb.probe("thor", split=split, damping=damping)
    vector = torch.randn(judge.size, dtype=torch.float64)
    found, start = probe.precondition(probe.refresh(probe.fit(instance_of(case.name))), vector), 0
    for groups in judge.factors().values():
        for part in groups:
            b, a = (cut(factor, split) for factor in oracles.kfac_factors(part))
            stop = start + len(a) * len(b)
            expected = oracles.damped_kronecker_solve(b, a, vector[start:stop], damping, "factored")
            assert near(found[start:stop], expected, 1e-9)
            start = stop


def test_step_of_one_block_is_that_of_the_kfac_probe() -> None:
    instance, vector = instance_of("nasty_cnn"), torch.randn(truth("nasty_cnn").size, dtype=torch.float64)
    steps = []
    for probe in (cb.probe("thor"), cb.probe("kfac", damping_rule="factored")):
        steps.append(probe.precondition(probe.refresh(probe.fit(instance)), vector))
    assert near(steps[0], steps[1], 1e-12)


@pytest.mark.parametrize("kind", ["type-2", "mc", "empirical"])
def test_exact_for_one_sample(kind: str) -> None:
    """One sample is exact while nothing is cut, and is not where a factor is cut."""
    hyperparameters = {"fisher_type": kind, "seed": 3}
    dense = cb.exact_fisher(instance_of("one_sample"), **hyperparameters).to_dense()
    blocks = oracles.keep(dense, oracles.layer_sizes(truth("one_sample").model))
    assert near(dense_of("one_sample", **hyperparameters), blocks)
    assert oracles.relative(dense_of("one_sample", split=2, **hyperparameters), blocks) > 0.05


@pytest.mark.parametrize("name", ["mlp_gaussian", "tokens_gaussian", "padded_cnn"])
def test_scales_with_the_loss(name: str) -> None:
    """Scores times c make the empirical matrix c^2 times as large."""
    found = cb.fit(cb.probe("thor", fisher_type="empirical", split=2), rescaled(name, 3.0)).to_dense()
    assert near(found, 9 * dense_of(name, fisher_type="empirical", split=2), 1e-12)


@pytest.mark.parametrize("split", [0, -1, 1.5, "all"])
def test_a_bad_split_is_refused(split: Any) -> None:
    with pytest.raises(ValueError, match="split") as caught:
        cb.probe("thor", split=split)
    assert "\n" not in str(caught.value)
