"""Checks by passes over the whole batch: samples do not influence each other, and every weight has one use.

A layer's score columns are products of its input and of its output gradients, row by row. The columns are right if
row n belongs to sample n alone and if the layer is the only user of its weight. Then, for any cotangents u_n and any
weights w_n, the sum of w_n times sample n's column is the gradient of sum_n w_n <u_n, f_n>. The columns come from a
backward pass without the w_n, the gradient from plain autograd with them: a row of another sample changes the sum.
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
    deep_rounding,
    refuse_coupled_outputs,
    refuse_endless,
    refuse_mixed_rows,
    refuse_other_uses,
    refuse_random,
    refuse_rerun,
)
from curvbench.instance.tape import Tape
from curvbench.spec.geometry import Layer, LayerSize

GRAPH_BYTES = 2**32  # that one verifying pass may keep: a larger batch is verified in parts
_TENSORS_PER_OUTPUT = 6  # a pass keeps activations, normalizations and gradients beside a layer's output
_TILE_BYTES = 2**26  # of patches that are formed at the same time
_NOISE = 100  # units in the last place of the network's gradient: a smaller gradient of a layer is rounding


class Seen(NamedTuple):
    """The outputs (N, ..., C) and each layer's input (N, ...) of one forward pass over the batch."""

    outputs: Tensor
    inputs: Mapping[str, Tensor]

    def difference(self, other: Seen, rows: Tensor | slice = slice(None)) -> str | None:
        """The place where two passes differ for the samples ``rows``: a layer's name, or "" for the outputs.

        None means that the passes agree up to rounding. A tensor of another shape in the other pass is not compared.
        """
        pairs = [("", self.outputs, other.outputs)]
        pairs += [(name, x, other.inputs.get(name, x)) for name, x in self.inputs.items()]
        return next((name for name, a, b in pairs if a.shape == b.shape and not agree(a[rows], b[rows])), None)


