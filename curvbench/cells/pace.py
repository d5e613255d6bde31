"""Paces: what the steps of a training cost, clocked by kind and in turn with steps of torch's SGD.

A training has steps of three kinds: ``plain`` ones, those with ``statistics`` every ``stat_every`` steps, and those
that ``invert`` too, every ``refresh_every`` steps. So a few steps of each kind say what its mean step costs. If all
steps are alike, the profiler divides them into forward pass, backward pass, statistics, inversion, preconditioning
(wherever in the step a method does it) and update. FNGD's steps are those after its first epoch.
"""

from __future__ import annotations

import copy
import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, repeat
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from curvbench.cells.trial import optimizer_of
from curvbench.instance.likelihood import likelihood
from curvbench.instance.outputs import arranged, chosen
from curvbench.instance.profiling import PREFIX, labelled
from curvbench.meters.clock import ratios, seconds
from curvbench.meters.flops import FlopMeter
from curvbench.spec import Cell, Dataset, Diverged, Report, Row, Training
from curvbench.training import Course, placed, reduced, seeded

PARTS = ("forward", "backward", "statistics", "invert", "precondition", "update")
HOLDING = ("forward", "backward", "update")  # parts in which the others happen
PROFILED = 3  # steps whose parts are clocked
BOTH = "backward and precondition"  # which some methods do at once

Forward = Callable[[Any, Tensor], Tensor]


