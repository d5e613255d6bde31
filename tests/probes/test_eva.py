"""Eva: the rank-one matrix of the means, its Sherman-Morrison step, and why it needs data labels."""

from __future__ import annotations

from typing import Any

import oracles
import pytest
import torch
from cases import Case, MeanPool, Truth, instance_of, truth
from judging import group_blocks, near, rescaled
from torch import Tensor, nn

import curvbench as cb


def dense_of(case: str, **hyperparameters: Any) -> Tensor:
    return cb.fit(cb.probe("eva", **hyperparameters), instance_of(case)).to_dense()


def mean_score(part: oracles.Factors, positions: str) -> Tensor:
    """Mean gradient times mean input, (M * D,)."""
    reduce = torch.mean if positions == "mean" else torch.sum
    gradient = torch.stack([reduce(g, 0) for g in part.gradients]).sum(0) / part.terms
    inputs = torch.stack([x.mean(0) for x in part.inputs]).mean(0)
    return torch.outer(gradient, inputs).flatten()


@pytest.mark.parametrize("positions", ["mean", "sum"])
def test_is_the_outer_product_of_the_means(case: Case, judge: Truth, positions: str) -> None:
    blocks = []
    for groups in judge.factors("empirical").values():
        scores = [mean_score(part, positions) for part in groups]
        blocks += [torch.outer(score, score) for score in scores]
    assert near(dense_of(case.name, positions=positions), torch.block_diag(*blocks))


def test_step_is_the_dense_damped_inverse(case: Case, judge: Truth) -> None:
    """The Sherman-Morrison step is the dense solve."""
    instance, dense = instance_of(case.name), dense_of(case.name)
    probe = cb.probe("eva", damping=0.03)
    found = probe.precondition(probe.refresh(probe.fit(instance)), judge.gradient)
    tolerance = 1e-12 + 1e-15 * float(dense.norm()) / 0.03
    assert near(found, oracles.natural_gradient(dense, judge.gradient, 0.03), tolerance)


def test_exact_for_one_sample() -> None:
    """The Fisher blocks of one sample are represented exactly."""
    judge = truth("one_sample")
    assert near(dense_of("one_sample"), oracles.keep(judge.fisher("empirical"), oracles.layer_sizes(judge.model)))


def test_is_not_exact_for_more_samples() -> None:
    """The control."""
    judge = truth("mlp_tanh")
    blocks = oracles.keep(judge.fisher("empirical"), oracles.layer_sizes(judge.model))
    assert oracles.relative(dense_of("mlp_tanh"), blocks) > 0.05


def test_only_summed_gradients_have_the_scale_of_the_fisher() -> None:
    """One sample whose positions all read the same: summed gradients are exact, averaged ones 1/S^2 of it."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), MeanPool(), nn.Linear(4, 2)).double()
    inputs, targets = torch.randn(1, 1, 3).double().repeat(1, 5, 1), torch.tensor([1])
    instance = cb.Instance(model, inputs, targets)
    terms = oracles.loss_terms(model, inputs, targets, "cross_entropy")
    blocks = oracles.keep(oracles.empirical_fisher(terms, "cross_entropy"), oracles.layer_sizes(model))
    first = slice(0, 16)
    summed, averaged = (cb.fit(cb.probe("eva", positions=p), instance).to_dense() for p in ("sum", "mean"))
    assert near(summed, blocks, 1e-12)
    assert near(25 * averaged[first, first], blocks[first, first], 1e-12)


@pytest.mark.parametrize("kind", ["type-2", "type2", "mc", "forward-only"])
def test_labels_of_the_model_are_refused_with_the_reason(kind: str) -> None:
    with pytest.raises(ValueError, match="zero in expectation") as caught:
        cb.probe("eva", fisher_type=kind)
    assert "\n" not in str(caught.value)


def test_labels_of_the_model_leave_nothing() -> None:
    """Expected scores are zero under the model, and so would be the matrix."""
    judge = truth("mlp_tanh")
    for term in judge.terms:
        probabilities = term.output.softmax(0)
        scores = torch.stack([oracles.score(term, c, "cross_entropy") for c in range(len(probabilities))])
        assert float((probabilities @ scores).norm()) <= 1e-14 * float(scores.norm())


@pytest.mark.parametrize("name", ["mlp_gaussian", "tokens_gaussian", "padded_cnn"])
def test_scales_with_the_loss(name: str) -> None:
    """Scores times c make the empirical matrix c^2 times as large."""
    assert near(cb.fit(cb.probe("eva"), rescaled(name, 3.0)).to_dense(), 9 * dense_of(name), 1e-12)


def test_groups_do_not_mix() -> None:
    judge = truth("nasty_cnn")
    blocks = [block for _, block in group_blocks(judge, dense_of("nasty_cnn"), "empirical")]
    assert near(torch.block_diag(*blocks), dense_of("nasty_cnn"), 1e-14)
    assert all(int(torch.linalg.matrix_rank(block, hermitian=True)) <= 1 for block in blocks)


def test_no_damping_is_refused() -> None:
    probe = cb.probe("eva", damping=0.0)
    state = probe.refresh(probe.fit(instance_of("mlp_tanh")))
    with pytest.raises(ValueError, match="damping above zero"):
        probe.precondition(state, truth("mlp_tanh").gradient)


def test_an_unknown_treatment_of_positions_is_refused() -> None:
    with pytest.raises(ValueError, match="positions"):
        cb.probe("eva", positions="max")
