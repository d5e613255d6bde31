"""What real optimizer steps cost over SGD's, in counted FLOPs or in CPU seconds; prints Markdown.

    python scripts/step_cost.py --network resnet-32 --batch 128
    python scripts/step_cost.py --network resnet-32 --batch 128 --seconds

A network in training mode on random data: neither depends on it. ``due`` is a step with statistics and factorization,
``other`` one without; every T-th step is due in the columns named by a T. ``statistics``, ``invert`` and
``precondition`` are a probe's phases where nothing is shared with the training pass. Methods cover the weights only, as
their papers count.

``--seconds``: CPU seconds of one thread. SGD's step, all methods' steps and statistics take turns in one process, so
that load on the machine slows all of them alike, and every number is a ratio of medians over the turns. ``10/100`` is
a mean step with statistics every 10 and factorizations every 100 steps.
"""

from __future__ import annotations

import argparse
import copy
import gc
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvbench import Instance, probe, problem
from curvbench.meters.cost import Stepper, flop_rows
from curvbench.meters.flops import FlopMeter
from curvbench.optim import NaturalGradient
from curvbench.spec import Probe

SCHEDULES = (1, 10, 100)
CYCLE = (
    "both",
    "none",
    "statistics",
    "none",
)  # what is due in four steps, statistics every 2 and factorizations every 4
NETWORKS = {
    "resnet-32": problem("resnet", depth=32, dataset="cifar10"),
    "resnet-18": problem("resnet", depth=18, dataset="cifar10"),
    "vgg-11": problem("vgg", depth=11, dataset="cifar10"),
    "transformer": problem("transformer", task="multi30k", width=128, hidden=512, heads=4, depth=2, length=32),
}
CLASSES, LENGTH = 10, 32  # of the images, and of the sentences; a sentence's words are drawn from the first classes
METHODS: dict[str, Probe] = {
    "fngd, first epoch": probe("fngd"),
    "fngd, later": probe("fngd", stage="shared"),
    "kfac, mc": probe("kfac", fisher_type="mc", damping_rule="pi"),
    "kfac, empirical": probe("kfac", fisher_type="empirical", damping_rule="pi"),
    "lngd without layer rate": probe("lngd"),
    "lngd without layer rate, one weight per sample": probe("lngd", positions="mean", phi="elementwise"),
    "lngd": probe("lngd", layer_rate="corrected"),
    "eva": probe("eva"),
}


class Workload(NamedTuple):
    """A network in training mode and its batch."""

    model: nn.Module
    x: Tensor
    y: Tensor

    def step(self, optimizer: torch.optim.Optimizer, forward: Callable[[], Tensor] | None = None) -> None:
        """One step of a training loop."""
        optimizer.zero_grad()
        outputs = forward() if forward else self.model(self.x)
        F.cross_entropy(outputs.flatten(0, -2), self.y.flatten()).backward()
        optimizer.step()

    def sgd(self) -> Callable[[], None]:
        """SGD's step."""
        optimizer = torch.optim.SGD(self.model.parameters(), 1e-3, 0.9)
        return lambda: self.step(optimizer)

    def natural(self, chosen: Probe, stat_every: int, refresh_every: int) -> Callable[[], None]:
        """A method's step, on a copy of the network."""
        own = self._replace(model=copy.deepcopy(self.model))
        optimizer = NaturalGradient(
            own.model, chosen, 1e-3, 0.9, parameters="weights", stat_every=stat_every, refresh_every=refresh_every
        )
        return lambda: own.step(optimizer, lambda: optimizer.forward(own.x, own.y))

    def stepper(self, chosen: Probe) -> Stepper:
        """A method's phases on the batch, with the network in evaluation mode."""
        return Stepper(chosen, Instance(copy.deepcopy(self.model).eval(), self.x, self.y, parameters="weights"))


def workload(network: str, batch: int) -> Workload:
    """A network with random images or sentences of the shape of its data set."""
    torch.manual_seed(0)
    model = NETWORKS[network].model().train()
    if network == "transformer":
        return Workload(model, torch.randint(CLASSES, (batch, 2 * LENGTH)), torch.randint(CLASSES, (batch, LENGTH)))
    x, y = torch.randn(batch, 3, 32, 32), torch.randint(CLASSES, (batch,))
    calibrate(model, x)
    return Workload(model, x, y)


