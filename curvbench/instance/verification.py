"""What no module tells of a model, found by passes over the whole batch: samples do not meet, weights have one use.

A layer's score columns are products of what it read and of the gradients at its output, row by row. They are right if
row n belongs to sample n alone and if the layer is the only user of its weight. Then, for any cotangents u_n and any
weights w_n, the sum of w_n times sample n's column is the gradient of sum_n w_n <u_n, f_n>. The columns come from a
backward pass without the weights, the gradient from plain autograd with them, so that a row of another sample shows.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from curvbench.instance import layers as geometry
from curvbench.instance.contents import RandomStates, leaves
from curvbench.instance.refusals import (
    agree,
    refuse_coupled_outputs,
    refuse_endless,
    refuse_mixed_rows,
    refuse_other_uses,
    refuse_random,
    refuse_rerun,
)
from curvbench.instance.tape import Tape
from curvbench.spec.geometry import Layer, LayerSize

GRAPH_BYTES = 2**32  # what one verifying pass may keep: a batch that needs more is verified in parts
_TENSORS_PER_OUTPUT = 6  # activations, normalizations and gradients around a layer, in sizes of its output
_TILE_BYTES = 2**26
_NOISE = 100  # units in the last place of the network's gradient, below which a layer's own is rounding


class Seen(NamedTuple):
    """What one forward pass over the batch shows: the outputs (N, ..., C), and each layer's input (N, ...)."""

    outputs: Tensor
    inputs: Mapping[str, Tensor]

    def difference(self, other: Seen, rows: Tensor | slice = slice(None)) -> str | None:
        """Where two passes differ for these samples beyond rounding: a layer's name, or none ("") for the outputs.

        None where they do not. What has another shape in the other pass cannot be compared.
        """
        pairs = [("", self.outputs, other.outputs)]
        pairs += [(name, x, other.inputs.get(name, x)) for name, x in self.inputs.items()]
        return next((name for name, a, b in pairs if a.shape == b.shape and not agree(a[rows], b[rows])), None)


class Passes(Protocol):
    """What verification needs of an instance: its batch, whole, in parts and reordered, and passes over it."""

    samples: int
    inputs: Any
    layers: tuple[Layer, ...]
    sizes: dict[str, LayerSize]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the passes."""

    @property
    def device(self) -> torch.device:
        """The device of the passes."""

    def seen(self) -> Seen:
        """What one forward pass shows."""

    def traced(self) -> tuple[Tape, dict[str, Tensor]]:
        """A recorded pass with free weights, and the weights that it was made with."""

    def tape(self) -> Tape:
        """A recorded pass with held weights."""

    def part(self, samples: slice) -> Self:
        """The same model on some of the samples."""

    def reordered(self, rows: Tensor, leave: Tensor | None = None) -> Self:
        """The same model on the samples in another order; the input ``leave`` stays as it is."""

    def pack(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Gradients by parameter name as a parameter vector, (P,)."""


def refuse_random_passes(instance: Passes, first: Seen) -> None:
    """Raise ValueError where other random numbers make other outputs, layer inputs or gradients.

    For a model that was seen to draw random numbers in its first pass, ``first``.
    """
    before = RandomStates.now(instance.device)
    try:
        gradients = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
            if first.difference(instance.seen()) is not None:
                refuse_random()
            torch.manual_seed(seed)
            gradients.append(_sums(instance, unit_weights(instance))[1])
    finally:
        before.restore(instance.device)
    if not all(agree(gradients[0][name], gradients[1][name]) for name in gradients[0]):
        refuse_random()


def refuse_coupled_passes(instance: Passes, first: Seen) -> None:
    """Raise ValueError where what the model makes of a sample changes with the other samples of the batch.

    A random half of the samples gives way to samples of the other half, which must not notice; then the other does.
    A model that cannot run on that, for it wants its samples sorted, has neighbours exchanged.
    """
    if instance.samples < 2:
        return
    rows = torch.arange(instance.samples)
    order = torch.randperm(instance.samples, generator=torch.Generator().manual_seed(0))
    halves = order.tensor_split(2)
    for kept, gone in (halves, halves[::-1]):
        mixed = rows.clone()
        mixed[gone] = kept[torch.arange(len(gone)) % len(kept)]
        sorted_rows = kept.sort().values
        beside = sorted_rows[(torch.searchsorted(sorted_rows, rows, right=True) - 1).clamp_min(0)]
        _refuse_noticed(
            first, instance, [mixed.to(instance.device), beside.to(instance.device)], kept.to(instance.device)
        )


def _refuse_noticed(first: Seen, instance: Passes, orders: Sequence[Tensor], kept: Tensor) -> None:
    """Refuse what the samples ``kept`` notice of the first of the orders on which the model can run."""
    for order in orders:
        try:
            place = first.difference(instance.reordered(order).seen(), kept)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            continue
        if place is not None:
            refuse_coupled_outputs(place, _of_no_sample(first, instance, order, kept))
        return


