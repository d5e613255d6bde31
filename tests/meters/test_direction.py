"""The direction meter against dense solutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import oracles
import pytest
import torch
from cases import Case, Truth, instance_of
from torch import Tensor

import curvbench as cb
from curvbench.fisher import stream
from curvbench.meters.direction import direction_rows, judge


def dense_direction(step: Tensor, fisher: Tensor, gradient: Tensor, damping: float) -> dict[str, float]:
    """Cosine, relative distance and share of the optimal decrease, from a dense solution."""
    best = oracles.natural_gradient(fisher, gradient, damping)
    damped = fisher + damping * torch.eye(len(fisher), dtype=fisher.dtype)

    def decrease(p: Tensor) -> float:
        return float(gradient @ p - 0.5 * p @ damped @ p)

    return {
        "cosine": float(step @ best / (step.norm() * best.norm())),
        "relative": float((step - best).norm() / best.norm()),
        "decrease": decrease(step) / decrease(best),
    }


def probe_step(judge: Truth, name: str, damping: float) -> Tensor:
    """The step of each probe from dense matrices; K-FAC's blocks are inverted with exact damping."""
    dense, sizes = judge.fisher(), oracles.layer_sizes(judge.model)
    if name == "identity":
        return judge.gradient
    matrix = {
        "diag": torch.diag(dense.diagonal()),
        "unit": oracles.keep(dense, oracles.unit_sizes(judge.model)),
        "layer": oracles.keep(dense, sizes),
        "full": dense,
        "kfac": oracles.kfac(judge.factors()),
    }[name]
    return oracles.natural_gradient(matrix, judge.gradient, damping)


@pytest.mark.parametrize("name", ["identity", "diag", "unit", "layer", "full", "kfac"])
def test_direction_against_dense_solutions(case: Case, judge: Truth, name: str) -> None:
    damping = 1e-2 * float(torch.linalg.eigvalsh(judge.fisher())[-1])
    probe = cb.probe(name) if name == "identity" else cb.probe(name, damping=damping)
    metrics = cb.direction_errors(probe, instance_of(case.name), damping=damping)
    expected = dense_direction(probe_step(judge, name, damping), judge.fisher(), judge.gradient, damping)
    assert {"cosine", "relative", "decrease"} <= metrics.keys()
    assert metrics["cosine"] == pytest.approx(expected["cosine"], abs=1e-9)
    assert metrics["relative"] == pytest.approx(expected["relative"], rel=1e-8, abs=1e-8)
    assert metrics["decrease"] == pytest.approx(expected["decrease"], rel=1e-8, abs=1e-8)


def test_full_is_the_best_direction(case: Case, judge: Truth) -> None:
    damping = 1e-3 * float(torch.linalg.eigvalsh(judge.fisher())[-1])
    metrics = cb.direction_errors(cb.probe("full", damping=damping), instance_of(case.name), damping=damping)
    assert metrics["cosine"] == pytest.approx(1, abs=1e-9)
    assert metrics["relative"] <= 1e-8
    assert metrics["decrease"] == pytest.approx(1, abs=1e-9)


def test_no_direction_decreases_more_than_the_best(case: Case) -> None:
    for name in ("diag", "unit", "layer", "kfac"):
        assert cb.direction_errors(cb.probe(name), instance_of(case.name), damping=1e-3)["decrease"] <= 1 + 1e-9


def test_default_damping_is_a_thousandth() -> None:
    instance = instance_of("mlp_tanh")
    probe = cb.probe("kfac", damping=1e-3)
    assert cb.direction_errors(probe, instance) == cb.direction_errors(probe, instance, damping=1e-3)


def test_control_kfac_is_not_the_natural_gradient() -> None:
    metrics = cb.direction_errors(cb.probe("kfac"), instance_of("mlp_tanh"))
    assert metrics["relative"] > 0.05
    assert metrics["cosine"] < 0.999


def test_cosines_with_the_gradient_in_the_network_and_in_every_layer(case: Case, judge: Truth) -> None:
    """One rate per layer leaves every layer's direction, not the network's."""
    instance, sizes = instance_of(case.name), oracles.layer_sizes(judge.model)
    rates = torch.cat([torch.full((size,), 2.0**k) for k, size in enumerate(sizes)]).double()
    measured = {
        row.scope: row.value
        for row in direction_rows(rates * judge.gradient, cb.exact_fisher(instance), judge.gradient, 1e-3)
        if row.metric == "direction.gradient"
    }
    step, gradient = rates * judge.gradient, judge.gradient
    assert list(measured) == ["network", *(layer.name for layer in instance.layers)]
    assert measured.pop("network") == pytest.approx(float(step @ gradient / (step.norm() * gradient.norm())), abs=1e-12)
    for value, part in zip(measured.values(), gradient.split(sizes), strict=True):
        assert value is None if float(part.norm()) == 0 else value == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("damping", [-1e-3, float("nan")])
def test_damping_that_is_no_damping_is_refused(damping: float) -> None:
    with pytest.raises(ValueError, match="damping"):
        cb.direction_errors(cb.probe("kfac"), instance_of("mlp_tanh"), damping=damping)


def test_one_step_on_a_quadratic_lands_on_its_minimum() -> None:
    """Linear outputs and a Gaussian: the full step with little damping is the Newton step."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2).double()
    x, y = torch.randn(12, 3).double(), torch.randn(12, 2).double()
    instance = cb.Instance(torch.nn.Sequential(model), x, y, loss="gaussian")
    step = cb.exact_fisher(instance).natural_gradient(instance.gradient(), 1e-7)
    design = torch.cat([x, torch.ones(12, 1).double()], dim=1)
    best = torch.linalg.lstsq(design, y).solution.T
    matrix = torch.cat([model.weight, model.bias.unsqueeze(1)], dim=1).detach()
    assert float((matrix - step.reshape(2, 4) - best).norm()) <= 1e-5 * float(best.norm())


def test_rows_of_a_streamed_fisher_take_no_pass_for_layer_names(monkeypatch: pytest.MonkeyPatch) -> None:
    instance, passes = instance_of("nasty_cnn"), 0
    fisher, gradient = cb.exact_fisher(instance, memory=0), instance.gradient()
    collect = stream.collect

    def counting(*args: Any, **options: Any) -> Any:
        nonlocal passes
        passes += 1
        return collect(*args, **options)

    def passes_of(act: Callable[[], object]) -> int:
        before = passes
        act()
        return passes - before

    monkeypatch.setattr(stream, "collect", counting)
    fisher.gram()
    numbers = passes_of(lambda: judge(gradient, fisher, gradient, 1e-3))
    assert passes_of(lambda: list(direction_rows(gradient, fisher, gradient, 1e-3))) == numbers
    assert passes_of(lambda: [layer.name for layer in fisher.layers]) == 0
    assert passes_of(lambda: [columns.layer.name for columns in fisher.columns]) == len(fisher.layers) == 5
