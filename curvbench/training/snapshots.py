"""Snapshots: a model trained by its recipe before it is measured, and the batch that is measured."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from curvbench.spec import AdamRecipe, Dataset, Diverged, Problem, Recipe
from curvbench.training.loop import Course, Progress, _batches, seeded, train
from curvbench.training.parts import StoredInputs, _drawn, _read, placed

CALIBRATION_BATCHES = 8


def snapshot(
    problem: Problem,
    seed: int,
    root: Path | None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
) -> nn.Module:
    """The problem's model after ``problem.epochs`` epochs of training, in evaluation mode, on ``device`` in ``dtype``.

    The training runs in float32 by ``problem.recipe``, in shuffled batches of nearly equal size with at most
    ``recipe.batch`` samples. A cosine schedule takes the learning rate to 0. ``progress(epoch, epochs, mean loss)`` is
    called after each epoch.

    A BatchNorm that has seen no batch (at initialisation) takes its statistics from up to eight training batches,
    because with mean 0 and variance 1 the residual branches add up: the logits of a ResNet-110 would reach 1e5.

    The same seed gives the same bits on the same CPU with the same number of threads. The states of torch's generators
    stay as they were.

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
            chosen = _batches(torch.randperm(len(inputs), device="cpu").to(device), problem.recipe.batch)[
                :CALIBRATION_BATCHES
            ]
            _calibrate(model, fresh, (_read(inputs[rows]) for rows in chosen))
    return model.eval().to(dtype)


def batch(
    problem: Problem,
    dataset: Dataset,
    seed: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Inputs and targets of the ``problem.samples`` training samples that are measured, drawn without replacement.

    Floating-point tensors come in ``dtype``, labels and tokens in their own dtype. Raises ValueError if the data set
    has too few samples.
    """
    available = len(dataset.train_inputs)
    if problem.samples > available:
        raise ValueError(f"{problem.label}: samples={problem.samples}, but there are only {available} to train on")
    return _taken(dataset, _drawn(available, seed)[: problem.samples], device, dtype)


def other_batch(
    problem: Problem,
    dataset: Dataset,
    seed: int,
    count: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Inputs and targets of ``count`` training samples, none of which is in ``batch`` with the same seed.

    They are the same for every number of samples that is measured. Raises ValueError if there are too few samples.
    """
    available = len(dataset.train_inputs)
    if problem.samples + count > available:
        raise ValueError(
            f"{problem.label}: {problem.samples} samples and {count} others are more than the {available} to train on"
        )
    return _taken(dataset, _drawn(available, seed)[available - count :], device, dtype)


def _taken(dataset: Dataset, chosen: Tensor, device: torch.device | str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Inputs and targets of the chosen training samples, as a model takes them."""
    inputs, targets = placed(dataset.train_inputs[chosen], dataset.train_targets[chosen], device, dtype)
    return _read(inputs), targets


def _train_part(dataset: Dataset, device: torch.device) -> tuple[StoredInputs, Tensor]:
    return placed(dataset.train_inputs, dataset.train_targets, device, torch.float32)


def _train(model: nn.Module, problem: Problem, data: tuple[StoredInputs, Tensor], progress: Progress | None) -> None:
    recipe = problem.recipe
    optimizer = _optimizer(model, recipe)
    course = Course(*data, problem.loss, recipe.batch, problem.epochs)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, course.epochs * course.steps)
    try:
        for epoch in train(model, course, optimizer, schedule):
            if progress is not None:
                progress(epoch.number, course.epochs, epoch.loss)
    except Diverged as error:
        raise Diverged(f"{problem.label}: {error}") from error
    optimizer.zero_grad()


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    rate, first, decay = recipe.learning_rate, recipe.momentum, recipe.weight_decay
    if isinstance(recipe, AdamRecipe):
        return torch.optim.AdamW(model.parameters(), rate, betas=(first, recipe.second), weight_decay=decay)
    return torch.optim.SGD(model.parameters(), rate, momentum=first, weight_decay=decay)


@torch.no_grad()
def _calibrate(model: nn.Module, fresh: list[_BatchNorm], batches: Iterable[Tensor]) -> None:
    """Give BatchNorm modules that have no statistics the plain average over some batches of inputs."""
    momenta = [module.momentum for module in fresh]
    model.eval()
    for module in fresh:
        module.train()
        module.momentum = None
    for inputs in batches:
        model(inputs)
    for module, momentum in zip(fresh, momenta, strict=True):
        module.momentum = momentum
