"""The trace outside the covered layers against dense Jacobians of every trainable parameter."""

from __future__ import annotations

import math

import pytest
import torch
from cases import CASES, Case, fisher_of, instance_of, used_batchnorm, weights_of
from oracles import IGNORED, with_tokens
from torch import Tensor, nn

import curvbench as cb
from curvbench.fisher.uncovered import covered_trace, uncovered_trace


def traces(case: Case) -> tuple[float, float]:
    """Traces of the type-2 Fisher over covered and over other parameters, number by number.

    J^T Lambda J is the mean over labels y of the model of squared scores: sum_y p_y |grad log p_y|^2, or sum_c |J_c|^2.
    """
    model, inputs, targets = case.build()
    owned = {n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d)}
    named = dict(model.named_parameters())
    total, terms = {True: 0.0, False: 0.0}, 0
    for n in range(len(inputs)):
        for t, output in enumerate(with_tokens(model(inputs[n : n + 1]))[0]):
            wanted = targets[n] if targets.dim() == 1 else targets[n, t]
            if case.loss == "cross_entropy" and int(wanted) == IGNORED:
                continue
            terms += 1
            for weight, scalar in weighted(output, case.loss):
                gradients = torch.autograd.grad(scalar, list(named.values()), retain_graph=True, materialize_grads=True)
                for name, gradient in zip(named, gradients, strict=True):
                    total[name.rpartition(".")[0] in owned] += weight * float(gradient.square().sum())
    return total[True] / terms, total[False] / terms


def weighted(output: Tensor, loss: str) -> list[tuple[float, Tensor]]:
    if loss == "gaussian":
        return [(1.0, number) for number in output]
    return [(float(p), log_p) for p, log_p in zip(output.detach().softmax(0), output.log_softmax(0), strict=True)]


WITH_OTHERS = ("nasty_cnn", "nasty_cnn_no_bias", "tokens", "embedding", "tokens_gaussian", "one_sample_cnn")


@pytest.mark.parametrize("name", [*WITH_OTHERS, "mlp_tanh", "conv1d", "linear_4d"])
def test_share_of_the_trace(name: str) -> None:
    inside, outside = traces(CASES[name])
    assert (outside > 0) == (name in WITH_OTHERS)
    assert abs(uncovered_trace(instance_of(name)) - outside) <= 1e-12 * (inside + outside)
    share = covered_trace(instance_of(name), fisher_of(name))
    assert abs(share - inside / (inside + outside)) <= 1e-12
    assert share == 1.0 or name in WITH_OTHERS


def test_the_model_is_left_as_it_was() -> None:
    instance = instance_of("nasty_cnn")
    uncovered_trace(instance)
    assert all(p.grad is None and p.requires_grad for p in instance.model.parameters())


def with_norm(freeze: bool) -> cb.Instance:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), used_batchnorm(2), nn.Flatten(), nn.Linear(8, 3)).double().eval()
    model[1].requires_grad_(not freeze)
    return weights_of(model, torch.randn(3, 1, 4, 4).double(), torch.tensor([0, 1, 2]))


def test_frozen_parameters_are_nobodys() -> None:
    assert uncovered_trace(with_norm(freeze=True)) == 0.0 < uncovered_trace(with_norm(freeze=False))


def test_a_parameter_that_is_not_used_has_no_trace() -> None:
    model = nn.Sequential(nn.Linear(4, 3)).double()
    model.register_parameter("spare", nn.Parameter(torch.ones(5).double()))
    instance = cb.Instance(model, torch.randn(6, 4).double(), torch.arange(6) % 3)
    assert instance.uncovered == ["spare"]
    assert covered_trace(instance, cb.exact_fisher(instance)) == 1.0 > instance.coverage


def test_a_fisher_of_zero_is_covered() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2)).double()
    with torch.no_grad():
        model[2].weight.zero_()
        model[2].bias.copy_(torch.tensor([4000.0, -4000.0]))
    instance = weights_of(model, torch.randn(5, 4).double(), torch.arange(5) % 2)
    assert covered_trace(instance, cb.exact_fisher(instance)) == 1.0
    assert not math.isnan(uncovered_trace(instance))
