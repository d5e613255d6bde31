"""The cost of a probe per phase, beside a plain SGD step on the same batch: FLOPs, memory, time.

``step`` is the SGD step with all three phases, nothing amortized; its FLOPs and seconds are the sums over the parts.
The gradient of the loss is computed once per step, by the SGD part, and ``update`` finds it in its batch. All other
passes that a probe needs (for other labels, or for every sample's score) count in ``statistics``.

One run of a step counts FLOPs and bytes; the clock has runs of its own, because a counting mode would slow them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from statistics import mean, median
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from curvbench.instance import Instance
from curvbench.instance.passes import network_pass
from curvbench.meters.clock import ratios, seconds, take_turns
from curvbench.meters.flops import FlopMeter
from curvbench.meters.memory import AllocatorMeter, MemoryMeter, memory_meter, state_bytes
from curvbench.numerics import widened
from curvbench.spec import METERS, PHASES, LayerSize, Meter, Probe, Row
from curvbench.spec.formula import evaluate

TURNS = 5  # the median ignores two disturbed turns
BUDGET_SECONDS = 4.0  # per cell, so that slow probes do not take minutes of clock time
BUDGET_GRADIENTS = 10.0  # per cell of a model of the user's, who waits for all cells
BASELINE = "sgd"


@dataclass
class Stepper:
    """One optimizer step in parts: plain SGD, and the probe's phases between gradient and update.

    The step is not the first of a training, because it continues from ``before``, the state after ``fit``; None means
    that the state is fitted here. The model is a copy and the learning rate is 0, so that every repetition does the
    same arithmetic. ``patience``: the clock begins no turn after this many times the seconds of an SGD step.
    """

    probe: Probe
    instance: Instance
    before: Any = None
    patience: float = math.inf
    model: nn.Module = field(init=False)
    optimizer: torch.optim.SGD = field(init=False)
    gradient: Tensor = field(init=False)
    _work: Work | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.model = copy.deepcopy(self.instance.model)
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            tensor.data = widened(tensor.data)  # the dtype of the instance's inputs and passes
        self.optimizer = torch.optim.SGD([p for p in self.model.parameters() if p.requires_grad], lr=0.0, momentum=0.9)
        if self.before is None:
            self.before = self.probe.fit(self.instance)
        self.gradient = self.instance.gradient()  # the instance caches it, as in any training step
        self.sgd()  # allocates the momentum buffers, which no phase should count

    @cached_property
    def updated(self) -> Any:
        """The state after the step's statistics."""
        return self.probe.update(self.before, self.instance)

    @cached_property
    def refreshed(self) -> Any:
        """The state with which the step preconditions, after ``refresh``."""
        return self.probe.refresh(self.updated)

    def sgd(self) -> None:
        self._backward()
        self.optimizer.step()

    def statistics(self) -> None:
        self.updated = self.probe.update(self.before, self.instance)

    def invert(self) -> None:
        self.refreshed = self.probe.refresh(self.updated)

    def precondition(self) -> None:
        self.probe.precondition(self.refreshed, self.gradient)

    def step(self, inside: Callable[[str], AbstractContextManager[object]]) -> None:
        """Gradient, statistics, inversion, preconditioning and update, in the order of an optimizer.

        Each of the probe's phases runs in the context ``inside(phase)``.
        """
        self._backward()
        named = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        with inside("statistics"):
            state = self.probe.update(self.before, self.instance)
        with inside("invert"):
            state = self.probe.refresh(state)
        gradient = self.instance.pack(named)
        with inside("precondition"):
            direction = self.probe.precondition(state, gradient)
        for name, part in self.instance.unpack(direction).items():
            named[name].copy_(part)
        self.optimizer.step()

    def work(self, weighed: bool = False) -> Work:
        """The counts of one run of a step, cached; a second run only if bytes are asked for after FLOPs alone."""
        if self._work is None or weighed > self._work.weighed:
            self._work = Work(self, weighed)
        return self._work

    def phases(self) -> dict[str, Callable[[], None]]:
        """The probe's phases in the order of a step, which follow the gradient."""
        return {"statistics": self.statistics, "invert": self.invert, "precondition": self.precondition}

    @network_pass()
    def _backward(self) -> None:
        self.optimizer.zero_grad()
        inputs = self.instance.inputs
        if isinstance(inputs, Tensor):
            outputs = self.model(inputs)
        else:
            outputs = self.model(**inputs) if isinstance(inputs, Mapping) else self.model(*inputs)
        self.instance.likelihood.loss(self.instance.arranged(outputs), self.instance.targets).backward()


