"""Seconds of functions that take turns, so that load on the machine slows all of them alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack


class Turns(NamedTuple):
    """Samples by function: seconds of the clock, and CPU seconds of the process with all its threads.

    CPU seconds do not count while another process has the core. For work on CUDA they count launching and waiting.
    """

    wall: dict[str, list[float]]
    cpu: dict[str, list[float]]


def take_turns(
    functions: Mapping[str, Callable[[], object]], device: torch.device | str, turns: int, budget_s: float
) -> Turns:
    """Seconds by function, one raw sample per turn, without loops around short ones.

    In every turn each function runs once, in the given order. The first turn is a warm-up and does not count. No turn
    starts after ``budget_s`` seconds; if the first turn takes all of them, it is the only sample, because a warm-up
    does not matter for functions this slow. The garbage collector is off meanwhile.

    Raises:
        ValueError: ``turns`` is below 1.
        RuntimeError: a dispatch mode is active.
    """
    if turns < 1:
        raise ValueError(f"turns must be at least 1, got {turns}; ask for one or more")
    _refuse_modes()
    device = torch.device(device)
    end = time.perf_counter() + budget_s
    samples = Turns({name: [] for name in functions}, {name: [] for name in functions})
    with _without_collector():
        for _ in range(1 + turns):
            for name, function in functions.items():
                before = time.process_time()
                samples.wall[name].append(seconds(function, device))
                samples.cpu[name].append(time.process_time() - before)
            if time.perf_counter() >= end:
                break
    return Turns(*({name: each[1:] or each for name, each in by_name.items()} for by_name in samples))


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of one call; on CUDA the device's seconds between two events.

    Raises:
        RuntimeError: a dispatch mode is active, which would be timed with the function.
    """
    _refuse_modes()
    if device.type == "cuda":
        return _cuda_seconds(function, device)
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@dataclass
class Stopwatch:
    """The sum of the seconds of ``running`` blocks; on CUDA a block ends when the device has finished its work."""

    device: torch.device
    seconds: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """The seconds of the block count, even if the block raises."""
        start = self._now()
        try:
            yield
        finally:
            self.seconds += self._now() - start

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def ratios(samples: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """Turn by turn the quotient of a sample and the baseline's sample.

    Raises:
        ValueError: the two have different numbers of turns.
    """
    if len(samples) != len(baseline):
        raise ValueError(f"ratios need samples of the same turns, got {len(samples)} and {len(baseline)}; time both")
    return [sample / base for sample, base in zip(samples, baseline, strict=True)]


def _refuse_modes() -> None:
    if modes := _get_current_dispatch_mode_stack():
        listeners = chain.from_iterable(getattr(mode, "listeners", [mode]) for mode in modes)
        names = ", ".join(type(listener).__name__ for listener in listeners)
        raise RuntimeError(f"nothing is timed under a counting mode, got {names}; leave its block first")


def _cuda_seconds(function: Callable[[], object], device: torch.device) -> float:
    with torch.cuda.device(device):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        function()
        end.record()
        end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


@contextmanager
def _without_collector() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
