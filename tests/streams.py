"""Judges of methods that follow a stream of vectors: dense float64 averages, and how near a rank can come to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


def dense_ema(vectors: Sequence[Tensor], decay: float, start: Tensor | float = 0.0) -> Tensor:
    """G <- decay G + (1 - decay) d d^T over the vectors, from ``start`` times the identity or a matrix."""
    eye = torch.eye(len(vectors[0]), dtype=torch.float64)
    average = start * eye if isinstance(start, float) else start
    for d in vectors:
        average = decay * average + (1 - decay) * torch.outer(d.double(), d.double())
    return average


def truncated(matrix: Tensor, rank: int) -> Tensor:
    """The nearest matrix of that rank to a positive semi-definite one."""
    values, basis = torch.linalg.eigh(matrix)
    return basis[:, -rank:] @ torch.diag(values[-rank:]) @ basis[:, -rank:].T


class Tracking(NamedTuple):
    """Relative Frobenius error against the dense average, and the least that any matrix of the rank can have."""

    error: float
    best: float


def tracking(approximation: Tensor, average: Tensor, rank: int) -> Tracking:
    """How well a matrix of some rank follows the average, beside how well that is possible."""
    scale = average.norm()
    best = (truncated(average, rank) - average).norm() / scale
    return Tracking(float((approximation - average).norm() / scale), float(best))


def stream(count: int, size: int, correlation: float = 0.0, seed: int = 0) -> list[Tensor]:
    """Normal vectors, any two with this correlation."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(size, dtype=torch.float64, generator=generator)
    own = torch.randn(count, size, dtype=torch.float64, generator=generator)
    return list(correlation**0.5 * common + (1 - correlation) ** 0.5 * own)


def orthogonal_stream(count: int, size: int, seed: int = 0) -> list[Tensor]:
    """Orthogonal vectors of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(size, count, dtype=torch.float64, generator=generator)).Q
    return list((q * torch.arange(1, count + 1)).T)


def relative(value: Tensor, truth: Tensor) -> float:
    """|value - truth| / |truth|."""
    return float((value - truth).norm() / truth.norm())
