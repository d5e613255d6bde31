"""Eigenbases that follow averaged moments of a layer's matrices: by eigh at first, then by power steps (SOAP).

A state holds the moments S of both sides of a layer and orthonormal bases Q of them, (G, n, n). None stands for a side
that keeps the identity: one longer than a limit, or of a block without sides of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.instance import Instance
from curvbench.operators import sides
from curvbench.parts.matrix_moments import Gradients, OfGradient, Reader, Sample, Source, is_plain, matrices, shapes
from curvbench.parts.storage import too_large

Pair = tuple[Tensor | None, Tensor | None]
"""What the output side and the input side of a layer have."""

START = 0.1  # every eigenvalue of KL before the first gradient, as in public code
LARGEST_ROOT = 4000  # of the bounds of 1 / sqrt(eigenvalue) in public code, which are max(10, min(n, 4000))


class Turned(NamedTuple):
    """A layer's averaged moments and their bases, and of KL methods the eigenvalues of both sides, (G, M) and (G, D).

    ``values`` is empty without KL. A side that keeps the identity has no moment, and eigenvalues all the same.
    """

    moments: Pair = (None, None)
    bases: Pair = (None, None)
    values: tuple[Tensor, ...] = ()

    def into(self, V: Tensor) -> Tensor:
        """Q_l^T V Q_r for V (G, M, D)."""
        return sides.from_right(sides.from_left(sides.transposed(self.bases[0]), V), self.bases[1])

    def back(self, V: Tensor) -> Tensor:
        """Q_l V Q_r^T for V (G, M, D)."""
        return sides.from_right(sides.from_left(self.bases[0], V), sides.transposed(self.bases[1]))


def sided(instance: Instance, source: Source, longest: int) -> list[tuple[bool, bool]]:
    """Per layer whether its output side and its input side have bases: those of at most ``longest`` rows."""
    pairs = zip(instance.layers, shapes(instance, source), strict=True)
    plain = [(is_plain(layer, shape), shape) for layer, shape in pairs]
    return [(not none and M <= longest, not none and D <= longest) for none, (_, M, D) in plain]


def refusal(instance: Instance, source: Source, longest: int) -> str | None:
    """Why moments and bases of all sides may not be stored; None means that they may."""
    pairs = zip(shapes(instance, source), sided(instance, source, longest), strict=True)
    numbers = sum(2 * G * (M**2 * has_left + D**2 * has_right) for (G, M, D), (has_left, has_right) in pairs)
    return too_large("moments and bases", numbers, instance.dtype)


def first(sample: Sample, has: tuple[bool, bool], decay: float, zeros: Tensor) -> Turned:
    """Moments that begin with 1 - ``decay`` times those of a sample, and their eigenvectors, the largest value's first.

    ``zeros``: the layer's shape (G, M, D).
    """
    G, M, D = zeros.shape
    left = sample.outputs(zeros.new_zeros(G, M, M), decay) if has[0] else None
    right = sample.inputs(zeros.new_zeros(G, D, D), decay) if has[1] else None
    return Turned((left, right), (_descending(left), _descending(right)))


def first_of_kl(sample: Sample, has: tuple[bool, bool], decay: float, zeros: Tensor) -> Turned:
    """The same for KL's moments, which are means over the other side."""
    (left, right), bases, _ = first(sample, has, decay, zeros)
    moments = (left if left is None else left / zeros.shape[2], right if right is None else right / zeros.shape[1])
    return Turned(moments, bases, (zeros[:, :, 0] + START, zeros[:, 0] + START))


def _descending(moment: Tensor | None) -> Tensor | None:
    return None if moment is None else numerics.eigh(moment)[1].flip(-1)


def averaged(turned: Turned, sample: Sample, decay: float) -> Turned:
    """The moments V V^T and V^T V with one more sample."""
    left, right = turned.moments
    new = left if left is None else sample.outputs(left, decay), right if right is None else sample.inputs(right, decay)
    return turned._replace(moments=new)


def averaged_of_kl(turned: Turned, sample: Sample, decay: float, clamp: bool = True) -> Turned:
    """KL's moments and eigenvalues with one more sample, both sides from the old ones (Jacobi).

    S_l takes in V Q_r diag(1 / lambda_r) Q_r^T V^T / D, and lambda_l the means over inputs of
    (Q_l^T V Q_r)^2 / lambda_r. ``clamp``: eigenvalues keep the bounds of public code.
    """
    (left, right), (over_outputs, over_inputs) = turned.moments, (1 / values for values in turned.values)
    M, D = over_outputs.shape[-1], over_inputs.shape[-1]
    moments = (
        left if left is None else sample.outputs(left, decay, over_inputs),
        right if right is None else sample.inputs(right, decay, over_outputs),
    )
    new = ((sample.squares @ over_inputs[:, :, None])[:, :, 0] / D, (over_outputs[:, None] @ sample.squares)[:, 0] / M)
    values = tuple(torch.lerp(n, old, decay) for n, old in zip(new, turned.values, strict=True))
    if clamp:
        values = tuple(v.clamp_min(max(10, min(v.shape[-1], LARGEST_ROOT)) ** -2) for v in values)
    return Turned(moments, turned.bases, values)


def data_gradient(batch: Instance, reader: Reader, source: Source) -> Sequence[Tensor]:
    """The gradient that steps, of the data's labels, as the layers' matrices (G, M, D)."""
    if isinstance(reader, Gradients) and source == "bg_data":
        return reader.matrices
    return matrices(batch.gradient(), shapes(batch, source))


def rotated(turned: Turned, sample: Sample, V: Tensor) -> Tensor:
    """Q_l^T V Q_r, which a sample of this V has already."""
    return sample.rotated if isinstance(sample, OfGradient) and sample.V is V else turned.into(V)


def power_step(turned: Turned) -> Turned:
    """The bases after one power step each, Q <- qr(S Q)."""
    pairs = zip(turned.moments, turned.bases, strict=True)
    left, right = (None if S is None or Q is None else numerics.orthonormal(_powers(S, Q).mT) for S, Q in pairs)
    return turned._replace(bases=(left, right))


def sorted_step(turned: Turned, entries: Tensor) -> tuple[Turned, Tensor]:
    """The same for the columns of Q sorted by diag(Q^T S Q), descending; ``entries`` (G, M, D) are sorted along."""
    bases: list[Tensor | None] = []
    for dim, (S, Q) in enumerate(zip(turned.moments, turned.bases, strict=True), start=1):
        if S is None or Q is None:
            bases.append(None)
            continue
        powers = _powers(S, Q)
        order = (Q.mT * powers).sum(2).argsort(-1, descending=True)
        groups = torch.arange(len(order), device=order.device)[:, None]
        bases.append(numerics.orthonormal(powers[groups, order].mT))
        places = order[:, :, None] if dim == 1 else order[:, None]
        entries = entries.gather(dim, places.expand_as(entries))
    return turned._replace(bases=(bases[0], bases[1])), entries


def _powers(S: Tensor, Q: Tensor) -> Tensor:
    """(S Q)^T for symmetric S, because rows are sorted at once and their transpose has LAPACK's order of entries."""
    return Q.mT @ S
