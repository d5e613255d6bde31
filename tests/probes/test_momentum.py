"""Adam, AdamW and SGD with momentum against ``torch.optim`` on a moving model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from cases import CASES, instance_of, truth
from streams import relative
from torch import Tensor, nn

import curvbench as cb

RATE = 0.05
Optimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

PAIRS: dict[str, tuple[Any, Optimizer]] = {
    "adam": (cb.probe("adam"), lambda p: torch.optim.Adam(p, RATE)),
    "adam-betas": (
        cb.probe("adam", beta1=0.5, beta2=0.99, epsilon=0.1),
        lambda p: torch.optim.Adam(p, RATE, (0.5, 0.99), 0.1),
    ),
    "adamw": (cb.probe("adamw"), lambda p: torch.optim.AdamW(p, RATE)),
    "adamw-decay": (cb.probe("adamw", weight_decay=0.5), lambda p: torch.optim.AdamW(p, RATE, weight_decay=0.5)),
    "sgdm": (cb.probe("sgdm"), lambda p: torch.optim.SGD(p, RATE, 0.9)),
    "sgdm-plain": (cb.probe("sgdm", momentum=0.0), lambda p: torch.optim.SGD(p, RATE)),
    "sgdm-decay": (
        cb.probe("sgdm", momentum=0.5, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, RATE, 0.5, weight_decay=0.1),
    ),
}


def parameters(instance: cb.Instance) -> Tensor:
    return instance.pack(instance.parameters)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("name", ["mlp_tanh", "conv1d"])
def test_steps_are_those_of_torch(pair: str, name: str) -> None:
    probe, optimizer_of = PAIRS[pair]
    case = CASES[name]
    (ours, inputs, targets), (theirs, _, _) = case.build(), case.build()
    optimizer, state = optimizer_of(theirs.parameters()), None
    for _ in range(6):
        instance = cb.Instance(ours, inputs, targets, loss=case.loss)
        state = probe.update(probe.init(instance) if state is None else state, instance)
        step = probe.precondition(probe.refresh(state), instance.gradient())
        with torch.no_grad():
            for key, value in instance.unpack(step).items():
                ours.get_parameter(key).sub_(RATE * value)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(theirs(inputs), targets).backward()
        optimizer.step()
    found, expected = (parameters(cb.Instance(m, inputs, targets, loss=case.loss)) for m in (ours, theirs))
    start = parameters(instance_of(name))
    assert relative(found, expected) < 1e-14
    assert float((expected - start).norm()) > 1e-2


@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize("updates", [1, 32])
def test_curvature_is_the_second_moment_times_the_batch(name: str, updates: int) -> None:
    """At frozen parameters the corrected moment of any number of updates is the squared gradient."""
    found = cb.fit(cb.probe(name, updates=updates), instance_of("mlp_tanh")).to_dense()
    judge = truth("mlp_tanh")
    assert relative(found, torch.diag(len(judge.terms) * judge.gradient.square())) < 1e-12


def test_curvature_of_one_sample_is_the_diagonal_of_the_empirical_fisher() -> None:
    found = cb.fit(cb.probe("adam"), instance_of("one_sample")).diagonal()
    assert relative(found, truth("one_sample").fisher("empirical").diagonal()) < 1e-12


def test_sgdm_represents_the_identity() -> None:
    instance = instance_of("mlp_tanh")
    operator = cb.fit(cb.probe("sgdm"), instance)
    assert torch.equal(operator.to_dense(), torch.eye(instance.size).double())
    assert operator.trace() == instance.size


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_epsilon_zero_is_refused(name: str) -> None:
    """A parameter without gradient would have the step 0 / 0."""
    with pytest.raises(ValueError, match="epsilon"):
        cb.probe(name, epsilon=0.0)
