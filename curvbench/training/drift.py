"""The weights along a drift: one training that is the same for every probe, kept at some of its steps."""

from __future__ import annotations

import copy
import itertools
import math
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from curvbench.spec import Diverged, Drift, Problem
from curvbench.training.loop import Course, seeded, train
from curvbench.training.parts import placed

Weights = dict[str, Tensor]


def drifted(problem: Problem, model: nn.Module, drift: Drift, seed: int, root: Path | None) -> dict[int, Weights]:
    """The state dicts of the model by age: at the step ``drift.start``, which is age 0, and k steps later.

    The model stays as it is. It trains in its own dtype, on its device. The same seed gives the same bits on the same
    CPU with the same number of threads.

    Raises:
        Skip: the data set is absent.
        Diverged: a weight is NaN or infinite.
    """
    model = copy.deepcopy(model)
    some = next(model.parameters())
    dataset = problem.data(root)
    inputs, targets = placed(dataset.train_inputs, dataset.train_targets, some.device, some.dtype)
    course = Course(inputs, targets, problem.loss, drift.batch, epochs=0)
    course = replace(course, epochs=math.ceil((drift.start + drift.ages[-1]) / course.steps))
    kept = _Kept(model, {drift.start + age for age in (0, *drift.ages)})
    optimizer = _optimizer(model, drift)
    optimizer.register_step_post_hook(lambda *_: kept.after_step())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    with seeded(seed, some.device), suppress(_Enough):
        for _ in train(model, course, optimizer, schedule):
            pass
    return {step - drift.start: weights for step, weights in kept.weights.items()}


def _optimizer(model: nn.Module, drift: Drift) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    if drift.optimizer == "adam":
        return torch.optim.Adam(trained, drift.lr, betas=(drift.momentum, 0.999))
    return torch.optim.SGD(trained, drift.lr, momentum=drift.momentum)


class _Enough(Exception):
    """Ends a training at the last step that is kept."""


class _Kept:
    """Copies of a model's weights at some steps; raises _Enough at the last of them."""

    def __init__(self, model: nn.Module, steps: set[int]) -> None:
        self.model, self.steps, self.weights = model, steps, dict[int, Weights]()
        self._counter: Any = itertools.count(1)
        self._keep(0)

    def after_step(self) -> None:
        step = next(self._counter)
        self._keep(step)
        if step == max(self.steps):
            raise _Enough

    def _keep(self, step: int) -> None:
        if step not in self.steps:
            return
        weights = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        if not all(bool(tensor.isfinite().all()) for tensor in weights.values()):
            raise Diverged(f"the lr of the drift is too large: the weights are no longer finite at step {step}")
        self.weights[step] = weights
