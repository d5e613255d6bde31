"""CPU seconds of a step of the methods of today over those of public code on the same matrices, in turn.

    OMP_NUM_THREADS=1 python scripts/today_cost.py [FOLDER ...]

The matrices are those of ResNet-20 and of a GPT block of width 256, with each bias as last column; the gradients are
at hand, and a step has statistics, factorization and preconditioning. The public code is that of torch and of the
extra ``public``, and that of the authors where a FOLDER, such as a checkout, has ``kl_opt.py`` (KL-Shampoo),
``psgd.py`` (PSGD) or the package ``distributed_shampoo``.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from importlib import import_module
from statistics import median
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from curvbench import Instance, probe, problem, training
from curvbench.meters.clock import ratios, take_turns
from curvbench.spec import Probe

Step = Callable[[], object]
NEVER = 10**9
PERIOD = 10  # steps from one factorization to the next, by default of SOAP and KL-Shampoo
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
        instance.gradient = _at_hand(instance.gradient())  # type: ignore[method-assign]
        yield name, instance


def _at_hand(gradient: Tensor) -> Callable[[], Tensor]:
    """Gives a gradient without the instance's check that nothing has changed."""
    return lambda: gradient


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


def theirs(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], instance: Instance, **later: Any) -> Step:
    """A step of an optimizer of matrices, whose learning rate is 0. ``later``: options it has after its first steps."""
    parts = instance.gradient().split([layer.size for layer in instance.layers])
    parameters = []
    for layer, part in zip(instance.layers, parts, strict=True):
        parameter = nn.Parameter(torch.zeros(layer.groups * layer.outputs, layer.inputs))
        parameter.grad = part.view_as(parameter).clone()
        parameters.append(parameter)
    optimizer = make(parameters)
    for _ in range(3):
        optimizer.step()
    for group in optimizer.param_groups:
        group.update(later)
    return optimizer.step


def pairs(instance: Instance, public: Any) -> Iterator[tuple[str, list[tuple[Step, Step]]]]:
    """A method's name, and ours and theirs of a step without and, if there are two pairs, with a new factorization."""

    def of(name: str, make: Any, is_probe_s: bool = True, **fields: Any) -> list[tuple[Step, Step]]:
        chosen = [probe(name, **fields, **({"basis_every": every} if is_probe_s else {})) for every in (NEVER, 1)]
        mine = [ours(chosen[0], instance, False), ours(chosen[1], instance, not is_probe_s)]
        return list(zip(mine, [theirs(lambda p, n=n: make(p, n), instance) for n in (NEVER, 1)], strict=True))  # type: ignore[misc]

    def of_one(make: Any, name: str, **fields: Any) -> list[tuple[Step, Step]]:
        return [(ours(probe(name, **fields), instance, False), theirs(make, instance))]

    yield "SOAP", of("soap", lambda p, n: public.SOAP(p, 0.0, weight_decay=0.0, precondition_frequency=n))
    if kl := authors("kl_opt"):
        yield "KL-Shampoo", of("klshampoo", lambda p, n: _kl(kl, p, n), statistic="bg_data")
    yield "Shampoo", of("shampoo", lambda p, n: public.Shampoo(p, 0.0, preconditioning_compute_steps=n), False)
    if meta := authors("distributed_shampoo"):
        mine = [ours(probe("shampoo", epsilon=1e-12), instance, is_new) for is_new in (False, True)]
        periods = (theirs(lambda p: _meta(meta, p), instance, precondition_frequency=n) for n in (NEVER, 1))
        yield "Shampoo (Meta)", list(zip(mine, periods, strict=True))
    yield "PSGD", of_one(lambda p: public.Kron(p, 0.0, weight_decay=0.0), "psgd")
    if psgd := authors("psgd"):
        for criterion in ("EQ", "QEQ"):
            make = lambda p, c=criterion: _Psgd(psgd, p, c)  # noqa: E731
            yield f"PSGD, {criterion} (Li)", of_one(make, "psgd", criterion=criterion)
    muon = of_one(lambda p: torch.optim.Muon(p, 0.0, weight_decay=0.0), "muon", polar_by="newton-schulz")
    yield "Muon (theirs rounds to bfloat16)", muon


def authors(name: str) -> ModuleType | None:
    """A module of the authors of a method; None if no folder has it."""
    try:
        return import_module(name)
    except ImportError:
        return None


def _kl(module: Any, parameters: list[nn.Parameter], every: int) -> torch.optim.Optimizer:
    options = {"weight_decay": 0.0, "precondition_frequency": every, "cast_dtype": torch.float32}
    with redirect_stdout(None):
        found: torch.optim.Optimizer = module.KLOpt(parameters, 0.0, **options)
    return found


def _meta(module: Any, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Sums of moments of matrices that are neither cut nor merged."""
    options = {"betas": (0.0, 1.0), "epsilon": 1e-12, "max_preconditioner_dim": max(max(p.shape) for p in parameters)}
    found: torch.optim.Optimizer = module.DistributedShampoo(parameters, sys.float_info.min, **options)
    return found


class _Psgd(torch.optim.Optimizer):
    """The authors' class under torch's interface, with dense factors on both sides, as ours."""

    def __init__(self, module: Any, parameters: list[nn.Parameter], criterion: str) -> None:
        super().__init__(parameters, {})
        options = {"preconditioner_max_skew": float("inf"), "preconditioner_init_scale": 1.0, "lr_params": 0.0}
        self._inner = module.KronWhiten(parameters, dQ=criterion, **options)
        self._parameters = parameters

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step; the loss has the gradients at hand as its gradient."""
        gradients: Any = [parameter.grad for parameter in self._parameters]
        pairs = list(zip(self._parameters, gradients, strict=True))
        self._inner.step(lambda: sum((parameter * gradient).sum() for parameter, gradient in pairs))


def row(network: str, name: str, seconds: Mapping[str, float], ratio: float) -> str:
    """A line of the table."""
    return f"| {network} | {name} | {seconds['ours']:.3g} | {seconds['theirs']:.3g} | {ratio:.2f} |"


def main() -> int:
    """Print the table; 2 where the public package is not there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help="a folder with authors' code")
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
    sys.path[:0] = given.folders
    logging.disable()
    facts = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__}
    print(HEADER.format(turns=given.turns, threads=torch.get_num_threads(), load=os.getloadavg()[0], **facts))
    for network, instance in networks():
        for name, steps in pairs(instance, public):
            samples = [take_turns({"ours": m, "theirs": t}, "cpu", given.turns, given.budget)[1] for m, t in steps]
            medians = [{side: median(cpu[side]) for side in ("ours", "theirs")} for cpu in samples]
            for what, cpu, seconds in zip(("", ", new factorization"), samples, medians, strict=False):
                print(row(network, name + what, seconds, median(ratios(cpu["ours"], cpu["theirs"]))), flush=True)
            if len(medians) == 2:
                plain, new = medians
                period = {side: (plain[side] * (PERIOD - 1) + new[side]) / PERIOD for side in plain}
                print(row(network, f"{name}, mean of {PERIOD}", period, period["ours"] / period["theirs"]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
