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
    """Coefficients (L, N) averaged over ``batches`` of the largest size; by name too where ``names`` came.

    A sample has one, the mean over its loss terms: a sequence's tokens share it. ``seen`` counts all batches, smaller
    ones included; ``means`` (L,) and ``dampings`` (L,) are averages over layers' own means and dampings of the batches
    that count.
    """

    average: Tensor
    means: Tensor
    dampings: Tensor
    batches: int = 1
    seen: int = 1
    samples: dict[bytes, Tensor] = field(default_factory=dict)

    def extend(self, other: Shared) -> Shared:
        """With one more batch: a larger one starts the average anew, a smaller one leaves it as it is."""
        samples, seen = {**self.samples, **other.samples}, self.seen + other.seen
        if other.average.shape != self.average.shape:
            larger = other if other.average.shape[1] > self.average.shape[1] else self
            return replace(larger, samples=samples, seen=seen)
        count = self.batches + 1
        fields = {
            name: getattr(self, name) + (getattr(other, name) - getattr(self, name)) / count
            for name in ("average", "means", "dampings")
        }
        return Shared(**fields, batches=count, seen=seen, samples=samples)

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

    def pass_weights(self, batch: Instance, key: Key, natural: bool) -> Tensor:
        """What multiplies the gradients of a batch's samples in every layer, (L, N); ``natural``: over the damping."""
        dampings = self.dampings if natural else torch.ones_like(self.dampings)
        scales = torch.where(dampings > 0, dampings, 1.0)
        return (self.weights(batch.samples, sample_names(batch, key)) / scales[:, None]).to(batch.dtype)


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
    blocks: Sequence[ExactFisher], dampings: Sequence[float], batch: Instance, names: list[bytes] | None = None
) -> tuple[Tensor, Shared]:
    """One batch's exact coefficients (L, R, N), and what is shared of them."""
    per_sample = blocks[0].columns[0].slopes.shape[:2]
    pairs = zip(blocks, dampings, strict=True)
    found = torch.stack([coefficients(b.gram(), b.terms, damping).reshape(per_sample) for b, damping in pairs])
    valid = batch.likelihood.valid(batch.targets).movedim(-1, 0).reshape(per_sample)
    means = (found * valid).sum((1, 2)) / batch.terms
    own = (found * valid).sum(1) / valid.sum(0).clamp(min=1)
    samples = {name: own[:, n] for n, name in enumerate(names or [])}
    return found, Shared(own, means, torch.tensor(dampings, dtype=torch.float64, device=found.device), samples=samples)


def share(
    shared: Shared | None,
    blocks: Sequence[ExactFisher],
    dampings: Sequence[float],
    batch: Instance,
    names: list[bytes] | None = None,
) -> tuple[Tensor, Shared]:
    """The coefficients (L, R, N) that weigh a batch, and what is shared from then on.

    With ``dampings`` the batch is of the first epoch: its own exact coefficients; else those that are shared.
    """
    if dampings or shared is None:
        found, new = exact_coefficients(blocks, dampings, batch, names)
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


def surrogate(block: ExactFisher, mean: float, damping: float) -> Diagonal:
    """The multiple of the identity F with F + damping I = damping / mean I: what a mean coefficient stands for."""
    excess = damping * (1 / mean - 1) if 0 < mean < 1 else 0.0
    return Diagonal(torch.full((block.size,), excess, dtype=block.dtype, device=block.device))
