"""What the exact Fisher of ResNet-18 costs over a gradient, in CPU seconds of one thread; prints Markdown.

    python scripts/fisher_cost.py --samples 32
    python scripts/fisher_cost.py --samples 128 --turns 1 --floor

Random images: neither seconds nor FLOPs depend on them. A gradient and the passes and Gram matrices in each precision
take turns in one process, so that load on the machine slows all alike, and a ratio is a median over the turns.
``--floor`` counts the FLOPs too: seconds stand over those that the FLOPs take at the peak of a matrix product in the
dtype they run in, and beside it in the dtype of the stage's values, as ``time.floor`` and ``time.floor.values`` of
``suites/exact_cost`` do.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median

import torch

from curvbench import Instance, identity
from curvbench.meters.clock import ratios, take_turns
from curvbench.meters.exact import Stages, count, matmul_peak
from curvbench.spec import Precision
from step_cost import workload

CPU = torch.device("cpu")
STAGES = ("passes", "contraction")
PRECISIONS: Sequence[Precision] = ("mixed", "native")


def instance(samples: int) -> Instance:
    """ResNet-18 in evaluation mode and a batch."""
    work = workload("resnet-18", samples)
    return Instance(work.model.eval(), work.x, work.y, parameters="weights")


def timed(batch: Instance, turns: int, budget_s: float) -> tuple[list[str], dict[str, float]]:
    """A line per precision, and the CPU seconds by precision and stage."""
    batch.has_float64_values()  # tried once for an instance
    calls: dict[str, Callable[[], object]] = {"gradient": batch.gradient}
    for precision in PRECISIONS:
        stages = Stages(batch, precision)
        calls |= {f"{precision} passes": stages.passes, f"{precision} contraction": partial(contract, stages)}
    cpu = take_turns(calls, CPU, turns, budget_s).cpu
    totals = {p: [a + b for a, b in zip(*(cpu[f"{p} {stage}"] for stage in STAGES), strict=True)] for p in PRECISIONS}
    lines = []
    for precision in PRECISIONS:
        by_stage = [median(ratios(cpu[f"{precision} {stage}"], cpu["gradient"])) for stage in STAGES]
        total = [median(ratios(totals[precision], other)) for other in (cpu["gradient"], totals["native"])]
        lines.append(f"| {precision} | " + " | ".join(f"{value:.2f}" for value in (*by_stage, *total)) + " |")
    return lines, {name: median(samples) for name, samples in cpu.items()}


def contract(stages: Stages) -> None:
    """The Gram matrices, after which the columns are freed."""
    stages.contraction()
    del stages.fisher


def floors(batch: Instance, seconds: dict[str, float]) -> Iterator[str]:
    """A line per stage of mixed precision: seconds over both floors."""
    peaks = {dtype: matmul_peak(dtype, CPU) for dtype in (torch.float32, torch.float64)}
    rates = ", ".join(f"{str(dtype)[6:]} {rate / 1e9:.0f} GF/s" for dtype, rate in peaks.items())
    yield f"\nOver the floor at {rates}, mixed precision:\n"
    yield "| stage | x floor | x floor of the values | GFLOP by dtype |"
    yield "|---|--:|--:|---|"
    work, stages = count(batch), Stages(batch)
    totals = [0.0, 0.0, 0.0]
    for stage in STAGES:
        by_dtype = work.by_dtype[stage]
        own = sum(flops / peaks.get(dtype, peaks[torch.float64]) for dtype, flops in by_dtype.items())
        row = [seconds[f"mixed {stage}"], own, work.flops[stage] / peaks[stages.dtype(stage)]]
        totals = [total + value for total, value in zip(totals, row, strict=True)]
        counts = ", ".join(f"{str(dtype)[6:]} {flops / 1e9:.0f}" for dtype, flops in by_dtype.items())
        yield f"| {stage} | {row[0] / row[1]:.2f} | {row[0] / row[2]:.2f} | {counts} |"
    yield f"| total | {totals[0] / totals[1]:.2f} | {totals[0] / totals[2]:.2f} | |"


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--budget", type=float, default=600.0, help="seconds after which no turn starts")
    parser.add_argument("--floor", action="store_true", help="count the FLOPs too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    batch = instance(options.samples)
    print(f"ResNet-18, N = {options.samples}, torch {torch.__version__}, {identity.device_name('cpu')}, one thread\n")
    print("| precision | passes | Gram matrices | total, in gradients | total over native |")
    print("|---|--:|--:|--:|--:|")
    lines, seconds = timed(batch, options.turns, options.budget)
    print("\n".join(lines), flush=True)
    for line in floors(batch, seconds) if options.floor else ():
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