@torch.no_grad()
def calibrate(model: nn.Module, x: Tensor) -> None:
    """Running means and variances of the batch: with those of a fresh network evaluation mode overflows."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    model(x)


def counted(run: Callable[[], object]) -> int:
    """FLOPs of a call, every one of its operations counted."""
    with FlopMeter() as meter:
        run()
    if meter.uncounted:
        raise RuntimeError(f"operations without a formula: {', '.join(meter.uncounted)}")
    return meter.total


def counted_rows(work: Workload, methods: Sequence[str]) -> Iterator[str]:
    """A line per method: FLOPs of steps and of phases over those of SGD's step."""
    every = " | ".join(f"T = {every}" for every in SCHEDULES)
    yield f"| method | due | other | {every} | statistics | invert | precondition |"
    yield "|---" * (6 + len(SCHEDULES)) + "|"
    plain = counted(work.sgd())
    for name in methods:
        step = work.natural(METHODS[name], 2, 2)
        step()  # the model is verified
        step()
        due, other = counted(step) / plain, counted(step) / plain
        schedules = [other + (due - other) / every for every in SCHEDULES]
        rows = flop_rows(work.stepper(METHODS[name]))
        phases = {row.scope: row.value or 0.0 for row in rows if row.metric == "flops.ratio"}
        ratios = [phases[phase] for phase in ("statistics", "invert", "precondition")]
        yield f"| {name} | " + " | ".join(f"{value:.3g}" for value in [due, other, *schedules, *ratios]) + " |"


def seconds(run: Callable[[], object]) -> float:
    """CPU seconds of this thread."""
    start = time.thread_time()
    run()
    return time.thread_time() - start


def timed_rows(work: Workload, methods: Sequence[str], turns: int) -> Iterator[str]:
    """A line per method: seconds of steps and of statistics over those of SGD's step."""
    yield "| method | step without statistics | statistics | step at 10/100 |"
    yield "|---|--:|--:|--:|"
    plain, samples = work.sgd(), list[float]()
    steps = {name: work.natural(METHODS[name], 2, 4) for name in methods}
    steppers = {name: work.stepper(METHODS[name]) for name in methods}
    taken: dict[str, dict[str, list[float]]] = {name: {} for name in methods}
    gc.disable()
    for turn in range(turns + 1):
        for name in methods:
            samples.append(seconds(plain))
            times = [(due, seconds(steps[name])) for due in CYCLE]
            times.append(("phase", seconds(steppers[name].statistics)))
            for kind, value in times if turn else ():  # in the first turn the optimizer verifies the model
                taken[name].setdefault(kind, []).append(value)
        gc.collect()
    sgd = median(samples)
    for name in methods:
        yield f"| {name} | " + " | ".join(f"{value / sgd:.3f}" for value in _means(taken[name])) + " |"


def _means(taken: Mapping[str, list[float]]) -> tuple[float, float, float]:
    """Seconds of a step without statistics, of statistics, and of a mean step at 10/100."""
    none, statistics, both, phase = (median(taken[kind]) for kind in ("none", "statistics", "both", "phase"))
    return none, phase, none + (statistics - none) / 10 + (both - statistics) / 100


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--network", choices=NETWORKS, default="resnet-32")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--methods", default=",".join(METHODS).replace(", ", ": "), help="some of them, with commas")
    parser.add_argument("--seconds", action="store_true", help="CPU seconds in place of FLOPs")
    parser.add_argument("--turns", type=int, default=7, help="samples of every number of seconds")
    options = parser.parse_args()
    chosen = [name.replace(": ", ", ") for name in options.methods.split(",")]
    if unknown := [name for name in chosen if name not in METHODS]:
        print(f"error: unknown method {unknown[0]!r}: known are {'; '.join(METHODS)}", file=sys.stderr)
        return 2
    work = workload(options.network, options.batch)
    unit = "CPU seconds of one thread" if options.seconds else "FLOPs"
    print(f"{options.network}, batch {options.batch}, torch {torch.__version__}: {unit} over those of SGD's step\n")
    if options.seconds:
        torch.set_num_threads(1)
    lines = timed_rows(work, chosen, options.turns) if options.seconds else counted_rows(work, chosen)
    for line in lines:
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
