"""M-FAC's window against dense means of outer products, and against the paper's recursion of rank-one updates."""

from __future__ import annotations

from typing import Any

import oracles
import pytest
import torch
from cases import instance_of
from judging import near
from torch import Tensor

import curvbench as cb
from curvbench.fisher.stochastic import batch_gradient

DAMPING = 1e-2


def drawn(name: str, count: int) -> list[Tensor]:
    return [batch_gradient(instance_of(name), "bg", 0, t) for t in range(count)]


def state_of(name: str, **options: Any) -> tuple[cb.Probe, Any]:
    probe = cb.probe("mfac", statistic="bg", damping=DAMPING, **options)
    return probe, probe.refresh(probe.fit(instance_of(name)))


def mean(rows: list[Tensor], count: int) -> Tensor:
    return sum((torch.outer(d, d) for d in rows), torch.zeros(len(rows[0]), len(rows[0])).double()) / count


def recursion(rows: list[Tensor], count: int, vector: Tensor) -> Tensor:
    """The inverse of damping I + sum of d d^T / count, one rank at a time, with count in the denominator."""
    inverse = torch.eye(len(vector), dtype=torch.float64) / DAMPING
    for d in rows:
        image = inverse @ d
        inverse = inverse - torch.outer(image, image) / (count + d @ image)
    return inverse @ vector


@pytest.mark.parametrize("count", ["window", "filled"])
@pytest.mark.parametrize(("memory", "updates"), [(8, 3), (4, 4), (3, 7)])
@pytest.mark.parametrize("name", ["mlp_tanh", "tokens"])
def test_woodbury_and_the_recursion_are_the_dense_inverse(name: str, memory: int, updates: int, count: str) -> None:
    rows = drawn(name, updates)[-memory:]
    divisor = memory if count == "window" else len(rows)
    probe, state = state_of(name, memory=memory, updates=updates, count=count)
    vector = instance_of(name).gradient()
    dense = mean(rows, divisor)
    assert near(probe.operator(state).to_dense(), dense, 1e-12)
    expected = oracles.natural_gradient(dense, vector, DAMPING)
    assert near(probe.precondition(state, vector), expected, 1e-9)
    assert near(recursion(rows, divisor, vector), expected, 1e-9)
    assert near(state.gram, torch.stack(rows) @ torch.stack(rows).T, 1e-12)


def test_a_gradient_in_the_window_is_preconditioned_with_itself() -> None:
    """The step for the newest gradient is not that of the window before it."""
    rows = drawn("mlp_tanh", 5)
    _, state = state_of("mlp_tanh", memory=8, updates=5)
    probe, before = state_of("mlp_tanh", memory=8, updates=4)
    expected = recursion(rows, 8, rows[-1])
    assert near(probe.precondition(state, rows[-1]), expected, 1e-9)
    assert oracles.relative(probe.precondition(before, rows[-1]), expected) > 0.1


def test_the_order_of_the_window_is_irrelevant() -> None:
    rows, vector = drawn("mlp_tanh", 4), instance_of("mlp_tanh").gradient()
    probe, state = state_of("mlp_tanh", memory=4, updates=4)
    turned = torch.tensor([2, 0, 3, 1])
    other = state._replace(window=state.window[turned], gram=state.gram[turned][:, turned], factor=None)
    assert near(probe.precondition(probe.refresh(other), vector), probe.precondition(state, vector), 1e-10)
    assert near(recursion(rows[::-1], 4, vector), recursion(rows, 4, vector), 1e-10)


def test_a_long_window_of_drawn_labels_comes_to_the_fisher() -> None:
    """Of data labels it does not: their products between samples remain."""
    fisher = cb.exact_fisher(instance_of("mlp_gaussian")).to_dense()

    def error(updates: int, statistic: str = "bg") -> float:
        probe = cb.probe("mfac", memory=updates, updates=updates, statistic=statistic)
        return oracles.relative(cb.fit(probe, instance_of("mlp_gaussian")).to_dense(), fisher)

    assert error(4) / error(200) > 3
    assert error(4, "bg_data") > 3 * error(200)


def test_what_is_no_window_is_refused_in_one_line() -> None:
    for options in ({"memory": 0}, {"damping": 0.0}, {"count": "some"}, {"updates": 0}, {"statistic": "mc"}):
        with pytest.raises(ValueError, match=next(iter(options))) as caught:
            cb.probe("mfac", **options)
        assert "\n" not in str(caught.value)
