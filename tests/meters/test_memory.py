"""Bytes against sums made by hand; a float32 number is 4 bytes."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvbench.meters.memory import MemoryMeter, memory_meter, peak_memory, state_bytes


def _nothing() -> None:
    pass


def _one() -> None:
    torch.zeros(100)


def _in_turn() -> None:
    for _ in range(5):
        torch.zeros(100)


def _together() -> None:
    kept = [torch.zeros(100) for _ in range(5)]
    del kept


def _freed_before_the_largest() -> None:
    first = torch.zeros(100)
    second = first + 1
    del first, second
    torch.zeros(50)


def _views() -> None:
    whole = torch.zeros(10, 10)
    parts = [whole.T, whole[2:4], whole.reshape(-1), whole.detach()]
    del whole
    torch.zeros(50)
    del parts


def _in_place() -> None:
    torch.zeros(100).add_(1).relu_()


def _from_python() -> None:
    torch.tensor([1.0, 2.0, 3.0])


def _resized() -> None:
    small = torch.zeros(10)
    small.resize_(100)
    torch.zeros(10)


def _out() -> None:
    torch.add(torch.zeros(100), 1, out=torch.empty(0))


def _several_results() -> None:
    torch.linalg.eigh(torch.eye(10))


@pytest.mark.parametrize(
    ("function", "numbers"),
    [
        (_nothing, 0),
        (_one, 100),
        (_in_turn, 100),
        (_together, 500),
        (_freed_before_the_largest, 200),
        (_views, 150),
        (_in_place, 100),
        (_from_python, 3),
        (_resized, 110),
        (_out, 200),
        (_several_results, 210),
    ],
)
def test_peak(function: Callable[[], object], numbers: int) -> None:
    assert peak_memory(function, "cpu") == (4 * numbers, "live tensor bytes")


def test_what_was_there_before_is_not_counted() -> None:
    before = torch.zeros(1000)
    with MemoryMeter() as meter:
        before.add_(1)
        before.view(10, 100).T.detach()
        before[:10].clone()
    assert meter.peak == 40
    with MemoryMeter() as meter:
        before.double()
    assert meter.peak == 8000


def test_blocks_may_be_nested() -> None:
    """The inner one sees its own births, the outer one all; the collector begins again after the outermost."""
    before = gc.isenabled()
    with MemoryMeter() as outer:
        first = torch.zeros(100)
        with MemoryMeter() as inner:
            second = first + 1
            del first
            torch.zeros(50)
        assert not gc.isenabled()
        del second
        torch.zeros(10)
    assert (outer.peak, inner.peak) == (800, 600)
    assert gc.isenabled() == before


def test_blocks_of_a_device_may_be_nested(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an allocator of numbers: the device has one peak, each block its own, above what was there when it began."""
    now, highest = 5, 5

    def allocate(count: int) -> None:
        nonlocal now, highest
        now += count
        highest = max(highest, now)

    def reset(device: object) -> None:
        nonlocal highest
        highest = now

    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: now)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: highest)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    with memory_meter("cuda") as outer:
        allocate(50)
        allocate(-40)
        with memory_meter("cuda") as first:
            allocate(20)
            allocate(-20)
        with memory_meter("cuda") as second:
            allocate(-8)
            allocate(3)
    assert (outer.peak, first.peak, second.peak) == (50, 20, 0)
    with memory_meter("cuda") as alone:
        allocate(7)
    assert (alone.peak, outer.peak) == (7, 50)


def test_what_autograd_saves_stays_until_backward() -> None:
    inputs, weight = torch.ones(10, 10), torch.ones(10, 10, requires_grad=True)
    with MemoryMeter() as meter:
        output = (inputs @ weight).tanh().exp().sum()
        meter.peak = 0
        torch.zeros(100)
        assert meter.peak == 3 * 400 + 4  # the results of tanh and exp, which are saved; the sum; the zeros
        output.backward()
        weight.grad = None
        meter.peak = 0
        torch.zeros(100)
        assert meter.peak == 400 + 4


def test_the_same_on_every_run_with_garbage_around() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    inputs = torch.ones(8, 1, 8, 8)

    def step() -> None:
        model.zero_grad()
        model(inputs).square().mean().backward()

    step()
    peaks = set()
    for size in range(1, 5):
        cycle: list[Any] = [torch.zeros(1000 * size)]
        cycle.append(cycle)
        del cycle
        peaks.add(peak_memory(step, "cpu")[0])
    assert len(peaks) == 1
    assert peaks.pop() >= 4 * (2 * 8 * 4 * 36)  # the convolution's and the normalisation's results


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_collection_is_left_as_it_was(enabled: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with pytest.raises(KeyError), MemoryMeter():
            assert not gc.isenabled()
            raise KeyError
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()


def test_unknown_device() -> None:
    with pytest.raises(ValueError, match="cpu or cuda, got meta"):
        peak_memory(_nothing, "meta")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_peak_on_cuda() -> None:
    kept = torch.zeros(1024, device="cuda")
    peak, method = peak_memory(lambda: torch.zeros(1 << 20, device="cuda"), "cuda")
    assert (peak, method) == (4 << 20, "cuda max_memory_allocated")
    del kept


@dataclass
class State:
    factors: dict[str, Tensor]
    history: list[Any] = field(default_factory=list)


@dataclass(slots=True)
class Slotted:
    factor: Tensor


class Plain:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.again = self


def _hundred() -> Tensor:
    return torch.zeros(100)


def test_state_bytes_of_any_nesting() -> None:
    shared = _hundred()
    state = State({"a": shared, "b": shared.view(10, 10).T}, [(_hundred(), Plain(_hundred())), {"c": Slotted(shared)}])
    assert state_bytes(state) == 1200
    assert state_bytes(None) == state_bytes(3.0) == state_bytes("text") == state_bytes(torch.zeros) == 0
    assert state_bytes({1: {2: [_hundred().double()]}}) == 800


def test_a_view_counts_what_it_keeps_alive() -> None:
    assert state_bytes(_hundred()[:10]) == 400
    assert state_bytes(_hundred()[:10].clone()) == 40


def test_excluded_storages_are_not_counted() -> None:
    model = nn.Linear(10, 10)
    state = State({"own": _hundred(), "weight": model.weight.detach()}, [model])
    assert state_bytes(state) == 400 + 4 * 110
    assert state_bytes(state, exclude=model) == 400
