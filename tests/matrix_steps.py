"""Networks whose gradients have full rank, trained by a probe and by a step that is written by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import curvbench as cb

Array = np.ndarray[Any, Any]
Step = Callable[[Array, dict[str, Any]], Array]


def flat(*widths: int) -> tuple[nn.Sequential, Tensor, Tensor]:
    """Layers without bias on more samples than widths, so that the gradients of square layers have full rank."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs, bias=False), nn.Tanh()]
    model = nn.Sequential(*layers[:-1]).double()
    return model, torch.randn(9, widths[0]).double(), torch.randn(9, widths[-1]).double()


def loss_of(model: nn.Module, x: Tensor, y: Tensor, t: int) -> Tensor:
    """The loss of the batch of step t, which are seven of the samples."""
    part = torch.arange(t, t + 7) % len(x)
    return (model(x[part]) - y[part]).square().sum(1).mean() / 2


def trained(probe: cb.Probe, *widths: int, steps: int = 9, rate: float = 0.05, **options: Any) -> list[Tensor]:
    """The weights after some steps with a probe."""
    model, x, y = flat(*widths)
    optimizer = cb.NaturalGradient(model, probe, lr=rate, loss="gaussian", **options)
    for t in range(steps):
        optimizer.zero_grad()
        loss_of(model, x, y, t).backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


def by_optimizer(make: Callable[[list[nn.Parameter]], Any], *widths: int, steps: int = 9) -> list[Tensor]:
    """The weights after as many steps with an optimizer of torch."""
    model, x, y = flat(*widths)
    optimizer = make(list(model.parameters()))
    for t in range(steps):
        optimizer.zero_grad()
        loss_of(model, x, y, t).backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


def by_hand(step: Step, *widths: int, steps: int = 9, rate: float = 0.05) -> list[Tensor]:
    """The weights after as many steps ``step(gradient, state)`` of every matrix, with a state of its own."""
    model, x, y = flat(*widths)
    states: list[dict[str, Any]] = [{} for _ in model.parameters()]
    for t in range(steps):
        gradients = torch.autograd.grad(loss_of(model, x, y, t), list(model.parameters()))
        with torch.no_grad():
            for p, g, state in zip(model.parameters(), gradients, states, strict=True):
                p.sub_(rate * torch.from_numpy(step(g.numpy(), state)))
    return [p.detach() for p in model.parameters()]


def eigenvectors(matrix: Array) -> Array:
    """The largest eigenvalue's first."""
    return np.linalg.eigh(matrix)[1][:, ::-1]
