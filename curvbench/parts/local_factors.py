"""LNGD's factors of a layer, their damping and the rate of a layer's step (Liu, Li, Gao, Wang 2024).

Phi (G, D, D), or its diagonal (G, D), and psi (G, M) of sum 1 represent diag(psi) (x) Phi. Zeros stand for a block on
which the paper is silent: its step is the plain gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.fisher import ExactFisher
from curvbench.instance import layers as geometry
from curvbench.instance.tape import Tape
from curvbench.operators import Identity, Kronecker, sides
from curvbench.parts.factors import second_moment
from curvbench.parts.patch_sums import index_sums
from curvbench.parts.silence import is_product
from curvbench.spec import Layer


def local_factors(layer: Layer, tape: Tape, energy: Tensor | None, terms: int) -> tuple[Tensor, Tensor]:
    """Phi and psi of a layer from its g^2, ``energy`` (N, G, M, S); zeros where the paper is silent."""
    if is_product(layer):
        assert energy is not None, "a product has local gradients"
        return factors(layer, tape.inputs[layer.name], energy, terms)
    groups, outputs, inputs = layer.shape
    return tape.outputs.new_zeros(groups, inputs), tape.outputs.new_zeros(groups, outputs)


def factors(layer: Layer, x: Tensor, energy: Tensor, terms: int) -> tuple[Tensor, Tensor]:
    """Phi (G, D, D) = sum |g|^2 a a^T / terms and psi (G, M) = sum |a|^2 g^2, scaled to sum 1, over all positions.

    ``x`` is the layer's input (N, ...), ``energy`` (N, G, M, S) holds g^2. If every g or a is zero, psi is uniform. If
    D is cut (``second_moment``), or the layer is a lookup, Phi is its diagonal (G, D).
    """
    moment, lengths = _weighted_moment(layer, x, energy.sum(2, keepdim=True))
    shares = torch.einsum("ngms,ngs->gm", energy, lengths)
    total = shares.sum(-1, keepdim=True)
    psi = torch.where(total > 0, shares / total, torch.full_like(shares, 1 / layer.outputs))
    return moment / terms, psi


def _weighted_moment(layer: Layer, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of w a a^T over positions for weights w (N, G, 1, S), and |a|^2 (N, G, S)."""
    if layer.kind == "lookup":
        return index_sums(layer, x, weights[:, 0, 0]).sum(0), (x >= 0)[:, None].to(weights.dtype)
    X = geometry.patches(layer, x)
    # ``patch_moment`` would need equal weights
    return second_moment(X * weights.sqrt(), bands=3), X.square().sum(2)


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
    curvatures = [f.quadratic(p) for f, p in zip(scores, steps, strict=True)] if scores else estimates
    rates = [g / (c + mu) if c + mu > 0 else 0.0 for g, c in zip(gains, curvatures, strict=True)]
    return [p if _is_silent(psi) else rate * p for psi, p, rate in zip(psis, steps, rates, strict=True)]
