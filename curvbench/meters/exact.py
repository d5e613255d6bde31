"""The cost of the exact Fisher, stage by stage, beside the floor: the seconds of its FLOPs at the machine's peak.

The stages are the network's passes, the Gram matrices and the spectrum (in float64). With mixed precision the forward
pass is in float64, and the backward passes and the products are in the instance's dtype, where the model's graph can be
(``curvbench.instance.shadow``). The floor takes every FLOP at the peak of the dtype it runs in; ``time.floor.values``
takes those of a stage at the peak of its values, which are those of float64 in the passes. FLOPs and bytes are counted
in runs of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch

from curvbench.fisher import ExactFisher, exact_fisher
from curvbench.instance import Instance
from curvbench.meters.clock import seconds, take_turns
from curvbench.meters.flops import FlopMeter
from curvbench.meters.memory import peak_memory, state_bytes
from curvbench.spec import Precision, Row

PEAK_ORDER = 2048  # 17 GFLOP per product: large enough for the peak
PEAK_TURNS = 5  # the fastest of them is the peak
HUTCHINSON_ERROR = 0.01  # relative standard error of the estimate that exactness is compared with


class Stages:
    """The exact Fisher of an instance, made in three stages that are called in this order."""

    names = ("passes", "contraction", "spectrum")

    def __init__(self, instance: Instance, precision: Precision = "mixed") -> None:
        self.instance, self.precision = instance, precision
        self.fisher: ExactFisher

    def passes(self) -> None:
        self.fisher = exact_fisher(self.instance, precision=self.precision)

    def contraction(self) -> None:
        self.fisher.gram()

    def spectrum(self) -> None:
        self.fisher.eigenvalues(1)

    def dtype(self, stage: str) -> torch.dtype:
        """The dtype of a stage's values."""
        exact = {"passes": self.precision != "native", "contraction": self.precision == "float64", "spectrum": True}
        return torch.float64 if exact[stage] else self.instance.dtype


class Work(NamedTuple):
    """FLOPs and live bytes above the model, by stage and in ``total``; ``by_dtype`` has the FLOPs of each stage."""

    flops: dict[str, float]
    by_dtype: dict[str, dict[torch.dtype, int]]
    bytes: dict[str, int]
    method: str


def exact_rows(instance: Instance, precision: Precision = "mixed") -> Iterator[Row]:
    """Per stage seconds, FLOPs and bytes; the machine's peak; the FLOPs of an estimate over those of the exact norm."""
    device, timed = instance.device, Stages(instance, precision)
    peaks = {dtype: matmul_peak(dtype, device) for dtype in {torch.float64, instance.dtype}}
    wall = {stage: seconds(getattr(timed, stage), device) for stage in Stages.names}
    draws = hutchinson_draws(timed.fisher)
    del timed.fisher
    work = count(instance, precision)
    of_values = {stage: work.flops[stage] / peaks[timed.dtype(stage)] for stage in Stages.names}
    floors = {stage: _seconds_at(peaks, work.by_dtype[stage]) for stage in Stages.names}
    for table in (wall, of_values, floors):
        table["total"] = sum(table.values())
    for dtype, rate in peaks.items():
        yield Row(
            "machine.peak", rate, str(dtype).removeprefix("torch."), method=f"matrix product of order {PEAK_ORDER}"
        )
    for stage in (*Stages.names, "total"):
        yield Row("time.wall", wall[stage], stage, (wall[stage],), f"{precision} precision")
        yield Row("time.floor", wall[stage] / floors[stage], stage, method=f"{precision} precision")
        yield Row("time.floor.values", wall[stage] / of_values[stage], stage, method=f"{precision} precision")
        yield Row("flops.counted", work.flops[stage], stage)
        yield Row("memory.peak", float(work.bytes[stage]), stage, method=work.method)
    estimate = draws * product_flops(instance)
    yield Row("flops.hutchinson", estimate / work.flops["total"], "total", method=f"{draws:.0f} draws for 1 %")


def _seconds_at(peaks: Mapping[torch.dtype, float], flops: Mapping[torch.dtype, int]) -> float:
    """The seconds of FLOPs by dtype at these peaks; a dtype without a peak of its own has that of float64."""
    return sum(count / peaks.get(dtype, peaks[torch.float64]) for dtype, count in flops.items())


def matmul_peak(dtype: torch.dtype, device: torch.device, order: int = PEAK_ORDER) -> float:
    """FLOP per second of a square matrix product in its fastest turn."""
    a, b = torch.randn(2, order, order, dtype=dtype, device=device)
    samples = take_turns({"product": lambda: a @ b}, device, PEAK_TURNS, budget_s=60.0).wall
    return 2 * order**3 / min(samples["product"])


def count(instance: Instance, precision: Precision = "mixed") -> Work:
    """FLOPs and live bytes of every stage."""
    stages, by_dtype, peaks = Stages(instance, precision), {}, {}
    highest, method = 0, ""
    for stage in Stages.names:
        before = state_bytes(stages.__dict__.get("fisher"), exclude=instance)
        with FlopMeter() as meter:
            peaks[stage], method = peak_memory(getattr(stages, stage), instance.device)
        highest = max(highest, before + peaks[stage])
        by_dtype[stage] = meter.by_dtype
    flops = {stage: float(sum(counts.values())) for stage, counts in by_dtype.items()}
    return Work({**flops, "total": sum(flops.values())}, by_dtype, {**peaks, "total": highest}, method)


def hutchinson_draws(fisher: ExactFisher, error: float = HUTCHINSON_ERROR) -> float:
    """Gaussian vectors z after which the mean of |F z|^2 gives |F| with a relative standard error of ``error``.

    Var |F z|^2 = 2 tr F^4, and the error of |F| is half that of its square: 1 / (2 error^2 r) draws with the effective
    rank r = (tr F^2)^2 / tr F^4.
    """
    values = fisher.eigenvalues(len(fisher.gram()))
    values = values / values[0]
    return float(values.pow(4).sum() / values.square().sum() ** 2) / (2 * error**2)


def product_flops(instance: Instance) -> float:
    """FLOPs of one product of the Fisher and a vector, by derivatives of the network."""
    with FlopMeter() as meter:
        instance.fisher_product(torch.ones(instance.size, dtype=instance.dtype, device=instance.device))
    return float(meter.total)
