"""What a step costs: one gradient of the loss, and each phase's own arithmetic."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from cases import CASES, instance_of
from torch import Tensor

import curvbench as cb
from curvbench.meters.cost import Stepper, clock_rows, cost_rows, flop_rows, peak_rows, state_rows
from curvbench.meters.memory import peak_memory
from curvbench.operators import Diagonal
from curvbench.spec import Probe

NAME = "nasty_cnn"


def found(rows: Any, metric: str) -> dict[str, float]:
    return {row.scope: row.value for row in rows if row.metric == metric}


def flops(probe: Probe, metric: str = "flops.counted") -> dict[str, float]:
    return found(flop_rows(Stepper(probe, instance_of(NAME))), metric)


@dataclass(frozen=True)
class Squares(Probe):
    """Asks its batch for the gradient twice, and squares it once."""

    def update(self, state: None, batch: cb.Instance) -> Diagonal:
        assert batch.gradient() is batch.gradient()
        return Diagonal(batch.gradient().square())

    def precondition(self, state: Diagonal, gradient: Tensor) -> Tensor:
        return gradient

    def operator(self, state: Diagonal) -> Diagonal:
        return state


class Once(type(cb.probe("lngd"))):  # type: ignore[misc]
    """LNGD that forgets its state."""

    def update(self, state: Any, batch: cb.Instance) -> Any:
        return super().update(None, batch)


ARITHMETIC = {"sgdm": 2, "adam": 7, "adamw": 7}


@pytest.mark.parametrize("name", ARITHMETIC)
def test_the_gradient_of_a_step_is_not_computed_again(name: str) -> None:
    """Statistics are a few operations per parameter: m, b1 m + (1 - b1) g, b2 v + (1 - b2) g g."""
    assert flops(cb.probe(name))["statistics"] == ARITHMETIC[name] * instance_of(NAME).size


def test_neither_is_it_for_a_probe_from_outside() -> None:
    assert flops(Squares())["statistics"] == instance_of(NAME).size


def test_shampoo_pays_its_products_and_no_gradient_of_the_loss() -> None:
    counted = flops(cb.probe("shampoo"))
    products = sum(2 * G * M * D * (M + D) for G, M, D in (la.shape for la in instance_of(NAME).layers))
    assert products <= counted["statistics"] <= 1.5 * products
    assert flops(cb.probe("shampoo", statistic="bg"))["statistics"] > counted["statistics"] + gradient_flops() / 2


def gradient_flops() -> float:
    counted = flops(cb.probe("identity"))
    return counted["step"] - sum(counted[phase] for phase in ("statistics", "invert", "precondition"))


@pytest.mark.parametrize("name", ["ginger", "qng"])
def test_sampled_labels_take_a_pass_of_their_own(name: str) -> None:
    """The control: another loss has another gradient."""
    assert flops(cb.probe(name))["statistics"] > 0.8 * gradient_flops()


@pytest.mark.parametrize("name", ["kfac", "eva", "diag"])
def test_so_do_statistics_of_layers(name: str) -> None:
    assert flops(cb.probe(name))["statistics"] > 0.5 * gradient_flops()


def test_a_step_has_one_gradient_and_its_phases() -> None:
    counted, ratio = flops(cb.probe("sgdm")), flops(cb.probe("sgdm"), "flops.ratio")
    assert ratio["step"] == pytest.approx(counted["step"] / gradient_flops())
    assert 1 < ratio["step"] < 1.1


def test_a_step_is_one_of_training_not_the_first() -> None:
    """Shared coefficients need no Gram matrix any more; a running average has something to average with."""
    first, later = (flops(cb.probe("fngd", stage=stage)) for stage in ("first", "shared"))
    assert later["statistics"] + later["invert"] < 0.9 * (first["statistics"] + first["invert"])
    state = cb.probe("lngd").fit(instance_of(NAME))
    averaged = 3 * sum(factor.numel() for factor in (*state.phis, *state.psis))
    assert flops(cb.probe("lngd"))["statistics"] == flops(Once())["statistics"] + averaged


def test_memory_of_momentum_is_the_state_and_one_product() -> None:
    instance = instance_of(NAME)
    peaks = found(peak_rows(Stepper(cb.probe("sgdm"), instance)), "memory.peak")
    assert peaks["statistics"] == 2 * instance.size * 8


def test_the_clock_sees_no_second_gradient() -> None:
    """Of eight convolution passes and three products of vectors the latter are the faster."""
    torch.manual_seed(0)
    model, _, _ = CASES[NAME].build()
    instance = cb.Instance(model, torch.randn(256, 2, 9, 9).double(), torch.randint(3, (256,)))
    ratios = found(clock_rows(Stepper(cb.probe("sgdm"), instance)), "time.ratio")
    assert ratios["statistics"] < 0.5


# --- how often a phase runs --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slow(Probe):
    """Says what was asked of it, and takes the clock's whole budget."""

    calls: ClassVar[list[str]] = []

    def update(self, state: Any, batch: cb.Instance) -> Diagonal:
        self.calls.append("update")
        return Diagonal(batch.gradient().square())

    def refresh(self, state: Diagonal) -> Diagonal:
        self.calls.append("refresh")
        return state

    def precondition(self, state: Diagonal, gradient: Tensor) -> Tensor:
        self.calls.append("precondition")
        return gradient

    def operator(self, state: Diagonal) -> Diagonal:
        return state