Bytes = MemoryMeter | AllocatorMeter
_COUNTED: WeakKeyDictionary[Instance, dict[bool, tuple[FlopMeter, Bytes | None]]] = WeakKeyDictionary()
"""The SGD step of an instance, with bytes and without, which is the same beside every probe."""


class Work:
    """FLOPs, and live bytes if ``weighed``, of an SGD step and of the phases of one step with the probe."""

    def __init__(self, stepper: Stepper, weighed: bool) -> None:
        self.weighed, self._device = weighed, stepper.instance.device
        self.flops: dict[str, FlopMeter] = {}
        self.memory: dict[str, Bytes] = {}
        counted = _COUNTED.setdefault(stepper.instance, {})
        if weighed not in counted:
            with self._part(BASELINE):
                stepper.sgd()
            counted[weighed] = self.flops[BASELINE], self.memory.get(BASELINE)
        self.flops[BASELINE], peak = counted[weighed]
        if peak is not None:
            self.memory[BASELINE] = peak
        with self._weighing("step"):
            stepper.step(self._part)

    @contextmanager
    def _part(self, name: str) -> Iterator[None]:
        self.flops[name] = FlopMeter()
        with self.flops[name], self._weighing(name):
            yield

    def _weighing(self, name: str) -> AbstractContextManager[object]:
        if not self.weighed:
            return nullcontext()
        self.memory[name] = memory_meter(self._device)
        return self.memory[name]


def flop_rows(stepper: Stepper) -> Iterator[Row]:
    """Per phase: FLOPs, those of network passes, operations without a formula, the ratio to SGD, the modelled FLOPs."""
    meters = stepper.work().flops
    counted = {name: meter.total for name, meter in meters.items()}
    uncounted = {name: set(meter.uncounted) for name, meter in meters.items()}
    baseline = counted[BASELINE]
    counted["step"] = sum(counted.values())
    uncounted["step"] = set().union(*uncounted.values())
    passes = {name: meter.passes for name, meter in meters.items()}
    passes["step"] = sum(passes.values())
    modelled = modelled_cost(stepper)
    for phase in PHASES:
        yield Row("flops.counted", float(counted[phase]), phase)
        yield Row("flops.passes", float(passes[phase]), phase)
        yield Row("flops.uncounted_ops", float(len(uncounted[phase])), phase, reason=" ".join(sorted(uncounted[phase])))
        yield Row("flops.ratio", counted[phase] / baseline, phase)
        if phase in modelled:
            yield Row("flops.model", 2 * modelled[phase], phase)


def modelled_cost(stepper: Stepper) -> Mapping[str, float]:
    """Published multiply-adds per phase and stored numbers (``memory``); empty if the probe publishes no cost.

    The costs of a probe among the hyperparameters are added; if it publishes none, the sum is unknown.
    """
    return _modelled(stepper.probe, stepper.instance)


def _modelled(probe: Probe, instance: Instance) -> dict[str, float]:
    fisher_type = probe.fisher_type or "type-2"
    columns = 0 if fisher_type == "forward-only" else instance.columns_per_sample(fisher_type, probe.mc_samples)
    cost = published_cost(probe, list(instance.sizes.values()), instance.samples, columns)
    for inner in probe.inner.values():
        if not (more := _modelled(inner, instance)):
            return {}
        times = {"precondition": probe.inner_solves}
        cost = {phase: value + times.get(phase, 1) * more.get(phase, 0.0) for phase, value in cost.items()}
    return cost


def published_cost(probe: Probe, sizes: Sequence[LayerSize], N: int, R: int) -> dict[str, float]:
    """The formulas of ``About.cost`` for a batch of N samples with R score columns each, in multiply-adds."""
    letters = {"N": N, "R": R, "P": sum(size.entries for size in sizes), "L": len(sizes)}
    values = {**probe.hyperparameters, **letters}
    return {key: evaluate(text, values, sizes, probe.about.where) for key, text in probe.about.cost.items()}


def peak_rows(stepper: Stepper) -> Iterator[Row]:
    """Peak bytes per phase above the bytes that are live when the phase begins, and the ratio to SGD."""
    meters = stepper.work(weighed=True).memory
    for phase in PHASES:
        peak, method = meters[phase].peak, meters[phase].method
        yield Row("memory.peak", float(peak), phase, method=method)
        yield Row("memory.ratio", peak / meters[BASELINE].peak, phase, method=method)


