"""LNGD's factors of a layer, their damping and the rate of a layer's step (Liu, Li, Gao, Wang 2024).

Phi (G, D, D), or its diagonal (G, D), and psi (G, M) of sum 1 represent diag(psi) (x) Phi. Zeros stand for a block on
which the paper is silent: its step is the plain gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.fisher import ExactFisher
from curvbench.instance import layers as geometry
from curvbench.instance.tape import Tape
from curvbench.operators import Identity, Kronecker, sides
from curvbench.parts.factors import has_diagonal_inputs, is_cut, second_moment
from curvbench.parts.patch_sums import index_sums, patch_lengths, patch_moment
from curvbench.parts.silence import is_product
from curvbench.parts.weighted import responses
from curvbench.spec import Layer

Positions = Literal["exact", "mean"]

_TILE_BYTES = 2**21  # of weighted patches, which the product then finds in the cache
_STRIDE_BYTES = 4096  # rows at a multiple of this distance push each other out of the cache
_STAGGER = 48  # numbers after each row of a tile that would have this distance


def local_factors(
    layer: Layer, tape: Tape, energy: Tensor | None, terms: int, positions: Positions = "exact"
) -> tuple[Tensor, Tensor]:
    """Phi and psi of a layer from its g^2, ``energy`` (N, G, M, S); zeros where the paper is silent."""
    if is_product(layer):
        assert energy is not None, "a product has local gradients"
        return factors(layer, tape.inputs[layer.name], energy, terms, positions)
    groups, outputs, inputs = layer.shape
    return tape.outputs.new_zeros(groups, inputs), tape.outputs.new_zeros(groups, outputs)


def factors(
    layer: Layer, x: Tensor, energy: Tensor, terms: int, positions: Positions = "exact"
) -> tuple[Tensor, Tensor]:
    """Phi (G, D, D) = sum |g|^2 a a^T / terms and psi (G, M) = sum |a|^2 g^2, scaled to sum 1, over all positions.

    ``x`` is the layer's input (N, ...), ``energy`` (N, G, M, S) holds g^2. If every g or a is zero, psi is uniform. If
    D is cut (``is_cut``), or the layer is a lookup, Phi is its diagonal (G, D). ``positions``: the weights |g|^2 of a
    sample's positions in Phi, ``exact`` or their ``mean``.
    """
    weights = energy.sum(2)
    if positions == "mean" and not has_diagonal_inputs(layer):
        moment = patch_moment(layer, x, weights.mean(-1))
    elif positions == "mean":
        moment = _weighted_moment(layer, x, weights.mean(-1, keepdim=True).expand_as(weights))
    else:
        moment = _weighted_moment(layer, x, weights)
    shares = (energy @ patch_lengths(layer, x).to(energy.dtype)[..., None]).sum(0)[..., 0]
    total = shares.sum(-1, keepdim=True)
    psi = torch.where(total > 0, shares / total, torch.full_like(shares, 1 / layer.outputs))
    return moment / terms, psi


def _weighted_moment(layer: Layer, x: Tensor, weights: Tensor) -> Tensor:
    """The sum of w a a^T over positions for weights w (N, G, S), (G, D, D) or a diagonal (G, D)."""
    if layer.kind == "lookup":
        return index_sums(layer, x, weights[:, 0]).sum(0)
    if layer.kind in ("conv1d", "conv2d"):
        moments = (_moment(T) for T in _weighted_patches(layer, x, weights.sqrt()))
        return reduce(torch.add, moments)
    return second_moment(geometry.patches(layer, x) * weights.sqrt()[:, :, None], bands=3)


def _moment(T: Tensor) -> Tensor:
    return T.square().sum(2) if is_cut(T.shape[1]) else numerics.self_product(T, bands=3)


def _samples_per_tile(column_bytes: int, order: int, positions: int) -> int:
    """Samples whose patches stay in the cache until they are multiplied, but at least as many columns as rows.

    A product of fewer columns takes less time than adding it to the others.
    """
    return max(1, max(order, _TILE_BYTES // column_bytes) // positions)


def _weighted_patches(layer: Layer, x: Tensor, roots: Tensor) -> Iterator[Tensor]:
    """The patches of a convolution times ``roots`` (N, G, S), of some samples at a time, (G, D, n S).

    A tile is valid until the next one.
    """
    (G, _, D), S = layer.shape, roots.shape[2]
    samples = min(len(x), _samples_per_tile(G * D * x.element_size(), D, S))
    collides = samples * S * x.element_size() % _STRIDE_BYTES == 0
    scratch = x.new_empty(G, D, samples * S + _STAGGER * collides)
    for part, root in zip(x.split(samples), roots.split(samples), strict=True):
        windows = geometry.windows(layer, geometry.padded(layer, part)).unflatten(1, (G, -1))
        places = windows.shape[-2:]
        rows = scratch[..., : len(part) * S]
        tile = rows.unflatten(2, (len(part), *places))
        weights = root.movedim(0, 1).unflatten(2, places)
        entries = tile[:, : D - layer.bias].unflatten(1, windows.shape[2:5])
        torch.mul(windows.permute(1, 2, 3, 4, 0, 5, 6), weights[:, None, None, None], out=entries)
        if layer.bias:
            tile[:, -1] = weights
        yield rows


def mean_within(diagonal: Tensor, least: float, most: float) -> Tensor:
    """LNGD's damping of a factor with the diagonal (G, n): its mean, within bounds, (G,)."""
    return diagonal.mean(-1).clamp(least, most)


