"""CPU seconds of a step of SOAP, Shampoo and KL-Shampoo over those of public code on the same matrices, in turn.

    OMP_NUM_THREADS=1 python scripts/today_cost.py [--kl FILE]

The matrices are those of ResNet-20 and of a GPT block of width 256, with each bias as last column; the gradients are
at hand, and a step has statistics, factorization and preconditioning. The public code is that of the extra ``public``,
and for KL-Shampoo, which no package has, ``FILE`` of its authors (``kl_opt.py``).
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from curvbench import Instance, probe, problem, registry, training
from curvbench.meters.clock import ratios, take_turns
from curvbench.spec import Probe

Step = Callable[[], object]
NEVER = 10**9
HEADER = """\
float32, {threads} thread(s) on {processor}, torch {torch}, load {load:.1f}, at most {turns} turns. Medians of CPU
seconds; a ratio is ours over theirs of the same turn.

| network | step | ours, s | theirs, s | ratio |
|---|---|---|---|---|"""


def networks() -> Iterator[tuple[str, Instance]]:
    """Weights alone, with a gradient that is computed already."""
    chosen = {"ResNet-20": problem("resnet", samples=32), "GPT block, 256": problem("gpt", width=256, heads=8)}
    for name, one in chosen.items():
        torch.manual_seed(0)
        batch = training.batch(one, one.data(None), 0, "cpu", torch.float32)
        instance = Instance(one.model().eval(), *batch, one.loss, parameters="weights")
        instance.gradient()
        yield name, instance


def ours(chosen: Probe, instance: Instance, is_new: bool) -> Step:
    """A step that takes in the gradient and preconditions, with or without a new factorization."""
    state = chosen.init(instance)
    for _ in range(3):
        state = chosen.update(state, instance)
    state = chosen.refresh(state)

    def step() -> Tensor:
        updated = chosen.update(state, instance)
        return chosen.precondition(chosen.refresh(updated) if is_new else updated, instance.gradient())

    return step


def theirs(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], instance: Instance) -> Step:
    """A step of an optimizer of matrices, whose learning rate is 0."""
    parts = instance.gradient().split([layer.size for layer in instance.layers])
    parameters = []
    for layer, part in zip(instance.layers, parts, strict=True):
        parameter = nn.Parameter(torch.zeros(layer.groups * layer.outputs, layer.inputs))
        parameter.grad = part.view_as(parameter).clone()
        parameters.append(parameter)
    optimizer = make(parameters)
    for _ in range(3):
        optimizer.step()
    return optimizer.step


def pairs(instance: Instance, public: Any, authors: Any) -> Iterator[tuple[str, Step, Step]]:
    """The name of a step, ours and theirs."""
    for what, every in (("", NEVER), (", new bases", 1)):
        yield (
            f"SOAP{what}",
            ours(probe("soap", basis_every=every), instance, False),
            theirs(lambda p, n=every: public.SOAP(p, 0.0, weight_decay=0.0, precondition_frequency=n), instance),  # type: ignore[misc]
        )
        if authors is not None:
            yield (
                f"KL-Shampoo{what}",
                ours(probe("klshampoo", statistic="bg_data", basis_every=every), instance, False),
                theirs(lambda p, n=every: _kl(authors, p, n), instance),  # type: ignore[misc]
            )
    for what, is_new in (("", False), (", new roots", True)):
        every = 1 if is_new else NEVER
        yield (
            f"Shampoo{what}",
            ours(probe("shampoo"), instance, is_new),
            theirs(lambda p, n=every: public.Shampoo(p, 0.0, preconditioning_compute_steps=n), instance),  # type: ignore[misc]
        )


def _kl(authors: Any, parameters: list[nn.Parameter], every: int) -> torch.optim.Optimizer:
    options = {"weight_decay": 0.0, "precondition_frequency": every, "cast_dtype": torch.float32}
    with redirect_stdout(None):
        found: torch.optim.Optimizer = authors.KLOpt(parameters, 0.0, **options)
    return found


def main() -> int:
    """Print the table; 2 where the public package is not there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kl", type=Path, default=None)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--budget", type=float, default=30.0, help="seconds per row after which no turn starts")
    given = parser.parse_args()
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # because the authors' file compiles its functions
    warnings.simplefilter("ignore")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    try:
        import pytorch_optimizer as public
    except ImportError as error:
        print(f"error: {error}: install curvbench[public]", file=sys.stderr)
        return 2
    authors = None if given.kl is None else registry.load_file(given.kl)
    facts = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__}
    print(HEADER.format(turns=given.turns, threads=torch.get_num_threads(), load=os.getloadavg()[0], **facts))
    for network, instance in networks():
        for name, mine, other in pairs(instance, public, authors):
            _, cpu = take_turns({"ours": mine, "theirs": other}, "cpu", given.turns, given.budget)
            ratio = median(ratios(cpu["ours"], cpu["theirs"]))
            seconds = f"{median(cpu['ours']):.3g} | {median(cpu['theirs']):.3g}"
            print(f"| {network} | {name} | {seconds} | {ratio:.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
