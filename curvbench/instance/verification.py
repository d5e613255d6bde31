"""Checks by passes over the whole batch: score columns against plain autograd, random models, coupled samples.

For any cotangents u_n and any weights w_n, the sum of w_n times sample n's column is the gradient of sum_n w_n <u_n,
f_n>. The columns come from a traced pass, without the w_n in its backward pass; the gradient comes from a pass of the
plain model by plain autograd. A row of another sample, and any use that was not seen, changes the sum.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from curvbench.instance import layers as geometry
from curvbench.instance.contents import RandomStates
from curvbench.instance.placing import densified
from curvbench.instance.refusals import agree, deep_rounding, refuse_random
from curvbench.instance.tape import Tape
from curvbench.spec.geometry import Layer, LayerSize
from curvbench.uses.owners import random_cotangent

GRAPH_BYTES = 2**32  # that one verifying pass may keep: a larger batch is verified in parts
_TENSORS_PER_OUTPUT = 6  # a pass keeps activations, normalizations and gradients beside a layer's output
_FEW = 8  # samples, of which any two may be coupled: a larger batch is split once
_TILE_BYTES = 2**22  # of patches that are formed at the same time, and that stay in cache until they are multiplied
# A model may compute in fewer digits inside. What three times the cotangents add to three times the gradient is its own
# rounding; a difference of that size explains itself, up to a share of the layer's gradient, or of the largest one.
_FACTOR, _COARSEST, _FAINTEST = 30.0, 1e-3, 1e-6
_NOISE = 100  # units in the last place of the network's gradient: a smaller gradient of a layer is rounding


class Passes(Protocol):
    """The members of an instance that verification needs: its batch, parts and orders of it, and passes."""

    samples: int
    inputs: Any
    layers: tuple[Layer, ...]
    sizes: dict[str, LayerSize]
    coupled: bool
    unused: frozenset[str]
    guessed: tuple[str, ...]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the passes."""

    @property
    def device(self) -> torch.device:
        """The device of the passes."""

    @property
    def is_plain(self) -> bool:
        """Whether rows are in simple orders, so that parts of the batch have the same ones."""

    def plain_outputs(self) -> Tensor:
        """The outputs of one forward pass, without a graph."""

    def graph(self, names: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """The outputs of a forward pass of the plain model, and parameters as leaves of its graph."""

    def tape(self) -> Tape:
        """A recorded pass."""

    def part(self, samples: slice) -> Self:
        """The same model on some of the samples."""

    def reordered(self, rows: Tensor, leave: str | None = None) -> Self:
        """The same model on the samples in another order; the input ``leave`` stays as it is."""

    def pack(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Gradients by parameter name as a parameter vector, (P,)."""


def refuse_random_passes(instance: Passes, first: Tensor, names: Sequence[str]) -> None:
    """Raise ValueError if outputs or gradients change with the random numbers that the first pass has drawn."""
    before = RandomStates.now(instance.device)
    try:
        gradients = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
            outputs, parameters = instance.graph(names)
            if not agree(first, outputs):
                refuse_random()
            gradients.append(_gradients(outputs, parameters, random_cotangent(outputs)))
    finally:
        before.restore(instance.device)
    if not all(agree(gradients[0][name], gradients[1][name]) for name in gradients[0]):
        refuse_random()


def coupling(instance: Passes, first: Tensor) -> tuple[bool, str | None]:
    """Whether outputs of a sample change with the other samples, and the input that belongs to no sample, if any.

    A random half of the samples is replaced by samples of the other half, which must not change; then the halves swap
    roles (see ``_splits``). If the model cannot run on that order, because it needs sorted samples, neighbours replace
    each other. An input that is as long as the batch and alone causes the change (a mask of positions) belongs to no
    sample.
    """
    if instance.samples < 2 or not _changes(instance, first, None):
        return False, None
    for name in instance.guessed[1:]:
        if not _changes(instance, first, name):
            return False, name
    return True, None


def pairwise_coupled(instance: Passes, first: Tensor) -> bool:
    """Whether outputs of a sample change with any other sample: every two are once in different halves."""
    return _changes(instance, first, None, _splits(instance.samples, every_pair=True))


def _changes(
    instance: Passes, first: Tensor, leave: str | None, splits: Iterable[tuple[Tensor, Tensor]] | None = None
) -> bool:
    rows = torch.arange(instance.samples, device="cpu")
    for staying, replaced in splits or _splits(instance.samples, every_pair=instance.samples <= _FEW):
        mixed = rows.clone()
        mixed[replaced] = staying[torch.arange(len(replaced), device="cpu") % len(staying)]
        in_order = staying.sort().values
        neighbours = in_order[(torch.searchsorted(in_order, rows, right=True) - 1).clamp_min(0)]
        orders = [mixed.to(instance.device), neighbours.to(instance.device)]
        if _differs(first, instance, orders, staying.to(instance.device), leave):
            return True
    return False


def _splits(samples: int, every_pair: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """A random half of the samples and the other one, in both roles; for ``every_pair`` one split per bit."""
    order = torch.randperm(samples, device="cpu", generator=torch.Generator().manual_seed(0))
    for digit in range((samples - 1).bit_length() if every_pair else 1):
        side = (order >> digit) % 2
        halves = (side == 0).nonzero()[:, 0], (side == 1).nonzero()[:, 0]
        yield from (halves, halves[::-1])


def _differs(first: Tensor, instance: Passes, orders: Sequence[Tensor], staying: Tensor, leave: str | None) -> bool:
    """Whether the samples ``staying`` change, for the first of the orders on which the model can run."""
    for order in orders:
        try:
            outputs = instance.reordered(order, leave).plain_outputs()
        except (RuntimeError, ValueError, IndexError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            continue
        return outputs.shape != first.shape or not agree(first[staying], outputs[staying])
    return False


def wrong_layers(instance: Passes, tape: Tape | None = None) -> dict[str, str]:
    """Why the columns of some blocks are wrong, by one forward and two backward passes; empty if all are right.

    A parameter without a block has its own name; it is wrong if it has a gradient.

    ``tape``: a recorded pass over the whole batch; None means that one is made, or one per part of a large batch.
    """
    wrong: dict[str, str] = {}
    for part in _parts(instance) if tape is None else [instance]:
        names = dict.fromkeys(n for layer in part.layers for n in layer.parameters)
        outputs, parameters = part.graph([*names, *sorted(part.unused - names.keys())])
        u = random_cotangent(outputs)
        weights = 0.5 + torch.rand(part.samples, device="cpu", generator=torch.Generator().manual_seed(1)).to(u)
        along = u * weights.reshape(-1, *[1] * (u.ndim - 1))
        gradients = _gradients(outputs, parameters, along)
        columns, vector = weighted_columns(part, tape or part.tape(), u, weights), part.pack(gradients)
        wrong |= {name: _UNSEEN for name in part.unused if bool(gradients[name].any())}
        noise = _NOISE * torch.finfo(u.dtype).eps * _largest(gradients.values())
        found = {}
        for layer in part.layers:
            expected = vector[layer.slice].reshape(layer.shape)
            difference = float((columns[layer.name] - expected).norm())
            if not difference <= deep_rounding(u.dtype) * float(expected.norm()) + noise:
                found[layer.name] = layer, difference
        if found:
            rounding = part.pack(_gradients(outputs, parameters, 3 * along)) - 3 * vector
            largest = _largest(vector[la.slice] for la in part.layers)
            least = min(_FACTOR * _largest(rounding[la.slice] for la in part.layers), _FAINTEST * largest)
            for name, (layer, difference) in found.items():
                noise, norm = (float(v[layer.slice].norm()) for v in (rounding, vector))
                if not difference <= max(min(_FACTOR * noise, _COARSEST * norm), least):
                    wrong[name] = _ENDLESS if not math.isfinite(norm) else _OTHER_SUM
    return wrong


_ENDLESS = "its gradient is NaN or infinite on this batch"
_UNSEEN = "it is used where no use was seen"
_OTHER_SUM = "its score columns do not sum to its gradient"


def _largest(vectors: Iterable[Tensor]) -> float:
    """The largest norm among the finite vectors; 0 if none is finite."""
    return max((norm for v in vectors if math.isfinite(norm := float(v.norm()))), default=0.0)


def _gradients(outputs: Tensor, parameters: Mapping[str, Tensor], cotangent: Tensor) -> dict[str, Tensor]:
    if not outputs.requires_grad:
        return {name: torch.zeros_like(p) for name, p in parameters.items()}
    gradients = torch.autograd.grad(
        outputs, list(parameters.values()), cotangent, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return {name: densified(g) for name, g in zip(parameters, gradients, strict=True)}


def _parts(instance: Passes) -> Iterator[Passes]:
    outputs = sum(s.groups * s.outputs * s.positions for s in instance.sizes.values())
    step = max(1, GRAPH_BYTES // (outputs * _TENSORS_PER_OUTPUT * instance.dtype.itemsize))
    if step >= instance.samples or instance.coupled or not instance.is_plain:
        yield instance
        return
    for start in range(0, instance.samples, step):
        yield instance.part(slice(start, start + step))


def weighted_columns(instance: Passes, tape: Tape, u: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Per block the sum of its columns for the cotangents u (N, ..., C) with weights (N,), (G, M, D)."""
    pulled = tape.pull(u)
    sums = {}
    for layer in instance.layers:
        parts = [_weighted_sum(r, tape.inputs[r.name], pulled[r.name], weights) for r in layer.roles or (layer,)]
        sums[layer.name] = sum((part.reshape(layer.shape) if i == 0 else part.mT) for i, part in enumerate(parts))
    return sums  # type: ignore[return-value]


def _weighted_sum(layer: Layer, inputs: Tensor, gradient: Tensor, weights: Tensor) -> Tensor:
    """The sum over samples n of w_n times output gradient times patches, (G, M, D)."""
    slopes = geometry.slopes(layer, gradient)
    positions = slopes.shape[-1]
    step = max(1, _TILE_BYTES // (layer.groups * layer.inputs * positions * slopes.element_size()))
    total = slopes.new_zeros(layer.shape)
    for start in range(0, len(inputs), step):
        rows = slice(start, start + step)
        scaled = slopes[rows] * weights[rows, None, None, None]
        total += (scaled @ geometry.patches(layer, inputs[rows]).to(scaled).mT).sum(0)
    return total
