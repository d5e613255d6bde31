"""Conjugate gradients against dense minimisers over Krylov spaces, and with the grammar of a probe within a probe."""

from __future__ import annotations

from typing import Any

import oracles
import pytest
import torch
from cases import instance_of, truth
from judging import near
from torch import Tensor

import curvbench as cb
from curvbench import registry
from curvbench.meters.direction import judge
from curvbench.spec import Unsupported

DAMPING = 0.1  # at smaller ones the directions lose their orthogonality to rounding
NAMES = ("mlp_tanh", "nasty_cnn", "tokens")
INNER = "kfac[damping=0.02]"


def step(name: str, **options: Any) -> Tensor:
    probe = cb.probe("cg", damping=DAMPING, **options)
    return probe.precondition(probe.refresh(probe.fit(instance_of(name))), instance_of(name).gradient())


def system(name: str) -> Tensor:
    fisher = truth(name).fisher()
    return fisher + DAMPING * torch.eye(len(fisher)).double()


def inverse_of(name: str, label: str) -> Tensor:
    probe = registry.parse_probe(label)
    state = probe.refresh(probe.fit(instance_of(name)))
    return torch.stack([probe.precondition(state, row) for row in torch.eye(truth(name).size).double()], 1)


def minimiser(C: Tensor, g: Tensor, k: int, inverse: Tensor | None = None, start: Tensor | None = None) -> Tensor:
    """The least of x^T C x / 2 - g^T x over start + span of the first k vectors M^-1 r, M^-1 C M^-1 r, ..."""
    inverse = torch.eye(len(g)).double() if inverse is None else inverse
    start = torch.zeros_like(g) if start is None else start
    space = [inverse @ (g - C @ start)]
    for _ in range(k - 1):
        basis = torch.linalg.qr(torch.stack(space, 1))[0]
        space.append(inverse @ (C @ basis[:, -1]))
    basis = torch.linalg.qr(torch.stack(space, 1))[0]
    return start + basis @ torch.linalg.solve(basis.T @ C @ basis, basis.T @ (g - C @ start))


@pytest.mark.parametrize("inner", [None, INNER, "nystrom[rank=3,tail=last,damping=0.1]"])
@pytest.mark.parametrize("name", NAMES)
def test_every_step_is_the_minimiser_over_its_krylov_space(name: str, inner: str | None) -> None:
    C, g = system(name), truth(name).gradient
    inverse = None if inner is None else inverse_of(name, inner)
    found = [step(name, iterations=k, preconditioner=inner) for k in (1, 2, 4)]
    for k, p in zip((1, 2, 4), found, strict=True):
        assert near(p, minimiser(C, g, k, inverse), 1e-8)
    assert oracles.relative(found[1], found[2]) > 1e-6, "the steps differ, so that the test can fail"


@pytest.mark.parametrize("inner", [None, INNER])
@pytest.mark.parametrize("name", ["mlp_tanh", "tokens"])
def test_quality_never_falls_and_the_best_length_is_one(name: str, inner: str | None) -> None:
    """The first step is along the gradient, or along the preconditioner's own step."""
    fisher, g = cb.exact_fisher(instance_of(name)), instance_of(name).gradient()
    scores = [judge(step(name, iterations=k, preconditioner=inner), fisher, g, DAMPING)[0].values for k in (1, 2, 3, 6)]
    own = g if inner is None else inverse_of(name, inner) @ g
    assert abs(scores[0]["quality"] - judge(own, fisher, g, DAMPING)[0].values["quality"]) <= 1e-10
    condition = torch.linalg.eigvals(system(name) if inner is None else inverse_of(name, inner) @ system(name)).real
    root = float((condition.max() / condition.min()).sqrt())
    for before, after in zip([{"quality": 0.0}, *scores], scores, strict=False):
        assert after["quality"] >= before["quality"] - 1e-12
    for k, score in zip((1, 2, 3, 6), scores, strict=True):
        assert abs(score["length"] - 1) <= 1e-8 and abs(score["decrease"] - score["quality"]) <= 1e-8
        assert 1 - score["quality"] <= 4 * ((root - 1) / (root + 1)) ** (2 * k) + 1e-12


def test_it_ends_with_the_rank_of_the_fisher() -> None:
    """The gradient lies in the span of the columns. One iteration less is not enough."""
    fisher, g = truth("mlp_tanh").fisher(), truth("mlp_tanh").gradient
    rank = int(torch.linalg.matrix_rank(fisher, hermitian=True))
    expected = oracles.natural_gradient(fisher, g, DAMPING)
    for iterations in (rank, 10 * rank):
        assert near(step("mlp_tanh", iterations=iterations), expected, 1e-8)
    assert oracles.relative(step("mlp_tanh", iterations=3), expected) > 1e-3