def _of_no_sample(first: Seen, instance: Passes, order: Tensor, kept: Tensor) -> str | None:
    """The input but for which the samples would not notice: as long as the batch, but perhaps a mask of positions."""
    for name, x in [(name, x) for name, x in leaves(instance.inputs) if _is_sized(x, instance.samples)][1:]:
        try:
            if first.difference(instance.reordered(order, x).seen(), kept) is None:
                return name
        except RuntimeError:
            continue
    return None


def _is_sized(value: Any, samples: int) -> bool:
    return isinstance(value, Tensor) and value.shape[:1] == (samples,)


def refuse_wrong_columns(instance: Passes) -> None:
    """Raise ValueError where score columns are not those of plain autograd: one forward and two backward passes.

    In the instance's own precision. The same pass serves both sides, so that no unit
    near zero is on in one of them and off in the other.
    """
    for part in _parts(instance):
        generator = torch.Generator().manual_seed(1)
        weights = 0.5 + torch.rand(part.samples, generator=generator)
        columns, gradients = _sums(part, weights)
        noise = _NOISE * max(float(g.norm()) for g in gradients.values())
        for layer in part.layers:
            mine, true = columns[layer.name], gradients[layer.name]
            refuse_endless(layer.name, true)
            eps = torch.finfo(mine.dtype).eps
            if float((mine - true).norm()) > eps**0.6 * float(true.norm()) + eps * noise:
                _refuse(part, layer)


def refuse_wrong_tape(instance: Passes) -> None:
    """Raise ValueError where a recorded pass with held weights has other gradients at a layer than one without.

    On one sample, or on the batch where the model cannot run on one.
    """
    with warnings.catch_warnings(action="ignore"):  # of one sample alone
        try:
            some = instance.part(slice(1))
            free, _ = some.traced()
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            some = instance
            free, _ = some.traced()
        u = torch.randn(free.outputs.shape, generator=torch.Generator().manual_seed(0)).to(free.outputs)
        expected, found = free.pull(u), some.tape().pull(u)
    eps = torch.finfo(u.dtype).eps
    noise = _NOISE * eps * max(float(g.norm()) for g in expected.values())
    for name, gradient in expected.items():
        if float((found[name] - gradient).norm()) > eps**0.6 * float(gradient.norm()) + noise:
            refuse_rerun(name)


def _refuse(part: Passes, layer: Layer) -> None:
    """Say which of the two went wrong: without weights per sample an order of the rows does not show."""
    columns, gradients = _sums(part, unit_weights(part))
    if agree(columns[layer.name], gradients[layer.name]):
        refuse_mixed_rows(layer.name)
    refuse_other_uses(layer.name)


def unit_weights(instance: Passes) -> Tensor:
    """A weight of one for each sample, (N,)."""
    return torch.ones(instance.samples)


def _parts(instance: Passes) -> Iterator[Passes]:
    outputs = sum(s.groups * s.outputs * s.positions for s in instance.sizes.values())
    step = max(1, GRAPH_BYTES // (outputs * _TENSORS_PER_OUTPUT * instance.dtype.itemsize))
    if step >= instance.samples:
        yield instance
        return
    for start in range(0, instance.samples, step):
        yield instance.part(slice(start, start + step))


def _sums(instance: Passes, weights: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Per layer (G, M, D), for random cotangents u: the weighted sum of score columns, and the gradient it must be."""
    tape, parameters = instance.traced()
    u = torch.randn(tape.outputs.shape, generator=torch.Generator().manual_seed(0)).to(tape.outputs)
    weights = weights.to(u)
    pulled = tape.pull(u, keep=True)
    found = torch.autograd.grad(
        tape.outputs,
        list(parameters.values()),
        u * weights.reshape(-1, *[1] * (u.ndim - 1)),
        allow_unused=True,
        materialize_grads=True,
    )
    parts = instance.pack(dict(zip(parameters, found, strict=True)))
    gradients = {layer.name: parts[layer.slice].reshape(layer.shape) for layer in instance.layers}
    columns = {
        layer.name: _weighted_sum(layer, tape.inputs[layer.name], pulled[layer.name], weights)
        for layer in instance.layers
    }
    return columns, gradients


def _weighted_sum(layer: Layer, inputs: Tensor, gradient: Tensor, weights: Tensor) -> Tensor:
    """The sum of w_n times output gradient times patches of sample n, (G, M, D)."""
    slopes = geometry.slopes(layer, gradient)
    positions = slopes.shape[-1]
    step = max(1, _TILE_BYTES // (layer.groups * layer.inputs * positions * inputs.element_size()))
    total = slopes.new_zeros(layer.shape)
    for start in range(0, len(inputs), step):
        rows = slice(start, start + step)
        scaled = slopes[rows] * weights[rows, None, None, None]
        total += torch.einsum("ngms,ngds->gmd", scaled, geometry.patches(layer, inputs[rows]))
    return total
