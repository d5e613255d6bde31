"""Snapshots: a model trained by its recipe before it is measured, and the batch that is measured."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from curvbench.spec import Dataset, Diverged, Problem
from curvbench.training.loop import Course, Progress, _batches, seeded, train
from curvbench.training.parts import Inputs, _drawn, _read, placed

CALIBRATION_BATCHES = 8


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


def _train_part(dataset: Dataset, device: torch.device) -> tuple[Inputs, Tensor]:
    return placed(dataset.train_inputs, dataset.train_targets, device, torch.float32)


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
