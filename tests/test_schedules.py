from __future__ import annotations

import math

import pytest

from curvbench.schedules import factor
from curvbench.spec import Training


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
