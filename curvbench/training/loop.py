"""The training loop, and the loss and accuracy of a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from curvbench.data.augmentation import augmented
from curvbench.instance.likelihood import Loss, likelihood
from curvbench.instance.outputs import arranged, chosen
from curvbench.instance.tape import evaluation
from curvbench.meters.clock import Stopwatch
from curvbench.spec import Augmentation, Diverged
from curvbench.states.ranks import ALONE, Ranks
from curvbench.training.parts import StoredInputs, _read

Progress = Callable[[int, int, float], None]
Forward = Callable[[Tensor, Tensor], Tensor]
EVALUATION_TERMS = 512  # terms per forward pass, because every token of a large vocabulary has many outputs


@torch.no_grad()
def evaluate(model: nn.Module, inputs: StoredInputs, targets: Tensor, loss: Loss) -> tuple[float, float | None]:
    """The mean loss and the accuracy (see ``hits``) in evaluation mode; the model stays in evaluation mode."""
    model.eval()
    criterion = likelihood(loss)
    total, right, terms = 0.0, 0, 0
    size = max(1, EVALUATION_TERMS // targets[:1].numel())
    for start in range(0, len(targets), size):
        x, y = _read(inputs[start : start + size]), targets[start : start + size]
        outputs, y = arranged(chosen(model(x)), y, criterion)
        count = int(criterion.valid(y).sum())
        total += criterion.for_batch(y).loss(outputs, y).item() * count
        right += int(hits(outputs, y))
        terms += count
    return total / terms, None if targets.is_floating_point() else right / terms


def refuse_targets(model: nn.Module, inputs: StoredInputs, targets: Tensor, loss: Loss) -> None:
    """Raise ValueError if targets do not fit the outputs; a GPU would not name a label that is out of range."""
    criterion = likelihood(loss)
    with torch.no_grad(), evaluation(model):
        outputs, first = arranged(chosen(model(_read(inputs[:1]))), targets[:1], criterion)
    everything = first if len(targets) == 1 else targets.reshape(len(targets), *first.shape[1:])
    criterion.check(outputs.expand(len(targets), *outputs.shape[1:]), everything)


def hits(outputs: Tensor, targets: Tensor) -> Tensor:
    """The number of loss terms whose largest output (last dimension) is the target; 0 if targets are real numbers."""
    if targets.is_floating_point():
        return torch.zeros((), dtype=torch.int64, device=targets.device)
    return (outputs.detach().argmax(-1) == targets).sum()


class Epoch(NamedTuple):
    """One pass over the data: its number from 1, the mean loss of its batches, its accuracy and its seconds.

    ``accuracy``: share of hits; None means that the targets are real numbers. ``seconds``: from the first batch to the
    last step.
    """

    number: int
    loss: float
    accuracy: float | None
    seconds: float


@dataclass(frozen=True, eq=False)
class Course:
    """A training's data, loss, batches and epochs. Batches are shuffled, nearly equal and at most ``batch`` samples.

    Each of the ``ranks`` takes its part of every batch. ``max_steps``: the last step, if it comes before the end of all
    epochs.
    """

    inputs: StoredInputs
    targets: Tensor
    loss: Loss
    batch: int
    epochs: int
    augment: Augmentation = "none"
    ranks: Ranks = ALONE
    max_steps: int | None = None

    @property
    def steps(self) -> int:
        """The number of batches in an epoch."""
        return math.ceil(len(self.inputs) / self.batch)

    def steps_until(self, epoch: int) -> int:
        """The number of steps from the beginning to the end of an epoch, which is the last if there are no more."""
        return min(epoch * self.steps, self.max_steps or epoch * self.steps)

    def batches(self, count: int | None = None) -> Iterator[tuple[Any, Tensor]]:
        """Inputs and targets of the first ``count`` batches of a new epoch, the rank's part of each; None means all."""
        order = self.ranks.first(lambda: torch.randperm(len(self.inputs)))
        for batch in _batches(order.to(self.targets.device), self.batch)[:count]:
            rows = batch.tensor_split(self.ranks.count)[self.ranks.rank]
            yield augmented(_read(self.inputs[rows]), self.augment), self.targets[rows]


def train(
    model: nn.Module,
    course: Course,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    forward: Forward | None = None,
    done: int = 0,
) -> Iterator[Epoch]:
    """Train the epochs that follow the first ``done`` ones, in training mode; the schedule moves at every step.

    ``forward`` computes the outputs from inputs and targets; None means that the model alone computes the outputs.

    Raises:
        ValueError: the targets do not fit the model's outputs.
        Diverged: a loss or a gradient is NaN or infinite.
    """
    refuse_targets(model, course.inputs, course.targets, course.loss)
    for number in range(done + 1, course.epochs + 1):
        if course.steps_until(number) == course.steps_until(number - 1):
            return
        model.train()
        try:
            epoch = _epoch(number, course, optimizer, schedule, forward or (lambda x, y: model(x)))
        except Diverged as error:
            raise Diverged(f"{error} in epoch {number} of {course.epochs}") from error
        if not math.isfinite(epoch.loss):
            raise Diverged(f"the loss is {epoch.loss} in epoch {number} of {course.epochs}")
        yield epoch


def _epoch(
    number: int,
    course: Course,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    forward: Forward,
) -> Epoch:
    criterion, clock = likelihood(course.loss), Stopwatch(course.targets.device)
    ranks = course.ranks
    losses, terms, right = [], [], []
    with clock.running():
        for x, y in course.batches(course.steps_until(number) - course.steps_until(number - 1)):
            optimizer.zero_grad()
            outputs, y = arranged(chosen(forward(x, y)), y, criterion)
            loss = criterion.for_batch(y).loss(outputs, y)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
            terms.append(criterion.valid(y).sum())
            right.append(hits(outputs, y))
    mean = ranks.mean(torch.stack(losses), torch.stack(terms)).mean().item()
    hit_count = int(ranks.total(torch.stack(right).sum()))
    term_count = int(ranks.total(torch.stack(terms).sum()))
    accuracy = None if course.targets.is_floating_point() else hit_count / term_count
    return Epoch(number, mean, accuracy, clock.seconds)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's generators of the CPU and of ``device`` inside the block, and restore them afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every CUDA device as well
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _batches(order: Tensor, size: int) -> tuple[Tensor, ...]:
    """Indices in batches of nearly equal size, because BatchNorm's statistics of a short last batch are poor."""
    return order.tensor_split(math.ceil(len(order) / size))
