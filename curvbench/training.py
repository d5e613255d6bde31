"""Snapshots: a problem's model as it is measured, at initialisation or after plain SGD."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from curvbench.likelihood import likelihood
from curvbench.spec import Dataset, Problem

Progress = Callable[[int, int, float], None]

CALIBRATION_BATCHES = 8
EVALUATION_BATCH = 512


class Diverged(Exception):
    """Training ended in a loss that is not finite; the text names epoch and loss."""


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
    with _seeded(seed, device):
        model = problem.model().to(device, torch.float32)
        fresh = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.num_batches_tracked == 0]
        if problem.epochs > 0:
            _train(model, problem, _train_part(problem.data(root), device), progress)
        elif fresh:
            inputs, _ = _train_part(problem.data(root), device)
            chosen = _batches(len(inputs), problem.recipe.batch, device)[:CALIBRATION_BATCHES]
            _calibrate(model, fresh, (inputs[rows] for rows in chosen))
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
    chosen = torch.randperm(available, generator=torch.Generator().manual_seed(seed))[: problem.samples]
    inputs, targets = (_to(t[chosen], device, dtype) for t in (dataset.train_inputs, dataset.train_targets))
    return inputs, targets


@torch.no_grad()
def accuracy(model: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    """Share of loss terms whose largest output (last dimension) is the target; in the mode the model is in."""
    parts = zip(inputs.split(EVALUATION_BATCH), targets.split(EVALUATION_BATCH), strict=True)
    hits = sum(int((model(x).argmax(-1) == y).sum()) for x, y in parts)
    return hits / targets.numel()


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's generators of the CPU and of ``device`` seeded within, and as they were afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every CUDA device as well
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _to(tensor: Tensor, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)


def _train_part(dataset: Dataset, device: torch.device) -> tuple[Tensor, Tensor]:
    return _to(dataset.train_inputs, device, torch.float32), _to(dataset.train_targets, device, torch.float32)


def _batches(count: int, size: int, device: torch.device) -> tuple[Tensor, ...]:
    """Shuffled indices in batches of nearly equal size: a short last batch would be bad for BatchNorm."""
    return torch.randperm(count).to(device).tensor_split(math.ceil(count / size))


def _train(model: nn.Module, problem: Problem, data: tuple[Tensor, Tensor], progress: Progress | None) -> None:
    recipe = problem.recipe
    optimizer = torch.optim.SGD(
        model.parameters(), recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    steps = problem.epochs * math.ceil(len(data[0]) / recipe.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for epoch in range(1, problem.epochs + 1):
        loss = _epoch(model, problem, data, optimizer, schedule)
        if not math.isfinite(loss):
            raise Diverged(f"{problem.label}: the loss is {loss} in epoch {epoch} of {problem.epochs}")
        if progress is not None:
            progress(epoch, problem.epochs, loss)
    optimizer.zero_grad()


def _epoch(
    model: nn.Module,
    problem: Problem,
    data: tuple[Tensor, Tensor],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> float:
    """One pass over the data; the mean of the batches' losses."""
    inputs, targets = data
    losses = []
    for rows in _batches(len(inputs), problem.recipe.batch, inputs.device):
        optimizer.zero_grad()
        loss = likelihood(problem.loss).loss(model(inputs[rows]), targets[rows])
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    return torch.stack(losses).mean().item()


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
