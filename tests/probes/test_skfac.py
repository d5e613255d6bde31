"""SKFAC: K-FAC without its factors, the same matrix and the same step."""

from __future__ import annotations

import oracles
import pytest
import torch
from cases import Case, Truth, instance_of, truth
from judging import near, rescaled

import curvbench as cb


@pytest.mark.parametrize("kind", ["type-2", "empirical"])
def test_is_kfac_with_reduced_positions(case: Case, judge: Truth, kind: str) -> None:
    found = cb.fit(cb.probe("skfac", fisher_type=kind), instance_of(case.name)).to_dense()
    assert near(found, oracles.kfac(judge.factors(kind), "reduce"))


@pytest.mark.parametrize("kind", ["type-2", "empirical"])
def test_step_is_that_of_factored_damping(case: Case, judge: Truth, kind: str) -> None:
    """Woodbury in each factor is the dense inverse of the damped factor."""
    damping = 0.1 * max(float(oracles.kfac(judge.factors(kind), "reduce").trace()) / judge.size, 1e-6)
    probe = cb.probe("skfac", fisher_type=kind, damping=damping)
    vector = torch.randn(judge.size, dtype=torch.float64)
    found, start = probe.precondition(probe.refresh(probe.fit(instance_of(case.name))), vector), 0
    for groups in judge.factors(kind).values():
        for part in groups:
            b, a = oracles.kfac_factors(part, "reduce")
            stop = start + len(a) * len(b)
            expected = oracles.damped_kronecker_solve(b, a, vector[start:stop], damping, "factored")
            assert near(found[start:stop], expected, 1e-9)
            start = stop


def test_step_is_that_of_the_kfac_probe() -> None:
    instance, vector = instance_of("nasty_cnn"), torch.randn(truth("nasty_cnn").size, dtype=torch.float64)
    steps = []
    for probe in (cb.probe("skfac"), cb.probe("kfac", kfac_approx="reduce", damping_rule="factored")):
        steps.append(probe.precondition(probe.refresh(probe.fit(instance)), vector))
    assert near(steps[0], steps[1], 1e-11)


def test_step_is_not_that_of_exact_damping() -> None:
    """The control."""
    instance, vector = instance_of("mlp_tanh"), truth("mlp_tanh").gradient
    probe = cb.probe("skfac", damping=0.01)
    step = probe.precondition(probe.refresh(probe.fit(instance)), vector)
    assert oracles.relative(step, cb.fit(probe, instance).solve(vector, 0.01)) > 0.05


@pytest.mark.parametrize("kind", ["type-2", "mc", "empirical"])
def test_exact_for_one_sample(kind: str) -> None:
    """The Fisher blocks of one sample are represented exactly."""
    found = cb.fit(cb.probe("skfac", fisher_type=kind, seed=3), instance_of("one_sample")).to_dense()
    dense = cb.exact_fisher(instance_of("one_sample"), fisher_type=kind, seed=3).to_dense()
    assert near(found, oracles.keep(dense, oracles.layer_sizes(truth("one_sample").model)))


@pytest.mark.parametrize("name", ["mlp_gaussian", "tokens_gaussian", "padded_cnn"])
def test_scales_with_the_loss(name: str) -> None:
    """Scores times c make the empirical matrix c^2 times as large."""
    probe = cb.probe("skfac", fisher_type="empirical")
    found, expected = (cb.fit(probe, instance).to_dense() for instance in (rescaled(name, 3.0), instance_of(name)))
    assert near(found, 9 * expected, 1e-12)


def test_no_damping_is_refused() -> None:
    probe = cb.probe("skfac", damping=0.0)
    with pytest.raises(ValueError, match="damping above zero"):
        probe.refresh(probe.fit(instance_of("mlp_tanh")))
