"""Branches that only a GPU takes, with a stand-in for torch's CUDA: what is asked of it, in which order and units."""

from __future__ import annotations

import contextlib
from typing import Any, ClassVar

import pytest
import torch

from curvbench.cli import doctor
from curvbench.fisher.budget import available_bytes
from curvbench.instance.contents import RandomStates
from curvbench.meters import clock

DEVICE = torch.device("cuda", 1)


class Event:
    """An event of a device whose clock stands still until work is done."""

    log: ClassVar[list[str]] = []
    milliseconds = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.at = -1.0

    def record(self) -> None:
        Event.log.append("record")
        self.at = Event.milliseconds

    def synchronize(self) -> None:
        Event.log.append("wait")

    def elapsed_time(self, end: Event) -> float:
        return end.at - self.at


def test_seconds_are_those_between_two_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Event, "log", [])
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *device: Event.log.append("idle"))
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext(Event.log.append(str(device))))

    def work() -> None:
        Event.log.append("work")
        Event.milliseconds += 250.0

    assert clock.seconds(work, DEVICE) == 0.25
    assert Event.log == ["cuda:1", "idle", "record", "work", "record", "wait"]


def test_a_stopwatch_waits_for_the_device_before_it_reads_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[Any] = []
    monkeypatch.setattr(torch.cuda, "synchronize", log.append)
    watch = clock.Stopwatch(DEVICE)
    with watch.running():
        log.append("work")
    assert log == [DEVICE, "work", DEVICE] and watch.seconds > 0


def test_what_the_allocator_has_cached_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {"mem_get_info": (1000, 8000), "memory_reserved": 500, "memory_allocated": 200}
    for name, number in numbers.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, number=number: number)
    assert available_bytes(DEVICE) == 1300


def test_draws_on_the_device_are_seen_and_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    states = {DEVICE: torch.zeros(4, dtype=torch.uint8)}
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: states[device].clone())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: states.update({device: state}))
    before = RandomStates.now(DEVICE)
    assert not before.drawn_from(RandomStates.now(DEVICE))
    states[DEVICE] = torch.ones(4, dtype=torch.uint8)
    assert before.drawn_from(RandomStates.now(DEVICE))
    before.restore(DEVICE)
    assert not states[DEVICE].any()


def test_doctor_names_every_gpu_with_its_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda k: f"card {k}")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda k: ((k + 1) * 10**9, 0))
    assert doctor._cuda().text == "cuda:0 card 0 (1.0 GB free), cuda:1 card 1 (2.0 GB free)"
