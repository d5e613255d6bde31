"""Averages of FNGD's coefficients over the batches of the first epoch, by position in the batch or by sample."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.fisher import ExactFisher
from curvbench.instance import Instance
from curvbench.operators import Diagonal
from curvbench.parts.weighted import coefficients, weighted_sum

Key = Literal["position", "sample", "layer"]


@dataclass(frozen=True, eq=False)
class Shared:
    """FNGD's coefficients, averaged over the batches of the largest size.

    ``average`` (L, N): coefficients by layer and position in the batch. A sample has one coefficient per layer, the
    mean over its loss terms. ``means`` (L,) and ``dampings`` (L,): averages of a layer's mean coefficient and damping.
    ``counts`` (L,): batches in each average; a batch in which a layer has no scores does not count. ``seen``: all
    batches, the smaller ones included. ``samples``: coefficients (L,) by the name of a sample. ``natural``: every
    coefficient was divided by the damping of its batch.
    """

    average: Tensor
    means: Tensor
    dampings: Tensor
    counts: Tensor
    seen: int = 1
    samples: dict[bytes, Tensor] = field(default_factory=dict)
    natural: bool = False

    def extend(self, other: Shared) -> Shared:
        """The averages with one more batch; a larger batch restarts ``average``, a smaller one does not change it."""
        samples, seen = {**self.samples, **other.samples}, self.seen + other.seen
        if other.average.shape != self.average.shape:
            larger = other if other.average.shape[1] > self.average.shape[1] else self
            return replace(larger, samples=samples, seen=seen)
        counts = self.counts + other.counts
        total = counts.clamp(min=1)

        def joined(old: Tensor, new: Tensor) -> Tensor:
            return old + ((new - old).movedim(0, -1) * other.counts / total).movedim(-1, 0)

        average, means = joined(self.average, other.average), joined(self.means, other.means)
        dampings = joined(self.dampings, other.dampings)
        return Shared(average, means, dampings, counts, seen, samples, self.natural)

    def weights(self, samples: int, names: list[bytes] | None = None) -> Tensor:
        """Coefficients (L, N) for a batch of N samples, by position, or by ``names``; the mean if there is none."""
        weights = self.means[:, None].repeat(1, samples)
        if names is None:
            part = self.average[:, :samples]
            weights[:, : part.shape[1]] = part
        else:
            for n, name in enumerate(names):
                if name in self.samples:
                    weights[:, n] = self.samples[name]
        return weights

    def pass_weights(self, batch: Instance, key: Key) -> Tensor:
        """The weights (L, N) of the gradients of a batch's samples in every layer."""
        return self.weights(batch.samples, sample_names(batch, key)).to(batch.dtype)

    def surrogates(self, blocks: Sequence[ExactFisher]) -> list[Diagonal]:
        """Per layer the multiple of I with F + damping I = damping / c I, for the mean coefficient c."""
        means = self.means * self.dampings if self.natural else self.means
        pairs = zip(means.tolist(), self.dampings.tolist(), strict=True)
        excess = [damping * (1 / c - 1) if 0 < c < 1 else 0.0 for c, damping in pairs]
        return [
            Diagonal(torch.full((block.size,), multiple, dtype=block.dtype, device=block.device))
            for block, multiple in zip(blocks, excess, strict=True)
        ]


def sample_names(batch: Instance, key: Key) -> list[bytes] | None:
    """Names of the samples, made from input and target, so that a sample has the same name in every batch.

    ``sample`` gives one name per sample, and ``layer`` an empty list, so that every sample has the mean coefficient.
    None means ``position``: coefficients are found by position.
    """
    if key != "sample":
        return None if key == "position" else []
    assert isinstance(batch.inputs, Tensor), "samples are named by a single input tensor"
    rows = zip(batch.inputs.cpu().contiguous(), batch.targets.cpu().contiguous(), strict=True)
    return [hashlib.sha256(x.numpy().tobytes() + y.numpy().tobytes()).digest() for x, y in rows]


def exact_coefficients(
    blocks: Sequence[ExactFisher], dampings: Sequence[float], batch: Instance, names: list[bytes] | None, natural: bool
) -> tuple[Tensor, Shared]:
    """The exact coefficients (L, R, N) of one batch, and what later batches share of them.

    ``natural``: coefficients are divided by the batch's damping.
    """
    per_sample = blocks[0].columns[0].slopes.shape[:2]
    pairs = zip(blocks, dampings, strict=True)
    scales = [damping if natural and damping else 1.0 for damping in dampings]
    weights = [coefficients(b.gram(), b.terms, damping).reshape(per_sample) for b, damping in pairs]
    exact = torch.stack([w / scale for w, scale in zip(weights, scales, strict=True)])
    valid = batch.likelihood.valid(batch.targets).movedim(-1, 0).reshape(per_sample)
    means = (exact * valid).sum((1, 2)) / batch.terms
    per_position = (exact * valid).sum(1) / valid.sum(0).clamp(min=1)
    samples = {name: per_position[:, n] for n, name in enumerate(names or [])}
    used = torch.tensor(dampings, dtype=torch.float64, device=exact.device)
    return exact, Shared(per_position, means, used, (used > 0).to(used.dtype), 1, samples, natural)


def share(
    shared: Shared | None,
    blocks: Sequence[ExactFisher],
    dampings: Sequence[float],
    batch: Instance,
    names: list[bytes] | None = None,
    natural: bool = False,
) -> tuple[Tensor, Shared]:
    """The coefficients (L, R, N) that weigh a batch, and the coefficients that later batches share.

    With ``dampings`` the batch belongs to the first epoch and has its own exact coefficients; otherwise it takes the
    shared ones.
    """
    if dampings or shared is None:
        exact, new = exact_coefficients(blocks, dampings, batch, names, natural)
        return exact, shared.extend(new) if shared else new
    R, samples = blocks[0].columns[0].slopes.shape[:2]
    return shared.weights(samples, names)[:, None].expand(-1, R, -1), shared


def shared_steps(
    blocks: Sequence[ExactFisher],
    weights: Sequence[Tensor],
    means: Sequence[float],
    batch_parts: Sequence[Tensor],
    parts: Sequence[Tensor],
    accelerated: bool = True,
) -> list[Tensor]:
    """Per layer the step for a gradient ``parts``, which is linear in the gradient.

    The component along the batch's own gradient ``batch_parts`` becomes the batch's weighted gradient U w; the rest is
    scaled by the mean.
    """
    steps = []
    for block, w, mean, of_batch, part in zip(blocks, weights, means, batch_parts, parts, strict=True):
        square = max(numerics.inner(of_batch, of_batch), torch.finfo(torch.float64).tiny)
        along = numerics.inner(part, of_batch) / square
        steps.append(along * weighted_sum(block.columns[0], w, accelerated) + mean * (part - along * of_batch))
    return steps
