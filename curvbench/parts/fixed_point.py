"""The fixed point of a map of positive definite matrices, by Anderson's acceleration in their logarithms."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from curvbench.parts.lanczos import NotReached, nonzero, norms

_MEMORY = 5  # past rounds of which a step is made
_LONGEST = 2.0  # change of a logarithm that past rounds may ask for; a longer one is beyond what they have seen
_ROUNDINGS = 16.0  # units in the last place of the largest eigenvalue, which the smallest one may be off by
_RIDGE = 1e-14  # of the largest square in the least squares over past rounds, which nearly depend on each other at last


def fixed_point(image: Callable[[Tensor], Tensor], start: Tensor, rounds: int, tolerance: float) -> Tensor:
    """The fixed point of a map of positive definite matrices (G, n, n), group by group, in float64.

    A round takes one image. Each step is the affine combination of the last images whose residual, the difference of
    the logarithms of image and argument, is least (Anderson 1965). Where residuals grow, the step is the image itself.
    The result is an image whose residual has a Frobenius norm of at most ``tolerance`` in every group, or of the
    rounding of its smallest eigenvalue, so that no eigenvalue changes by a larger share, however small it is.

    Raises:
        NotReached: after all ``rounds`` a residual is above ``tolerance``.
    """
    point = _log(start)
    points: list[Tensor] = []
    residuals: list[Tensor] = []
    for _ in range(rounds):
        argument, rounding = _exp(point)
        result = image(argument)
        residual = _log(result) - point
        if bool((norms(residual) <= rounding.clamp_min(tolerance)).all()):
            return result
        if residuals and float(residual.norm()) > 2 * min(float(past.norm()) for past in residuals):
            points, residuals = [], []
        points, residuals = [*points[-_MEMORY:], point], [*residuals[-_MEMORY:], residual]
        point = point + residual + _change(points, residuals)
    raise NotReached(f"{rounds} rounds did not reach the tolerance {tolerance:g}")


def _change(points: list[Tensor], residuals: list[Tensor]) -> Tensor:
    """What the past rounds change in the logarithm of the last image, (G, n, n)."""
    point, residual = points[-1], residuals[-1]
    if len(points) == 1:
        return torch.zeros_like(point)
    turns = torch.stack(residuals[:-1], 1) - residual[:, None]
    flat = turns.flatten(2)
    gram = flat @ flat.mT
    gram.diagonal(dim1=1, dim2=2).add_(_RIDGE * nonzero(gram.diagonal(dim1=1, dim2=2).amax(-1, keepdim=True)))
    weights = torch.linalg.solve(gram, -flat @ residual.flatten(1)[..., None])
    change = (weights[..., None] * (torch.stack(points[:-1], 1) - point[:, None] + turns)).sum(1)
    return torch.where(norms(change) <= _LONGEST, change, 0.0)


def _log(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    least = torch.finfo(values.dtype).eps * values[:, -1:]  # to which rounding may take an eigenvalue, and below
    return (vectors * torch.maximum(values, least).log()[:, None]) @ vectors.mT


def _exp(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The exponential, and the rounding of the logarithm of its smallest eigenvalue, (G, 1, 1)."""
    values, vectors = torch.linalg.eigh(matrix)
    condition = (values[:, -1] - values[:, 0]).exp()[:, None, None]
    return (vectors * values.exp()[:, None]) @ vectors.mT, _ROUNDINGS * torch.finfo(values.dtype).eps * condition
