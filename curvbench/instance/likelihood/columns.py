"""Cotangents at the outputs for each Fisher type, and the coefficients that combine them to the gradient."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from curvbench.instance.likelihood.base import Likelihood
from curvbench.spec.geometry import canonical_type


def _factor(model: Likelihood, outputs: Tensor, targets: Tensor) -> Iterator[Tensor]:
    """The R cotangents (N, C) at outputs (N, C), one after the other."""
    for part in model.factor_parts(outputs, targets):
        yield from part


def _type_2(model: Likelihood, outputs: Tensor, targets: Tensor, mask: Tensor) -> Iterator[Tensor]:
    """R cotangents (N, C) without tokens; with tokens T R cotangents (N, T, C), each nonzero at one token."""
    if outputs.ndim == 2:
        yield from (score * mask for score in _factor(model, outputs, targets))
        return
    for t in range(outputs.shape[1]):
        scores = _factor(model.at_token(t), outputs[:, t], targets[:, t])
        yield from (_at(t, score * mask[:, t], outputs) for score in scores)


def _at(t: int, score: Tensor, outputs: Tensor) -> Tensor:
    """A cotangent (N, T, C) that is ``score`` (N, C) at token t and zero at every other token."""
    only = torch.zeros_like(outputs)
    only[:, t] = score
    return only


def cotangents(
    model: Likelihood, outputs: Tensor, targets: Tensor, fisher_type: str, mc_samples: int = 1, seed: int = 0
) -> Iterator[Tensor]:
    """Cotangents at the outputs whose score columns v make up F = (1/terms) sum v v^T, each (N, ..., C).

    ``type-2``: R cotangents per term. ``empirical``: one per term. ``mc``: ``mc_samples`` altogether; one draw labels
    all tokens of a sequence, because products of two tokens' scores vanish in expectation.
    """
    fisher_type = canonical_type(fisher_type)
    if mc_samples < 1:
        raise ValueError(f"mc_samples must be at least 1, got {mc_samples}")
    model, mask = model.for_batch(targets), model.valid(targets)[..., None]
    if fisher_type == "type-2":
        yield from _type_2(model, outputs, targets, mask)
    elif fisher_type == "empirical":
        scores = model.residual(outputs, targets) * mask
        yield from [scores] if outputs.ndim == 2 else (_at(t, scores[:, t], outputs) for t in range(outputs.shape[1]))
    elif fisher_type == "mc":
        generator = torch.Generator().manual_seed(seed)
        yield from model.sample(outputs, targets, mc_samples, generator) * mask / mc_samples**0.5
    else:
        raise ValueError(f"fisher_type must be 'type-2', 'mc' or 'empirical', got {fisher_type!r}")


def gradient_coefficients(model: Likelihood, outputs: Tensor, targets: Tensor) -> Tensor:
    """Coefficients a (columns per sample, N) of the type-2 Fisher's columns v with sum_m a_m v_m = the mean gradient.

    The order is that of ``cotangents``. An entry is 0 if no finite coefficient exists.
    """
    valid = model.valid(targets)
    a = model.for_batch(targets).coefficients(outputs, targets) * valid
    if a.ndim == 3:
        a = a.permute(2, 0, 1).flatten(0, 1)
    return a / int(valid.sum())