class Passes(Protocol):
    """The members of an instance that verification needs: its batch, parts and orders of it, and passes."""

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
        """The outputs and layer inputs of one forward pass."""

    def traced(self) -> tuple[Tape, dict[str, Tensor]]:
        """A recorded pass, and the weights that are leaves of its graph."""

    def tape(self) -> Tape:
        """A recorded pass with frozen weights."""

    def part(self, samples: slice) -> Self:
        """The same model on some of the samples."""

    def reordered(self, rows: Tensor, leave: Tensor | None = None) -> Self:
        """The same model on the samples in another order; the input ``leave`` stays as it is."""

    def pack(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Gradients by parameter name as a parameter vector, (P,)."""


def refuse_random_passes(instance: Passes, first: Seen) -> None:
    """Raise ValueError if outputs, layer inputs or gradients change with the random numbers.

    The model drew random numbers in its first pass, ``first``.
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
    """Raise ValueError if outputs or layer inputs of a sample change with the other samples of the batch.

    A random half of the samples is replaced by samples of the other half, which must not change; then the halves swap
    roles. If the model cannot run on that order, because it needs sorted samples, neighbours replace each other.
    """
    if instance.samples < 2:
        return
    rows = torch.arange(instance.samples)
    order = torch.randperm(instance.samples, generator=torch.Generator().manual_seed(0))
    halves = order.tensor_split(2)
    for staying, replaced in (halves, halves[::-1]):
        mixed = rows.clone()
        mixed[replaced] = staying[torch.arange(len(replaced)) % len(staying)]
        in_order = staying.sort().values
        neighbours = in_order[(torch.searchsorted(in_order, rows, right=True) - 1).clamp_min(0)]
        orders = [mixed.to(instance.device), neighbours.to(instance.device)]
        _refuse_influence(first, instance, orders, staying.to(instance.device))


def _refuse_influence(first: Seen, instance: Passes, orders: Sequence[Tensor], staying: Tensor) -> None:
    """Refuse a change in the samples ``staying``, for the first of the orders on which the model can run."""
    for order in orders:
        try:
            place = first.difference(instance.reordered(order).seen(), staying)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            continue
        if place is not None:
            refuse_coupled_outputs(place, _of_no_sample(first, instance, order, staying))
        return


def _of_no_sample(first: Seen, instance: Passes, order: Tensor, staying: Tensor) -> str | None:
    """The input that alone makes the samples change, as a mask of positions does that is as long as the batch."""
    tensors = [(name, x) for name, x in leaves(instance.inputs) if isinstance(x, Tensor)]
    for name, x in [(name, x) for name, x in tensors if x.shape[:1] == (instance.samples,)][1:]:
        try:
            if first.difference(instance.reordered(order, x).seen(), staying) is None:
                return name
        except RuntimeError:
            continue
    return None


def refuse_wrong_columns(instance: Passes) -> None:
    """Raise ValueError if score columns differ from plain autograd, by one forward and two backward passes.

    The passes run in the instance's own precision. The same forward pass serves both sides, so that no ReLU unit near
    zero is on in one side and off in the other.
    """
    for part in _parts(instance):
        generator = torch.Generator().manual_seed(1)
        weights = 0.5 + torch.rand(part.samples, generator=generator)
        columns, gradients = _sums(part, weights)
        noise = _NOISE * max(float(g.norm()) for g in gradients.values())
        for layer in part.layers:
            by_columns, by_autograd = columns[layer.name], gradients[layer.name]
            refuse_endless(layer.name, by_autograd)
            tolerance = deep_rounding(by_columns.dtype) * float(by_autograd.norm())
            if float((by_columns - by_autograd).norm()) > tolerance + torch.finfo(by_columns.dtype).eps * noise:
                _refuse(part, layer)


def refuse_wrong_tape(instance: Passes) -> None:
    """Raise ValueError if passes with frozen and with free weights have different gradients at a layer.

    One sample passes, or the whole batch if the model cannot run on one sample.
    """
    with warnings.catch_warnings(action="ignore"):  # torch warns of a batch of one sample
        try:
            some = instance.part(slice(1))
            free, _ = some.traced()
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            some = instance
            free, _ = some.traced()
        u = torch.randn(free.outputs.shape, generator=torch.Generator().manual_seed(0)).to(free.outputs)
        expected, frozen = free.pull(u), some.tape().pull(u)
    noise = _NOISE * torch.finfo(u.dtype).eps * max(float(g.norm()) for g in expected.values())
    for name, gradient in expected.items():
        if float((frozen[name] - gradient).norm()) > deep_rounding(u.dtype) * float(gradient.norm()) + noise:
            refuse_rerun(name)


def _refuse(part: Passes, layer: Layer) -> None:
    """Refuse mixed rows if the sums agree with unit weights, which hide the order of rows; else another use."""
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
    """Per layer, for random cotangents: the weighted sum of score columns, and the equal gradient, (G, M, D) each."""
    tape, parameters = instance.traced()
    u = torch.randn(tape.outputs.shape, generator=torch.Generator().manual_seed(0)).to(tape.outputs)
    weights = weights.to(u)
    pulled = tape.pull(u, keep=True)
    derivatives = torch.autograd.grad(
        tape.outputs,
        list(parameters.values()),
        u * weights.reshape(-1, *[1] * (u.ndim - 1)),
        allow_unused=True,
        materialize_grads=True,
    )
    parts = instance.pack(dict(zip(parameters, derivatives, strict=True)))
    gradients = {layer.name: parts[layer.slice].reshape(layer.shape) for layer in instance.layers}
    columns = {
        layer.name: _weighted_sum(layer, tape.inputs[layer.name], pulled[layer.name], weights)
        for layer in instance.layers
    }
    return columns, gradients


def _weighted_sum(layer: Layer, inputs: Tensor, gradient: Tensor, weights: Tensor) -> Tensor:
    """The sum over samples n of w_n times output gradient times patches, (G, M, D)."""
    slopes = geometry.slopes(layer, gradient)
    positions = slopes.shape[-1]
    step = max(1, _TILE_BYTES // (layer.groups * layer.inputs * positions * inputs.element_size()))
    total = slopes.new_zeros(layer.shape)
    for start in range(0, len(inputs), step):
        rows = slice(start, start + step)
        scaled = slopes[rows] * weights[rows, None, None, None]
        total += torch.einsum("ngms,ngds->gmd", scaled, geometry.patches(layer, inputs[rows]))
    return total