@dataclass
class Runner:
    """A model with its optimizer, ready to do steps of a training."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    forward: Forward
    course: Course
    batches: Iterator[tuple[Any, Tensor]] = field(init=False)

    def __post_init__(self) -> None:
        epochs = (self.course.batches() for _ in repeat(None))
        self.batches = chain.from_iterable(epochs)
        self.model.train()

    def prepared(self) -> Callable[[], None]:
        """A step on the next batch, which is there already."""
        x, y = next(self.batches)
        return lambda: self._step(x, y)

    def _step(self, x: Any, y: Tensor) -> None:
        criterion = likelihood(self.course.loss)
        self.optimizer.zero_grad()
        with labelled("forward"):
            outputs, y = arranged(chosen(self.forward(x, y)), y, criterion)
            loss = criterion.for_batch(y).loss(outputs, y)
        with labelled("backward"):
            loss.backward()
        with labelled("update"):
            self.optimizer.step()
        if not math.isfinite(loss.item()):
            raise Diverged(f"the loss is {loss.item()} in a step that was clocked")


def paced(cell: Cell, model: nn.Module, dataset: Dataset, report: Report) -> list[Row]:
    """Seconds and FLOPs of the steps of ``cell.training``, by kind, and seconds over those of SGD's steps in turn.

    Raises:
        Unsupported: the probe does not cover the model.
        Diverged: a loss is NaN or infinite.
    """
    assert cell.training is not None, "the cell trains"
    training, device = cell.training, torch.device(cell.device)
    dataset = reduced(dataset, training.share, cell.seed)
    data = placed(dataset.train_inputs, dataset.train_targets, device, getattr(torch, cell.dtype))
    course = Course(*data, cell.problem.loss, training.batch, training.epochs, training.augment)
    kinds = cycle(training)
    often = replace(training, stat_every=min(2, training.stat_every), refresh_every=len(kinds))
    with seeded(cell.seed, device):
        plain = copy.deepcopy(model)
        sgd = torch.optim.SGD(plain.parameters(), training.lr, training.momentum, weight_decay=training.weight_decay)
        baseline = Runner(plain, sgd, lambda x, y: plain(x), course)
        optimizer = optimizer_of(cell, often, model, course.loss)
        runner = Runner(model, optimizer, optimizer.forward, course)
        report("FLOPs")
        baseline.prepared()()
        runner.forward(*next(runner.batches))  # the optimizer compares its first batch with plain autograd
        optimizer.rest_checks()
        if len(kinds) == 1:
            runner.prepared()()
        counts = {kind: _counted(runner.prepared()) for kind in kinds}
        sgd_count = _counted(baseline.prepared())
        gc.freeze()
        count = math.ceil(training.paced / len(kinds))
        taken = []
        for turn in range(1, count + 1):
            report(f"turn {turn} of {count}")
            taken.append(_turn(runner, baseline, kinds, device))
        rows = [*_timed_rows(taken, training), *_counted_rows(counts, sgd_count, training)]
        if device.type == "cpu" and len(kinds) == 1:
            report("parts of a step")
            rows += _part_rows(_parts(runner), _parts(baseline))
    return [replace(row, method=training.arguments) for row in rows]


def cycle(training: Training) -> tuple[str, ...]:
    """The kinds of the first steps of a short training that has all kinds of steps of ``training``, again and again."""
    if training.stat_every > 1:
        return ("invert", "plain", "statistics", "plain")
    return ("invert", "statistics") if training.refresh_every > 1 else ("invert",)


def per_step(kinds: Mapping[str, float], training: Training) -> float:
    """The mean of a step from the values of its kinds: each adds what it has more than the kind before it."""
    intervals = {"plain": 1, "statistics": training.stat_every, "invert": training.refresh_every}
    value = before = 0.0
    for kind, every in intervals.items():
        if kind in kinds:
            value, before = value + (kinds[kind] - before) / every, kinds[kind]
    return value


def _turn(runner: Runner, baseline: Runner, kinds: Sequence[str], device: torch.device) -> dict[str, float]:
    """Seconds by kind of step, and of SGD's, each step behind one of SGD's."""
    samples: dict[str, list[float]] = {}
    gc.disable()
    for kind in kinds:
        samples.setdefault("sgd", []).append(seconds(baseline.prepared(), device))
        samples.setdefault(kind, []).append(seconds(runner.prepared(), device))
    gc.enable()
    gc.collect()
    return {kind: median(values) for kind, values in samples.items()}


def _parts(runner: Runner) -> dict[str, float]:
    """Seconds of the parts of a step on a CPU, by the profiler."""
    taken = []
    for _ in range(PROFILED):
        step = runner.prepared()
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            step()
        taken.append(_by_label([event for event in profiler.events() or () if event.name.startswith(PREFIX)]))
    return {name: median(each[name] for each in taken) for name in PARTS}


def _by_label(events: Sequence[FunctionEvent]) -> dict[str, float]:
    """Seconds by label; a part in which others happen is given without them."""
    spans = [(event.name.removeprefix(PREFIX), event.time_range) for event in events]
    taken = dict.fromkeys(PARTS, 0.0)
    for name, span in spans:
        taken[name] += span.elapsed_us() / 1e6
        if name in HOLDING:
            held = [s for n, s in spans if n not in HOLDING and span.start <= s.start and s.end <= span.end]
            taken[name] -= sum(each.elapsed_us() for each in held) / 1e6
    return taken


def _counted(step: Callable[[], None]) -> float:
    with FlopMeter() as meter:
        step()
    return float(meter.total)


def _timed_rows(turns: Sequence[Mapping[str, float]], training: Training) -> Iterator[Row]:
    """Seconds by kind, and of the mean step over SGD's: medians over turns, with a sample per turn."""
    sgd = [turn["sgd"] for turn in turns]
    steps = [per_step(turn, training) for turn in turns]
    kinds = {kind: [turn[kind] for turn in turns] for kind in turns[0]}
    for kind, samples in {**kinds, "step": steps}.items():
        yield Row("pace.seconds", median(samples), kind, samples)
        if kind != "sgd":
            yield Row("pace.ratio", median(over := ratios(samples, sgd)), kind, over)


def _part_rows(parts: Mapping[str, float], sgd: Mapping[str, float]) -> Iterator[Row]:
    """Seconds of the parts of a step over those of SGD's whole step."""
    whole = sum(sgd.values())
    values = {name: parts[name] / whole for name in PARTS}
    values[BOTH] = values["backward"] + values["precondition"]
    for name, value in values.items():
        yield Row("pace.part", value, name)


def _counted_rows(counts: Mapping[str, float], sgd: float, training: Training) -> Iterator[Row]:
    """FLOPs of the mean step, and their ratio to those of SGD's step."""
    count = per_step(counts, training)
    yield Row("pace.flops", count, "step")
    yield Row("pace.flops_ratio", count / sgd, "step")