def test_a_slow_phase_runs_once_for_the_clock_and_once_for_the_other_meters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curvbench.meters.cost.BUDGET_SECONDS", 0.0)
    Slow.calls.clear()
    stepper = Stepper(Slow(), instance_of(NAME))
    assert Slow.calls == ["update"]  # the fit
    rows = list(cost_rows(stepper))
    assert Slow.calls[1:] == 2 * ["update", "refresh", "precondition"]
    times = [row for row in rows if row.metric.startswith("time.")]
    assert times and all((row.method, len(row.samples)) == ("one sample", 1) for row in times)


def test_a_time_of_several_turns_does_not_say_that_it_is_one_sample() -> None:
    rows = list(clock_rows(Stepper(Squares(), fresh())))
    assert all(len(row.samples) > 1 and not row.method for row in rows)


@pytest.mark.parametrize("probe", [cb.probe("kfac"), cb.probe("lngd"), cb.probe("shampoo")], ids=lambda p: p.name)
def test_what_is_counted_and_weighed_at_once_is_what_each_meter_finds_alone(probe: Probe) -> None:
    together = list(cost_rows(Stepper(probe, instance_of(NAME)), ["flops", "memory"]))
    counted = [row for row in together if row.metric.startswith("flops.")]
    assert counted == list(flop_rows(Stepper(probe, instance_of(NAME))))
    peaks = found(together, "memory.peak")
    alone = Stepper(probe, instance_of(NAME))
    for phase, run in alone.phases().items():
        run()  # what is kept from one run to the next is there already, as it is in a step after the fit
        assert peaks[phase] == peak_memory(run, "cpu")[0]
    assert peaks["step"] == peak_memory(lambda: alone.step(nullcontext), "cpu")[0]
    assert peaks["step"] >= max(peaks.values())


def test_states_are_weighed_without_a_clock() -> None:
    kept = found(state_rows(Stepper(Squares(), instance_of(NAME))), "memory.state")
    assert set(kept.values()) == {8.0 * instance_of(NAME).size}


# --- what the batch keeps ----------------------------------------------------------------------------------


def fresh() -> cb.Instance:
    case = CASES["mlp_tanh"]
    return cb.Instance(*case.build(), loss=case.loss)


def test_a_gradient_that_was_written_to_is_computed_anew() -> None:
    instance, expected = fresh(), instance_of("mlp_tanh").gradient()
    instance.gradient().mul_(7.0)
    assert torch.equal(instance.gradient(), expected)


@pytest.mark.parametrize("part", ["inputs", "targets"])
def test_data_that_were_written_to_have_no_gradient_until_there_is_a_new_instance(part: str) -> None:
    instance = fresh()
    before = instance.gradient().clone()
    getattr(instance, part).copy_(getattr(instance, part).flip(0))
    with pytest.raises(ValueError, match="changed after this Instance was made"):
        instance.gradient()
    other = cb.Instance(instance.model, instance.inputs, instance.targets)
    assert not torch.equal(other.gradient(), before)


def test_another_dtype_has_a_gradient_of_its_own() -> None:
    instance = fresh()
    instance.gradient()
    assert instance.to(torch.float32).gradient().dtype == torch.float32
    assert instance.gradient().dtype == torch.float64
