"""Seconds of functions that take turns, so that load on the machine hits all alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack


class Turns(NamedTuple):
    """Samples by function: seconds of the clock, and CPU seconds of the process with all its threads.

    CPU time does not run while other processes have the core. Of work on CUDA it is what launching and waiting take.
    """

    wall: dict[str, list[float]]
    cpu: dict[str, list[float]]


def take_turns(
    functions: Mapping[str, Callable[[], object]], device: torch.device | str, turns: int, budget_s: float
) -> Turns:
    """Seconds by function, one raw sample per turn, without loops around short ones.

    In every turn each function runs once, in the given order, after a turn to warm up that does not count. No turn
    starts after ``budget_s`` seconds; where the first has taken them all it is the only sample, for functions so slow
    are not slower for being cold. The garbage collector rests meanwhile.

    Raises:
        ValueError: No turn is asked for.
        RuntimeError: As ``seconds`` does.
    """
    if turns < 1:
        raise ValueError(f"turns must be at least 1, got {turns}; ask for one or more")
    _refuse_modes()
    device = torch.device(device)
    end = time.perf_counter() + budget_s
    taken = Turns({name: [] for name in functions}, {name: [] for name in functions})
    with _without_collector():
        for _ in range(1 + turns):
            for name, function in functions.items():
                before = time.process_time()
                taken.wall[name].append(seconds(function, device))
                taken.cpu[name].append(time.process_time() - before)
            if time.perf_counter() >= end:
                break
    return Turns(*({name: found[1:] or found for name, found in samples.items()} for samples in taken))


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of one call; on CUDA the device's, between two events.

    Raises:
        RuntimeError: A dispatch mode is active, which would be timed along with the function.
    """
    _refuse_modes()
    if device.type == "cuda":
        return _cuda_seconds(function, device)
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@dataclass
class Stopwatch:
    """Seconds inside its ``running`` blocks, added up; on CUDA until the device has finished what they began."""

    device: torch.device
    seconds: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """What is inside counts, however it ends."""
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
    """Quotients turn by turn: a sample over the baseline's of the same turn.

    Raises:
        ValueError: The two do not have the same number of turns.
    """
    if len(samples) != len(baseline):
        raise ValueError(f"ratios need samples of the same turns, got {len(samples)} and {len(baseline)}; time both")
    return [sample / base for sample, base in zip(samples, baseline, strict=True)]


def _refuse_modes() -> None:
    if modes := _get_current_dispatch_mode_stack():
        names = ", ".join(type(mode).__name__ for mode in modes)
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
