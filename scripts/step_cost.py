"""Counted FLOPs of real optimizer steps over those of SGD's, per phase and at schedules; prints Markdown.

    python scripts/step_cost.py --depth 32 --batch 128

A network of the shape of CIFAR-10 in training mode, on random data: FLOPs do not depend on it. ``due`` is a step with
statistics and factorization, ``other`` one without; every T-th step is due in the columns named by a T. Methods cover
the weights only, as their papers count.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from curvbench import Instance, probe, problem
from curvbench.meters.cost import Stepper, flop_rows
from curvbench.meters.flops import FlopMeter
from curvbench.optim import NaturalGradient
from curvbench.spec import Probe

SCHEDULES = (1, 10, 100)
METHODS: dict[str, Probe] = {
    "fngd, first epoch": probe("fngd"),
    "fngd, later": probe("fngd", stage="shared"),
    "kfac, mc": probe("kfac", fisher_type="mc", damping_rule="pi"),
    "kfac, empirical": probe("kfac", fisher_type="empirical", damping_rule="pi"),
    "lngd without layer rate": probe("lngd"),
    "lngd": probe("lngd", layer_rate="corrected"),
    "eva": probe("eva"),
}


def counted(run: Callable[[], object]) -> int:
    """FLOPs of a call, every one of its operations counted."""
    with FlopMeter() as meter:
        run()
    if meter.uncounted:
        raise RuntimeError(f"operations without a formula: {', '.join(meter.uncounted)}")
    return meter.total


def step(optimizer: torch.optim.Optimizer, forward: Callable[[], Tensor], targets: Tensor) -> None:
    """One step of a training loop."""
    optimizer.zero_grad()
    F.cross_entropy(forward(), targets).backward()
    optimizer.step()


def rows(model: torch.nn.Module, x: Tensor, y: Tensor, methods: list[str]) -> Iterator[str]:
    """A line per method: steps over SGD's, phases over SGD's."""
    plain = counted(lambda: step(torch.optim.SGD(model.parameters(), 1e-3, 0.9), lambda: model(x), y))
    for name in methods:
        optimizer = NaturalGradient(model, METHODS[name], 0.0, parameters="weights", stat_every=2, refresh_every=2)
        train: Any = lambda optimizer=optimizer: step(optimizer, lambda: optimizer.forward(x, y), y)  # noqa: E731
        train()  # the model is verified
        train()
        due, other = counted(train) / plain, counted(train) / plain
        schedules = [other + (due - other) / every for every in SCHEDULES]
        model.eval()
        instance = Instance(model, x, y, parameters="weights")
        phases = {row.scope: row.value or 0.0 for row in phase_rows(METHODS[name], instance)}
        model.train()
        ratios = [phases[phase] for phase in ("statistics", "invert", "precondition")]
        yield f"| {name} | " + " | ".join(f"{value:.3g}" for value in [due, other, *schedules, *ratios]) + " |"


def phase_rows(chosen: Probe, instance: Instance) -> Iterator[Any]:
    """The ratio of every phase when nothing is shared with the training pass."""
    return (row for row in flop_rows(Stepper(chosen, instance)) if row.metric == "flops.ratio")


@torch.no_grad()
def calibrate(model: torch.nn.Module, x: Tensor) -> None:
    """Running means and variances of the batch: with those of a fresh network evaluation mode overflows."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    model(x)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--depth", type=int, default=32)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--methods", default=",".join(METHODS).replace(", ", ": "), help="some of them, with commas")
    options = parser.parse_args()
    chosen = [name.replace(": ", ", ") for name in options.methods.split(",")]
    if unknown := [name for name in chosen if name not in METHODS]:
        print(f"error: unknown method {unknown[0]!r}: known are {'; '.join(METHODS)}", file=sys.stderr)
        return 2
    torch.manual_seed(0)
    model = problem("resnet", depth=options.depth, dataset="cifar10").model().train()
    x, y = torch.randn(options.batch, 3, 32, 32), torch.randint(10, (options.batch,))
    calibrate(model, x)
    print(f"ResNet-{options.depth}, 3 x 32 x 32, batch {options.batch}, torch {torch.__version__}: FLOPs over SGD's\n")
    every = " | ".join(f"T = {every}" for every in SCHEDULES)
    print(f"| method | due | other | {every} | statistics | invert | precondition |")
    print("|---" * (6 + len(SCHEDULES)) + "|")
    for line in rows(model, x, y, chosen):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
