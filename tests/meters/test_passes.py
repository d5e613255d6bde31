"""Network passes apart from a method's own arithmetic; meters that are not asked for make no rows."""

from __future__ import annotations

import pytest
import torch
from judging import OF_THE_EXACT_FISHER
from torch import Tensor, nn

import curvbench as cb
from curvbench.instance.passes import in_network_pass, network_pass
from curvbench.meters.cost import Stepper, cost_rows, flop_rows
from curvbench.meters.flops import FlopMeter
from curvbench.spec import METERS, METRICS, PHASES, Meter, Probe

WIDTH, SAMPLES, CLASSES = 6, 5, 3


class Detour(nn.Module):
    """Changes no value and no slope, at the price of ``rounds`` products."""

    def __init__(self, rounds: int) -> None:
        super().__init__()
        self.rounds = rounds
        self.register_buffer("matrix", torch.eye(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for _ in range(self.rounds):
            y = y @ self.matrix
        return y


def instance(rounds: int = 0) -> cb.Instance:
    torch.manual_seed(0)
    parts = [nn.Linear(WIDTH, WIDTH), nn.Tanh(), Detour(rounds), nn.Linear(WIDTH, CLASSES)]
    inputs, targets = torch.randn(SAMPLES, WIDTH).double(), torch.arange(SAMPLES) % CLASSES
    return cb.Instance(nn.Sequential(*parts).double(), inputs, targets)


def flops(probe: Probe, of: cb.Instance, metric: str) -> dict[str, float]:
    return {row.scope: row.value or 0.0 for row in flop_rows(Stepper(probe, of)) if row.metric == metric}


@pytest.mark.parametrize("probe", cb.every_probe(), ids=lambda probe: probe.label)
def test_a_dearer_network_changes_passes_alone(probe: Probe) -> None:
    """Every pass is marked, and nothing else: the detour costs what it costs, and the method what it did."""
    plain, dear = instance(), instance(rounds=40)
    own = []
    for of in (plain, dear):
        counted, passes = flops(probe, of, "flops.counted"), flops(probe, of, "flops.passes")
        own.append({phase: counted[phase] - passes[phase] for phase in PHASES})
        assert passes["invert"] == passes["precondition"] == 0
    assert own[0] == own[1]
    assert flops(probe, dear, "flops.passes")["step"] > flops(probe, plain, "flops.passes")["step"]


def test_passes_of_known_cost() -> None:
    """K-FAC without labels takes one forward pass; a gradient is nothing but passes."""
    of = instance()
    forward = 2 * SAMPLES * (WIDTH * WIDTH + WIDTH * CLASSES)
    functions = SAMPLES * WIDTH  # the tanh
    passes = flops(cb.probe("kfac", fisher_type="forward-only"), of, "flops.passes")
    assert passes["statistics"] == forward + functions
    assert (passes["invert"], passes["precondition"]) == (0, 0)
    fresh = instance()
    with FlopMeter() as first:
        fresh.gradient()
    assert first.passes == first.total > 2 * forward
    with FlopMeter() as again:
        fresh.gradient()
    assert again.total == 0  # the batch holds it


def test_own_arithmetic_of_known_cost() -> None:
    """Momentum: one product and one sum per parameter, whatever the gradient costs."""
    of = instance()
    counted = flops(cb.probe("sgdm"), of, "flops.counted")
    passes = flops(cb.probe("sgdm"), of, "flops.passes")
    assert counted["statistics"] - passes["statistics"] == 2 * of.size


def test_passes_nest_and_end_with_an_error() -> None:
    with pytest.raises(RuntimeError), network_pass():
        with network_pass():
            pass
        assert in_network_pass()
        raise RuntimeError
    assert not in_network_pass()


@pytest.mark.parametrize("meter", METERS)
def test_a_meter_alone_makes_its_own_rows(meter: Meter) -> None:
    families = {"clock": "time", "flops": "flops", "memory": "memory"}
    measured = {row.metric for row in cost_rows(Stepper(cb.probe("diag"), instance()), [meter])}
    expected = {name for name in METRICS if name.split(".")[0] == families.get(meter)}
    assert measured == expected - OF_THE_EXACT_FISHER
