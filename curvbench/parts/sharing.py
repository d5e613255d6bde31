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
    """Coefficients (L, N) averaged over batches of the largest size; by name too where ``names`` came.

    A sample has one, the mean over its loss terms: a sequence's tokens share it. ``means`` (L,) and ``dampings`` (L,)
    are averages over layers' own means and dampings. ``counts`` (L,): of the batches in an average; one in which a
    layer has no scores says nothing of it. ``seen`` counts all batches, smaller ones included. Coefficients that are
    ``natural`` have each been divided by the damping of its own batch.
    """

    average: Tensor
    means: Tensor
    dampings: Tensor
    counts: Tensor
    seen: int = 1
    samples: dict[bytes, Tensor] = field(default_factory=dict)
    natural: bool = False

    def extend(self, other: Shared) -> Shared:
        """With one more batch: a larger one starts the average anew, a smaller one leaves it as it is."""
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
        """Coefficients (L, N) for a batch: of its first N positions, or of its samples; unknown ones the mean."""
        found = self.means[:, None].repeat(1, samples)
        if names is None:
            part = self.average[:, :samples]
            found[:, : part.shape[1]] = part
        else:
            for n, name in enumerate(names):
                if name in self.samples:
                    found[:, n] = self.samples[name]
        return found

    def pass_weights(self, batch: Instance, key: Key) -> Tensor:
        """What multiplies the gradients of a batch's samples in every layer, (L, N)."""
        return self.weights(batch.samples, sample_names(batch, key)).to(batch.dtype)

    def surrogates(self, blocks: Sequence[ExactFisher]) -> list[Diagonal]:
        """Per layer the multiple of I with F + damping I = damping / c I: what the mean coefficient c stands for."""
        means = self.means * self.dampings if self.natural else self.means
        pairs = zip(means.tolist(), self.dampings.tolist(), strict=True)
        excess = [damping * (1 / c - 1) if 0 < c < 1 else 0.0 for c, damping in pairs]
        return [
            Diagonal(torch.full((block.size,), multiple, dtype=block.dtype, device=block.device))
            for block, multiple in zip(blocks, excess, strict=True)
        ]


def sample_names(batch: Instance, key: Key) -> list[bytes] | None:
    """A name per sample from its input and target for ``sample``: the same sample has the same name in every batch.

    None for ``position``; no names for ``layer``, so that every sample is unknown.
    """
    if key != "sample":
        return None if key == "position" else []
    assert isinstance(batch.inputs, Tensor), "samples are named by a single input tensor"
    rows = zip(batch.inputs.cpu().contiguous(), batch.targets.cpu().contiguous(), strict=True)
    return [hashlib.sha256(x.numpy().tobytes() + y.numpy().tobytes()).digest() for x, y in rows]


def exact_coefficients(
    blocks: Sequence[ExactFisher], dampings: Sequence[float], batch: Instance, names: list[bytes] | None, natural: bool
) -> tuple[Tensor, Shared]:
    """One batch's exact coefficients (L, R, N), ``natural`` ones over its own damping, and what is shared of them."""
    per_sample = blocks[0].columns[0].slopes.shape[:2]
    pairs = zip(blocks, dampings, strict=True)
    scales = [damping if natural and damping else 1.0 for damping in dampings]
    weights = [coefficients(b.gram(), b.terms, damping).reshape(per_sample) for b, damping in pairs]
    found = torch.stack([w / scale for w, scale in zip(weights, scales, strict=True)])
    valid = batch.likelihood.valid(batch.targets).movedim(-1, 0).reshape(per_sample)
    means = (found * valid).sum((1, 2)) / batch.terms
    own = (found * valid).sum(1) / valid.sum(0).clamp(min=1)
    samples = {name: own[:, n] for n, name in enumerate(names or [])}
    used = torch.tensor(dampings, dtype=torch.float64, device=found.device)
    return found, Shared(own, means, used, (used > 0).to(used.dtype), 1, samples, natural)


def share(
    shared: Shared | None,
    blocks: Sequence[ExactFisher],
    dampings: Sequence[float],
    batch: Instance,
    names: list[bytes] | None = None,
    natural: bool = False,
) -> tuple[Tensor, Shared]:
    """The coefficients (L, R, N) that weigh a batch, and what is shared from then on.

    With ``dampings`` the batch is of the first epoch: its own exact coefficients; else those that are shared.
    """
    if dampings or shared is None:
        found, new = exact_coefficients(blocks, dampings, batch, names, natural)
        return found, shared.extend(new) if shared else new
    columns, samples = blocks[0].columns[0].slopes.shape[:2]
    return shared.weights(samples, names)[:, None].expand(-1, columns, -1), shared


def shared_steps(
    blocks: Sequence[ExactFisher],
    weights: Sequence[Tensor],
    means: Sequence[float],
    own: Sequence[Tensor],
    parts: Sequence[Tensor],
    accelerated: bool = True,
) -> list[Tensor]:
    """Per layer the step for a gradient ``parts``: linear in it, and U w for the batch's ``own``.

    As far as a part lies along ``own`` it becomes the weighted gradient of the batch; the rest is scaled by the mean.
    """
    steps = []
    for block, w, mean, mine, part in zip(blocks, weights, means, own, parts, strict=True):
        along = numerics.inner(part, mine) / max(numerics.inner(mine, mine), torch.finfo(torch.float64).tiny)
        steps.append(along * weighted_sum(block.columns[0], w, accelerated) + mean * (part - along * mine))
    return steps