def damped_inverses(phi: Tensor, psi: Tensor, least: float, most: float) -> tuple[Tensor, Tensor]:
    """The inverses of both factors, each damped by ``mean_within`` the bounds; ones where the paper is silent."""
    if _is_silent(psi):
        return torch.ones_like(phi), torch.ones_like(psi)
    inverse = sides.damped_inverse(phi, mean_within(sides.main_diagonal(phi), least, most))
    return inverse, 1 / (psi + mean_within(psi, least, most)[:, None])


def scaled_step(part: Tensor, inverse: Tensor, scale: Tensor) -> Tensor:
    """The inverses of ``damped_inverses`` applied to a layer's part of a gradient, (P,) -> (P,)."""
    return (scale[..., None] * sides.from_right(part.reshape(*scale.shape, -1), inverse)).flatten()


def damped_product(psi: Tensor, phi: Tensor, least: float, most: float) -> Kronecker | Identity:
    """The product whose inverse ``damped_inverses`` make."""
    if _is_silent(psi):
        return Identity(psi.numel() * phi.shape[-1], psi.dtype, psi.device)
    dampings = [mean_within(diagonal, least, most) for diagonal in (psi, sides.main_diagonal(phi))]
    return Kronecker.batched(psi, phi).damped_factors(*dampings)


def _is_silent(psi: Tensor) -> bool:
    """Whether psi stands for a block on which the paper is silent; any other one has the sum 1."""
    return not bool(psi.any())


def rated(
    psis: Sequence[Tensor],
    steps: Sequence[Tensor],
    gradients: Sequence[Tensor],
    scores: Sequence[ExactFisher],
    terms: int,
    mu: float,
) -> list[Tensor]:
    """LNGD's Eq. 12: every layer's step p times <p, g> / (p^T F p + mu), with the layer's empirical Fisher F.

    A step is 0 if its denominator is 0. Without ``scores`` the paper's estimate of p^T F p serves, <p, g>^2 / terms.
    Where the paper is silent, the step stays as it is.
    """
    gains = [numerics.inner(p, g) for p, g in zip(steps, gradients, strict=True)]
    estimates = [gain**2 / terms for gain in gains]
    curvatures = [_curvature(f, p) for f, p in zip(scores, steps, strict=True)] if scores else estimates
    rates = [g / (c + mu) if c + mu > 0 else 0.0 for g, c in zip(gains, curvatures, strict=True)]
    return [p if _is_silent(psi) else rate * p for psi, p, rate in zip(psis, steps, rates, strict=True)]


def _curvature(block: ExactFisher, step: Tensor) -> float:
    """p^T F p for a layer's step p (P,)."""
    return numerics.sum_squares(responses(block.columns[0], step)) / block.terms
