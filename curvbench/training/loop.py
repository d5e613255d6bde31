"""The training loop; and snapshots: a problem's model as it is measured, at initialisation or after plain SGD."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from curvbench.data.augmentation import augmented
from curvbench.instance.likelihood import likelihood
from curvbench.instance.tape import evaluation
from curvbench.meters.clock import Stopwatch
from curvbench.spec import Augmentation, Diverged
from curvbench.states.ranks import ALONE, Ranks
from curvbench.training.parts import Inputs, _read

Progress = Callable[[int, int, float], None]
Forward = Callable[[Tensor, Tensor], Tensor]
EVALUATION_TERMS = 512  # at a time: tokens of a large vocabulary have many outputs


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


def _batches(order: Tensor, size: int) -> tuple[Tensor, ...]:
    """Shuffled indices in batches of nearly equal size: a short last batch would be bad for BatchNorm."""
    return order.tensor_split(math.ceil(len(order) / size))
