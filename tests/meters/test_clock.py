"""Order, turns, budget and refusals; no assertion depends on how fast this machine is."""

from __future__ import annotations

import gc
import time
from threading import Thread

import pytest
import torch

from curvbench.meters.clock import Stopwatch, ratios, take_turns
from curvbench.meters.flops import FlopMeter
from curvbench.meters.memory import MemoryMeter


def test_every_function_in_every_turn_after_one_warm_up() -> None:
    calls: list[str] = []
    samples = take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, "cpu", 3, 60.0).wall
    assert calls == ["a", "b"] * 4
    assert {name: len(values) for name, values in samples.items()} == {"a": 3, "b": 3}
    assert all(value > 0 for values in samples.values() for value in values)


def test_samples_are_seconds() -> None:
    functions = {"sleep": lambda: time.sleep(0.02), "nothing": lambda: None}
    samples = take_turns(functions, torch.device("cpu"), 2, 60.0).wall
    assert all(value >= 0.02 for value in samples["sleep"])
    assert min(samples["nothing"]) < min(samples["sleep"])


def test_cpu_time_is_that_of_work_in_any_thread_and_not_of_waiting() -> None:
    def work() -> None:
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass

    def elsewhere() -> None:
        thread = Thread(target=work)
        thread.start()
        thread.join()

    wall, cpu = take_turns({"wait": lambda: time.sleep(0.2), "work": work, "elsewhere": elsewhere}, "cpu", 2, 60.0)
    assert all(value >= 0.2 for value in wall["wait"])
    assert all(value < 0.05 for value in cpu["wait"])
    assert all(value >= 0.05 for name in ("work", "elsewhere") for value in cpu[name])
    assert {name: len(values) for name, values in cpu.items()} == {"wait": 2, "work": 2, "elsewhere": 2}


def test_a_spent_budget_leaves_one_turn() -> None:
    samples = take_turns({"a": lambda: None, "b": lambda: None}, "cpu", 1000, 0.0).wall
    assert [len(values) for values in samples.values()] == [1, 1]


def test_budget_ends_between_turns() -> None:
    samples = take_turns({"a": lambda: time.sleep(0.05), "b": lambda: None}, "cpu", 1000, 0.2).wall
    assert len(samples["a"]) == len(samples["b"]) < 5


@pytest.mark.parametrize("meter", [FlopMeter, MemoryMeter])
def test_nothing_is_timed_under_a_counting_mode(meter: type[FlopMeter | MemoryMeter]) -> None:
    calls: list[int] = []
    with meter(), pytest.raises(RuntimeError, match=meter.__name__):
        take_turns({"a": lambda: calls.append(1)}, "cpu", 1, 1.0)
    assert calls == []
    assert take_turns({"a": lambda: calls.append(1)}, "cpu", 1, 1.0)


def test_no_turn() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        take_turns({"a": lambda: None}, "cpu", 0, 1.0)


def test_the_collector_rests_and_is_left_as_it_was() -> None:
    seen: list[bool] = []

    def fail() -> None:
        seen.append(gc.isenabled())
        raise KeyError

    before = gc.isenabled()
    gc.enable()
    try:
        with pytest.raises(KeyError):
            take_turns({"a": fail}, "cpu", 1, 1.0)
        assert (seen, gc.isenabled()) == ([False], True)
    finally:
        (gc.enable if before else gc.disable)()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_seconds_of_the_device() -> None:
    x = torch.ones(2048, 2048, device="cuda")
    samples = take_turns({"one": lambda: x @ x, "many": lambda: [x @ x for _ in range(50)]}, "cuda", 5, 60.0).wall
    assert 5 < min(ratios(samples["many"], samples["one"]))


def test_ratios() -> None:
    assert ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
    with pytest.raises(ValueError, match="got 1 and 2"):
        ratios([1.0], [1.0, 2.0])


def test_a_stopwatch_adds_up_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([1.0, 3.0, 10.0, 10.5])
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    watch = Stopwatch(torch.device("cpu"))
    with watch.running():
        pass
    with pytest.raises(KeyError), watch.running():
        raise KeyError
    assert watch.seconds == 2.5