def test_with_the_exact_preconditioner_one_iteration_is_enough() -> None:
    expected = oracles.natural_gradient(truth("tokens").fisher(), truth("tokens").gradient, DAMPING)
    assert near(step("tokens", iterations=1, preconditioner=f"full[damping={DAMPING}]"), expected, 1e-9)
    assert near(step("tokens", iterations=50, preconditioner=f"full[damping={DAMPING}]"), expected, 1e-9)


@pytest.mark.parametrize("inner", [None, INNER])
def test_a_warm_start_begins_near_the_last_solution(inner: str | None) -> None:
    """And then the best length of a step is not 1."""
    instance, C, g = instance_of("mlp_tanh"), system("mlp_tanh"), truth("mlp_tanh").gradient
    probe = cb.probe("cg", iterations=3, damping=DAMPING, warm=True, preconditioner=inner)
    first = probe.refresh(probe.fit(instance))
    assert near(probe.precondition(first, g), step("mlp_tanh", iterations=3, preconditioner=inner), 1e-12)
    second = probe.refresh(probe.update(first, instance))
    inverse = None if inner is None else inverse_of("mlp_tanh", inner)
    begun = 0.95 * minimiser(C, g, 3, inverse)
    found = probe.precondition(second, g)
    assert near(found, minimiser(C, g, 3, inverse, begun), 1e-8)
    score = judge(found, cb.exact_fisher(instance), g, DAMPING)[0].values
    assert abs(score["length"] - 1) > 1e-4 and score["quality"] > 0.99


def test_the_preconditioner_is_fitted_as_it_says() -> None:
    probe = cb.probe("cg", preconditioner="mfac[updates=5,memory=9,statistic=bg]")
    state = probe.fit(instance_of("mlp_tanh"))
    assert state.inner.taken == 5
    assert probe.update(state, instance_of("mlp_tanh")).inner.taken == 6


def test_it_represents_the_fisher_and_says_so() -> None:
    found = cb.errors(cb.fit(cb.probe("cg"), instance_of("mlp_tanh")), cb.exact_fisher(instance_of("mlp_tanh")))
    assert found["relative"] <= 1e-7
    assert not cb.probe("cg").is_ranked_by_error and "error is 0" in cb.probe("cg").about.represents


# --- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cg[iterations=0]", "iterations must be at least 1, got 0"),
        ("cg[damping=0]", "damping must be finite and above zero, got 0"),
        ("cg[preconditioner=adam]", "the step of adam is not the inverse of one symmetric matrix"),
        ("cg[preconditioner=sgdm[momentum=0.5]]", "the step of sgdm[momentum=0.5] is not"),
        ("cg[preconditioner=kfak]", "cg: preconditioner: unknown probe 'kfak': did you mean kfac"),
        ("cg[preconditioner=kfac[damping=x]]", "cg: preconditioner: kfac: damping must be a number, got 'x'"),
        ("cg[preconditioner=]", "cg: preconditioner: unknown probe ''"),
        ("cg[preconditioner=kfac[damping=1]", "expected NAME[key=value,...]"),
        ("cg[preconditioner=kfac[damping=1]],damping=1]", "expected NAME[key=value,...]"),
    ],
)
def test_what_is_no_solver_is_refused_in_one_line(text: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        registry.parse_probe(text)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("inner", ["lngd[layer_rate=corrected]", "ief[damping_rule=gram]", "cg[iterations=2]"])
def test_a_step_that_is_not_linear_is_no_preconditioner(inner: str) -> None:
    """Known once it is fitted, in a fit and in a training."""
    probe, instance = cb.probe("cg", preconditioner=inner), instance_of("mlp_tanh")
    for begin in (probe.fit, lambda batch: probe.update(probe.init(batch), batch)):
        with pytest.raises(Unsupported, match="is not the inverse of one symmetric matrix") as caught:
            begin(instance)
        assert "\n" not in str(caught.value)


def test_a_preconditioner_that_declines_says_so() -> None:
    reason = cb.probe("cg", preconditioner="nystrom[rank=1000]").unsupported(instance_of("mlp_tanh"))
    assert reason == "preconditioner=nystrom[rank=1000]: rank 1000 is more than the 79 parameters"
