"""The judge of every parameter: the dense Fisher by plain autograd, importing nothing of what it judges.

A column of the Fisher is the gradient of one number: of the outputs of one sample at one token, weighted by one row of
a root of the likelihood's curvature there, all other outputs of the batch weighted by zero. So the column is also
right where samples are coupled. The order is that of ``named_parameters``, tied ones once; a complex number is two.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

IGNORED = -100


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters by name, a tied one under its first name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def run(model: nn.Module, inputs: Any) -> Tensor:
    """The outputs for a tensor, a tuple of arguments or a mapping of keywords."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def real(x: Tensor) -> Tensor:
    """A tensor as a vector of real numbers, real and imaginary parts in turn."""
    x = x.to_dense() if x.is_sparse else x
    return torch.view_as_real(x.resolve_conj()).flatten() if x.is_complex() else x.flatten()


def root(output: Tensor, loss: str) -> Tensor:
    """Rows s (R, C) with sum s s^T = diag(p) - p p^T: sqrt(p_c) (e_c - p); or the identity."""
    unit = torch.eye(len(output), dtype=output.dtype)
    if loss == "gaussian":
        return unit
    p = output.softmax(0)
    return p.sqrt()[:, None] * (unit - p)


def weighted_terms(outputs: Tensor, targets: Tensor, loss: str) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """Every valid loss term, a sample or a sample and a token, with its rows (R, C)."""
    for term in torch.cartesian_prod(*map(torch.arange, outputs.shape[:-1])).view(-1, outputs.ndim - 1).tolist():
        if loss == "gaussian" or targets[tuple(term)] != IGNORED:
            yield tuple(term), root(outputs[tuple(term)].detach(), loss)


def columns(model: nn.Module, inputs: Any, targets: Tensor, loss: str) -> tuple[Tensor, int]:
    """The columns (K, P), one backward pass each, and the number of loss terms."""
    parameters, gathered, terms = list(trained(model).values()), [], 0
    outputs = run(model, inputs)
    for term, rows in weighted_terms(outputs, targets, loss):
        terms += 1
        for row in rows:
            cotangent = torch.zeros_like(outputs)
            cotangent[term] = row
            gradients = torch.autograd.grad(
                outputs, parameters, cotangent, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            gathered.append(torch.cat([real(g) for g in gradients]))
    return torch.stack(gathered), terms


def fisher(model: nn.Module, inputs: Any, targets: Tensor, loss: str) -> Tensor:
    """The type-2 Fisher matrix (P, P), a mean over the loss terms."""
    rows, terms = columns(model, inputs, targets, loss)
    return rows.T @ rows / terms


def positions(model: nn.Module) -> dict[str, Tensor]:
    """Where each number of each parameter lies in the matrix, shaped like the parameter; complex if that is."""
    placed, start = {}, 0
    for name, p in trained(model).items():
        size = real(p).numel()
        indices = torch.arange(start, start + size, dtype=torch.float64)
        placed[name] = torch.view_as_complex(indices.view(*p.shape, 2)) if p.is_complex() else indices.view(p.shape)
        start += size
    return placed
