"""Which sample a row of a use belongs to, found by derivatives: no shape is guessed.

Two backward passes have the same random cotangents, but in the second those of sample n are multiplied by a weight w_n
of its own. A row of sample n then has w_n times its gradient; a row that several samples share has no such factor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from curvbench.uses.calls import Call


@dataclass(frozen=True)
class Order:
    """Samples lie along one dimension of the gradient: alone, or folded with others (``outer`` or ``inner`` index)."""

    dim: int
    folded: Literal["no", "outer", "inner"] = "no"

    def by_sample(self, tensor: Tensor, rows: Sequence[int], samples: int) -> Tensor:
        """The tensor as (N, S, ...): a sample's rows, then the dimensions that are no ``rows``, in their order."""
        at, places = self.dim, set(rows)
        if self.folded != "no":
            tensor = tensor.unflatten(self.dim, (samples, -1) if self.folded == "outer" else (-1, samples))
            places = {d + (d > self.dim) for d in rows} | {self.dim + 1}
            at += self.folded == "inner"
        others = sorted(places - {at})
        kept = [d for d in range(tensor.ndim) if d not in places]
        return tensor.permute(at, *others, *kept).reshape(samples, -1, *(tensor.shape[d] for d in kept))


@dataclass(frozen=True, eq=False)
class Gather:
    """Any other order: ``owner`` (N, S) numbers the rows of each sample; the count of all rows means a row of zeros."""

    owner: Tensor

    def by_sample(self, tensor: Tensor, rows: Sequence[int], samples: int) -> Tensor:
        """The tensor as (N, S, ...), as ``Order.by_sample``."""
        kept = [d for d in range(tensor.ndim) if d not in rows]
        flat = tensor.permute(*rows, *kept).flatten(0, len(rows) - 1)
        padded = torch.cat([flat, flat.new_zeros(1, *flat.shape[1:])])
        return padded[self.owner.to(flat.device)]


Layout = Order | Gather
_NOISE = 64  # units in the last place of the largest gradient: a difference of that size is rounding in any row


def sample_weights(samples: int) -> Tensor:
    """Weights w_n between 1/2 and 3/2, all different and in random order, (N,) in float64."""
    order = torch.randperm(samples, device="cpu", generator=torch.Generator().manual_seed(0))
    return 0.5 + (order.double() + 0.5) / samples


def random_cotangent(outputs: Tensor) -> Tensor:
    """Random numbers for the outputs (N, ..., C), always the same ones."""
    return torch.randn(outputs.shape, device="cpu", generator=torch.Generator().manual_seed(0)).to(outputs)


def layout(call: Call, plain: Tensor, weighted: Tensor, weights: Tensor, tolerance: float) -> Layout | None:
    """The order of a call's rows; None means that samples share rows.

    Args:
        call: the call.
        plain: its gradient for random cotangents.
        weighted: its gradient for the cotangents times ``weights``.
        weights: the weight of every sample, (N,).
        tolerance: the largest relative difference that is rounding.
    """
    if not plain.numel():
        return Gather(torch.zeros(len(weights), 1, dtype=torch.int64, device="cpu"))
    largest = _largest(call, weighted.abs())
    noise = _NOISE * torch.finfo(weighted.dtype).eps * largest.max()
    limits = torch.maximum(tolerance * largest, noise)
    for order in _orders(call, len(weights)):
        expected = plain * _along(order, weights.to(plain), plain)
        if bool((_largest(call, expected.sub_(weighted).abs()) <= limits).all()):
            return order
    by_row = limits.permute(*call.rows, *call.kept).flatten()
    return _gathered(call, _rows(call, plain), _rows(call, weighted), weights.to(plain), by_row)


def _largest(call: Call, sizes: Tensor) -> Tensor:
    """The largest entry of every row, with 1 in place of the weight's dimensions; without a copy row by row."""
    return sizes.amax(call.kept, keepdim=True) if call.kept else sizes


def _rows(call: Call, gradient: Tensor) -> Tensor:
    """A gradient row by row, (rows, entries of the weight)."""
    kept = call.kept
    size = math.prod(call.shape[d] for d in kept)
    return gradient.permute(*call.rows, *kept).reshape(-1, size)


def _orders(call: Call, samples: int) -> Iterator[Order]:
    yield from (Order(d) for d in call.rows if call.shape[d] == samples)
    for d in call.rows:
        if call.shape[d] > samples and call.shape[d] % samples == 0:
            yield Order(d, "outer")
            yield Order(d, "inner")


def _along(order: Order, weights: Tensor, like: Tensor) -> Tensor:
    """The weights along a dimension of a tensor, for a product with it."""
    repeat = like.shape[order.dim] // len(weights)
    if order.folded == "outer":
        weights = weights.repeat_interleave(repeat)
    elif order.folded == "inner":
        weights = weights.repeat(repeat)
    return weights.reshape(-1, *[1] * (like.ndim - 1 - order.dim))


def _gathered(call: Call, a: Tensor, b: Tensor, weights: Tensor, limits: Tensor) -> Gather | None:
    """The sample of every row by the ratio of its gradients; rows without gradient belong to nobody."""
    if not call.rows:
        return None
    squares = a.square().sum(1)
    ratio = (a * b).sum(1) / torch.where(squares > 0, squares, 1.0)
    ascending, places = weights.sort()
    nearest = torch.bucketize(ratio, (ascending[1:] + ascending[:-1]) / 2)
    owner = places[nearest.clamp(0, len(weights) - 1)]
    if bool(((b - a * weights[owner][:, None]).abs().amax(1) > limits).any()):
        return None
    owner = torch.where(squares > 0, owner, len(weights))
    return Gather(_table(owner, len(weights)))


def _table(owner: Tensor, samples: int) -> Tensor:
    """The numbers of each sample's rows in their order, (N, S), filled with the number of all rows."""
    counts = torch.bincount(owner, minlength=samples + 1)[:samples]
    table = owner.new_full((samples, max(1, int(counts.max()))), len(owner))
    order = owner.argsort(stable=True)
    of_row = owner[order]
    own = of_row < samples
    starts = counts.cumsum(0) - counts
    slot = torch.arange(len(owner), device=owner.device)[own] - starts[of_row[own]]
    table[of_row[own], slot] = order[own]
    return table


def first_order(call: Call, samples: int) -> Order | None:
    """The first order that fits the shapes, for a call on which the outputs do not depend."""
    return next(_orders(call, samples), None)
