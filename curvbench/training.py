"""The training loop; and snapshots: a problem's model as it is measured, at initialisation or after plain SGD."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from curvbench.augmentation import augmented
from curvbench.distributed import ALONE, Ranks
from curvbench.likelihood import likelihood
from curvbench.meters.clock import Stopwatch
from curvbench.photos import Photos
from curvbench.spec import Augmentation, Dataset, Diverged, Problem
from curvbench.tape import evaluation

Progress = Callable[[int, int, float], None]
Forward = Callable[[Tensor, Tensor], Tensor]
Inputs = Tensor | Photos

CALIBRATION_BATCHES = 8
EVALUATION_TERMS = 512  # at a time: tokens of a large vocabulary have many outputs


def snapshot(
    problem: Problem,
    seed: int,
    root: Path | None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
) -> nn.Module:
    """The problem's model after ``problem.epochs`` epochs of SGD, in evaluation mode, on ``device`` in ``dtype``.

    Trained in float32 by ``problem.recipe``, in shuffled batches of nearly equal size, at most ``recipe.batch``, with a
    cosine schedule from the learning rate to 0. ``progress(epoch, epochs, mean loss)`` is called after each epoch.

    BatchNorm that has seen no batch (at initialisation) takes its statistics from up to eight training batches:
    with mean 0 and variance 1 the residual branches add up, and the logits of a ResNet-110 reach 1e5.

    The same seed gives the same bits on the same CPU and number of threads. Torch's generators are left as they were.

    Raises:
        Skip: the data set is absent.
        Diverged: a loss is NaN or infinite.
    """
    device = torch.device(device)
    with seeded(seed, device):
        model = problem.model().to(device, torch.float32)
        fresh = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.num_batches_tracked == 0]
        if problem.epochs > 0:
            _train(model, problem, _train_part(problem.data(root), device), progress)
        elif fresh:
            inputs, _ = _train_part(problem.data(root), device)
            chosen = _batches(torch.randperm(len(inputs)).to(device), problem.recipe.batch)[:CALIBRATION_BATCHES]
            _calibrate(model, fresh, (_read(inputs[rows]) for rows in chosen))
    return model.eval().to(dtype)


def batch(
    problem: Problem,
    dataset: Dataset,
    seed: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """The ``problem.samples`` training samples that are measured, drawn without replacement: inputs and targets.

    Tensors of floats come in ``dtype``, others (labels, tokens) as they are. Raises ValueError if there are too few.
    """
    available = len(dataset.train_inputs)
    if problem.samples > available:
        raise ValueError(f"{problem.label}: samples={problem.samples}, but there are only {available} to train on")
    chosen = _drawn(available, seed)[: problem.samples]
    inputs, targets = placed(dataset.train_inputs[chosen], dataset.train_targets[chosen], device, dtype)
    return _read(inputs), targets


def reduced(dataset: Dataset, share: float, seed: int) -> Dataset:
    """The data with that share of its training part, at least one sample, drawn by the seed."""
    count = len(dataset.train_inputs)
    kept = _drawn(count, seed)[: math.ceil(share * count)]
    if len(kept) == count:
        return dataset
    return dataclasses.replace(
        dataset, train_inputs=dataset.train_inputs[kept], train_targets=dataset.train_targets[kept]
    )


def held_out(dataset: Dataset, share: float, seed: int) -> tuple[Dataset, tuple[Inputs, Tensor] | None]:
    """The data without that share of its training part, and the share: inputs and targets; None for a share of 0.

    Drawn by the seed, at least one sample, and none of those that ``batch`` draws with it unless there are too few.

    Raises:
        ValueError: nothing is left to train on.
    """
    count = len(dataset.train_inputs)
    held = math.ceil(share * count)
    if not held:
        return dataset, None
    if held == count:
        raise ValueError(f"valid={share:g} of {count} training samples leaves none to train on: choose a smaller share")
    kept, out = _drawn(count, seed).split([count - held, held])
    inputs, targets = dataset.train_inputs, dataset.train_targets
    rest = dataclasses.replace(dataset, train_inputs=inputs[kept], train_targets=targets[kept])
    return rest, (inputs[out], targets[out])


def _drawn(count: int, seed: int) -> Tensor:
    """The training samples in random order: the first are measured, the last held out."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def evaluate(model: nn.Module, inputs: Inputs, targets: Tensor, loss: str) -> tuple[float, float | None]:
    """Mean loss and accuracy (see ``hits``) in evaluation mode; the model is left in it."""
    model.eval()
    judge = likelihood(loss)
    total, right, terms = 0.0, 0, 0
    size = max(1, EVALUATION_TERMS // judge.valid(targets[:1]).numel())
    for start in range(0, len(targets), size):
        x, y = _read(inputs[start : start + size]), targets[start : start + size]
        outputs, count = model(x), int(judge.valid(y).sum())
        total += judge.loss(outputs, y).item() * count
        right += int(hits(outputs, y))
        terms += count
    return total / terms, None if targets.is_floating_point() else right / terms


def refuse_targets(model: nn.Module, inputs: Inputs, targets: Tensor, loss: str) -> None:
    """Raise ValueError where targets do not fit the outputs, such as labels out of range: a GPU would not say which."""
    with torch.no_grad(), evaluation(model):
        outputs = model(_read(inputs[:1]))
    likelihood(loss).check(outputs.expand(len(targets), *outputs.shape[1:]), targets)


def hits(outputs: Tensor, targets: Tensor) -> Tensor:
    """Number of loss terms whose largest output (last dimension) is the target; 0 where targets are real numbers."""
    if targets.is_floating_point():
        return torch.zeros((), dtype=torch.int64, device=targets.device)
    return (outputs.detach().argmax(-1) == targets).sum()


class Epoch(NamedTuple):
    """One pass over the data: its number from 1, mean loss of its batches, share of hits (None for real targets).

    ``seconds``: from the first batch to the last step.
    """

    number: int
    loss: float
    accuracy: float | None
    seconds: float


@dataclass(frozen=True, eq=False)
class Course:
    """What a training goes through: data in shuffled batches of nearly equal size, at most ``batch``, and a loss.

    Each of the ``ranks`` takes its part of every batch.
    """

    inputs: Inputs
    targets: Tensor
    loss: str
    batch: int
    epochs: int
    augment: Augmentation = "none"
    ranks: Ranks = ALONE

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return math.ceil(len(self.inputs) / self.batch)


def train(
    model: nn.Module,
    course: Course,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    forward: Forward | None = None,
    done: int = 0,
) -> Iterator[Epoch]:
    """Train epoch by epoch, in training mode, after those that are ``done``; the schedule moves with every step.

    ``forward`` takes inputs and targets to outputs where the model alone is not enough.

    Raises:
        ValueError: the targets do not fit the model's outputs.
        Diverged: a loss or a gradient is NaN or infinite.
    """
    refuse_targets(model, course.inputs, course.targets, course.loss)
    for number in range(done + 1, course.epochs + 1):
        model.train()
        try:
            found = _epoch(number, course, optimizer, schedule, forward or (lambda x, y: model(x)))
        except Diverged as error:
            raise Diverged(f"{error} in epoch {number} of {course.epochs}") from error
        if not math.isfinite(found.loss):
            raise Diverged(f"the loss is {found.loss} in epoch {number} of {course.epochs}")
        yield found


def _epoch(
    number: int,
    course: Course,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    forward: Forward,
) -> Epoch:
    device = course.targets.device
    judge, clock = likelihood(course.loss), Stopwatch(device)
    ranks = course.ranks
    losses, terms, right = [], [], []
    with clock.running():
        order = ranks.first(lambda: torch.randperm(len(course.inputs)))
        for batch in _batches(order.to(device), course.batch):
            rows = batch.tensor_split(ranks.count)[ranks.rank]
            x, y = augmented(_read(course.inputs[rows]), course.augment), course.targets[rows]
            optimizer.zero_grad()
            outputs = forward(x, y)
            loss = judge.loss(outputs, y)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
            terms.append(judge.valid(y).sum())
            right.append(hits(outputs, y))
    mean = ranks.mean(torch.stack(losses), torch.stack(terms)).mean().item()
    found = int(ranks.total(torch.stack(right).sum()))
    accuracy = None if course.targets.is_floating_point() else found / int(judge.valid(course.targets).sum())
    return Epoch(number, mean, accuracy, clock.seconds)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's generators of the CPU and of ``device`` seeded within, and as they were afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every CUDA device as well
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def placed(inputs: Inputs, targets: Tensor, device: torch.device | str, dtype: torch.dtype) -> tuple[Inputs, Tensor]:
    """Both on the device; tensors of floats come in ``dtype``, others (labels, tokens) as they are."""
    there = _to(inputs, device, dtype) if isinstance(inputs, Tensor) else inputs.to(device, dtype)
    return there, _to(targets, device, dtype)


def _to(tensor: Tensor, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)


def _read(inputs: Inputs) -> Tensor:
    return inputs if isinstance(inputs, Tensor) else inputs.read()


def _train_part(dataset: Dataset, device: torch.device) -> tuple[Inputs, Tensor]:
    return placed(dataset.train_inputs, dataset.train_targets, device, torch.float32)


def _batches(order: Tensor, size: int) -> tuple[Tensor, ...]:
    """Shuffled indices in batches of nearly equal size: a short last batch would be bad for BatchNorm."""
    return order.tensor_split(math.ceil(len(order) / size))


def _train(model: nn.Module, problem: Problem, data: tuple[Inputs, Tensor], progress: Progress | None) -> None:
    recipe = problem.recipe
    optimizer = torch.optim.SGD(
        model.parameters(), recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    course = Course(*data, problem.loss, recipe.batch, problem.epochs)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, course.epochs * course.steps)
    try:
        for epoch in train(model, course, optimizer, schedule):
            if progress is not None:
                progress(epoch.number, course.epochs, epoch.loss)
    except Diverged as error:
        raise Diverged(f"{problem.label}: {error}") from error
    optimizer.zero_grad()


@torch.no_grad()
def _calibrate(model: nn.Module, fresh: list[_BatchNorm], batches: Iterable[Tensor]) -> None:
    """Give BatchNorm modules without statistics the plain average over some batches of inputs."""
    momenta = [module.momentum for module in fresh]
    model.eval()
    for module in fresh:
        module.train()
        module.momentum = None
    for inputs in batches:
        model(inputs)
    for module, momentum in zip(fresh, momenta, strict=True):
        module.momentum = momentum
