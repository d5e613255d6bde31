from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import curvbench as cb
from curvbench.spec import Decay, Training
from curvbench.training.schedules import factor


def rates(training: Training, steps: int) -> list[float]:
    at = factor(training, steps)
    return [training.lr * at(k) for k in range(training.epochs * steps + 1)]


def test_constant_is_constant() -> None:
    assert rates(Training(2, 0.3), 3) == [0.3] * 7


def test_step_falls_at_its_shares() -> None:
    found = rates(Training(4, 1.0, schedule="step", at=(0.25, 0.5, 0.75), factor=0.5), 2)
    assert found == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125, 0.125]


def test_cosine_goes_from_the_rate_to_zero() -> None:
    found = rates(Training(2, 0.4, schedule="cosine"), 2)
    assert found == pytest.approx([0.4 * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(5)])
    assert found[-1] == 0


@pytest.mark.parametrize("lr", [0.1, 1e-3, 1e-4])
def test_the_cosine_variant_is_the_paper_s(lr: float) -> None:
    found = rates(Training(5, lr, schedule="cosine-variant"), 1)
    expected = [0.001 + 0.5 * (lr - 0.001) * (1 + math.cos(2 * 0.47 * math.pi * t / 5)) for t in range(6)]
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("power", [2, 3, 6])
def test_polynomial_is_the_paper_s(power: float) -> None:
    found = rates(Training(5, 0.3, schedule="polynomial", power=power), 1)
    assert found == pytest.approx([0.3 * (1 - t / 5) ** power for t in range(6)], rel=1e-12)


def test_warm_up_grows_linearly_to_the_schedule() -> None:
    found = rates(Training(4, 1.0, warmup=2), 2)
    assert found == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    both = rates(Training(4, 1.0, warmup=0.5, schedule="cosine"), 4)
    plain = rates(Training(4, 1.0, schedule="cosine"), 4)
    assert both[0] == plain[0] / 2
    assert both[1:] == plain[1:]


def test_decay_is_exponential_down_to_its_floor() -> None:
    found = rates(Training(3, 2.24, decay=(Decay("lr", 0.5, 0.1),)), 2)
    assert found == pytest.approx([2.24, 1.12, 0.56, 0.28, 0.14, 0.1, 0.1], rel=1e-15)


def test_decay_grows_warm_first() -> None:
    found = rates(Training(2, 1.0, warmup=1, decay=(Decay("lr", 0.5),)), 2)
    assert found == [0.5, 0.5, 0.25, 0.125, 0.0625]


@pytest.mark.parametrize("decay", [Decay("lr", 0.9994, 1e-4), Decay("epsilon", 1 / 3), Decay("damping", 0.9, 1e-300)])
def test_a_decay_is_read_as_it_is_written(decay: Decay) -> None:
    assert Decay.read(str(decay)) == decay


@pytest.mark.parametrize("rule", ["exact", "pi"])
def test_a_factorization_keeps_the_damping_that_it_was_made_with(rule: str) -> None:
    """K-FAC of one layer with two steps per factorization, by dense float64 matrices."""
    torch.manual_seed(0)
    model, x, y = nn.Linear(3, 4).double(), torch.randn(6, 3).double(), torch.tensor([0, 1, 2, 3, 0, 1])
    eye = torch.eye(4).double()
    probe = cb.probe("kfac", damping=0.5, damping_rule=rule)
    optimizer = cb.NaturalGradient(model, probe, lr=0.1, refresh_every=2, decay=[Decay("damping", 0.5, 0.1)])
    for step in range(4):
        before = torch.cat([model.weight, model.bias[:, None]], 1).detach()
        if step % 2 == 0:
            damping = max(0.1, 0.5 * 0.5**step)
            a = torch.cat([x, torch.ones(6, 1).double()], 1)
            p = torch.softmax(a @ before.T, 1)
            A, B = a.T @ a / 6, sum(torch.diag(q) - torch.outer(q, q) for q in p) / 6
        gradient = (torch.softmax(a @ before.T, 1) - eye[y]).T @ a / 6
        if rule == "exact":
            step_ = torch.linalg.solve(torch.kron(B, A) + damping * torch.eye(16).double(), gradient.flatten()).view(
                4, 4
            )
        else:
            pi = (A.trace() / 4 / (B.trace() / 4)).sqrt()
            left, right = B + damping**0.5 / pi * eye, A + damping**0.5 * pi * eye
            step_ = torch.linalg.solve(left, gradient) @ torch.linalg.inv(right)
        optimizer.zero_grad()
        nn.functional.cross_entropy(optimizer.forward(x, y), y).backward()
        optimizer.step()
        after = torch.cat([model.weight, model.bias[:, None]], 1).detach()
        torch.testing.assert_close(after, before - 0.1 * step_, rtol=1e-9, atol=1e-12)