def state_rows(stepper: Stepper) -> Iterator[Row]:
    """The bytes of the state after each phase, and the bytes of the method's published memory."""
    states = {"statistics": stepper.updated, "invert": stepper.refreshed, "step": stepper.refreshed}
    for phase, state in states.items():
        yield Row("memory.state", float(state_bytes(state)), phase, method="bytes of distinct tensor storages")
    modelled = modelled_cost(stepper)
    if "memory" in modelled:
        factor_dtype = stepper.probe.hyperparameters.get("factor_dtype")
        dtype = getattr(torch, factor_dtype) if factor_dtype else stepper.instance.dtype
        yield Row("memory.model", modelled["memory"] * dtype.itemsize, "step")


def clock_rows(stepper: Stepper) -> Iterator[Row]:
    """Seconds per phase, of the clock and of the CPU, and their ratio to the SGD step of the same turn."""
    functions: dict[str, Callable[[], object]] = {BASELINE: stepper.sgd, **stepper.phases()}
    if (in_place := stepper.probe.in_place(stepper.before, stepper.instance)) is not None:
        functions["statistics"] = in_place
    device, budget = stepper.instance.device, BUDGET_SECONDS
    if stepper.patience < math.inf:
        budget = min(budget, stepper.patience * seconds(stepper.sgd, device))
    turns = take_turns(functions, device, TURNS, budget)
    samples, cpu = _with_step(turns.wall), _with_step(turns.cpu)
    method = "one sample" if len(samples["step"]) == 1 else ""
    yield Row("time.wall", median(samples[BASELINE]), BASELINE, samples[BASELINE], method)
    for phase in PHASES:
        yield Row("time.wall", median(samples[phase]), phase, samples[phase], method)
        if stepper.instance.device.type == "cpu":
            yield Row("time.cpu", median(cpu[phase]), phase, cpu[phase], method)
        quotients = ratios(samples[phase], samples[BASELINE])
        yield Row("time.ratio", median(quotients), phase, quotients, method)


def period_flops(stepper: Stepper) -> Iterator[Row]:
    """FLOPs of the least, the most and the mean step of the probe's period, with the gradient; none for a period of 1.

    The phases after ``statistics`` count as in the step of the other rows.
    """
    if stepper.probe.period == 1:
        return
    counted = list(_counted_period(stepper))
    once = stepper.work().flops
    rest = sum(once[name].total for name in (BASELINE, "invert", "precondition"))
    for scope, flops in {"least step": min(counted), "most step": max(counted), "mean step": mean(counted)}.items():
        yield Row("flops.counted", flops + rest, scope)
        yield Row("flops.ratio", (flops + rest) / once[BASELINE].total, scope)


def period_clock(stepper: Stepper) -> Iterator[Row]:
    """Seconds of the least, the most and the mean step in place of the probe's period, with the gradient."""
    probe, instance = stepper.probe, stepper.instance
    if probe.period == 1 or (step := probe.in_place(stepper.before, instance)) is None:
        return
    names = [f"step {k}" for k in range(probe.period)]
    samples = take_turns({BASELINE: stepper.sgd, **dict.fromkeys(names, step)}, instance.device, TURNS, BUDGET_SECONDS)
    base = samples.wall[BASELINE]
    steps = sorted(([samples.wall[name] for name in names]), key=median)
    whole = [sum(turn) / len(turn) for turn in zip(*steps, strict=True)]
    for scope, taken in {"least step": steps[0], "most step": steps[-1], "mean step": whole}.items():
        total = [own + gradient for own, gradient in zip(taken, base, strict=True)]
        yield Row("time.wall", median(total), scope, total)
        yield Row("time.ratio", median(ratios(total, base)), scope, ratios(total, base))


def _counted_period(stepper: Stepper) -> Iterator[int]:
    """The FLOPs of every update of a period."""
    state = stepper.before
    for _ in range(stepper.probe.period):
        with FlopMeter() as meter:
            state = stepper.probe.update(state, stepper.instance)
        yield meter.total


def _with_step(samples: Mapping[str, list[float]]) -> dict[str, list[float]]:
    """Samples by part of a step, and as ``step`` the sums over the parts, turn by turn."""
    return {**samples, "step": [sum(turn) for turn in zip(*samples.values(), strict=True)]}


ROWS: Mapping[Meter, Sequence[Callable[[Stepper], Iterator[Row]]]] = {
    "clock": [clock_rows, period_clock],
    "memory": [state_rows, peak_rows],
    "flops": [flop_rows, period_flops],
}


def cost_rows(stepper: Stepper, meters: Collection[Meter] = METERS) -> Iterator[Row]:
    """The cost metrics of a probe's step that belong to ``meters``."""
    for rows in (rows for meter, kinds in ROWS.items() if meter in meters for rows in kinds):
        yield from rows(stepper)
