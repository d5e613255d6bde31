"""The inputs and the gradients of a role, from those of its calls: sample by sample, call after call.

A role with a single call in plain order keeps the tensors of that call as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from curvbench.instance import layers as geometry
from curvbench.spec.geometry import Layer
from curvbench.uses.blocks import Use
from curvbench.uses.calls import Call, Computed, View, Window
from curvbench.uses.owners import Order

Used = tuple[Call, Use]


def as_real(tensor: Tensor) -> Tensor:
    """A complex tensor as its real and imaginary parts, (..., 2); any other tensor as it is."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def densified(gradient: Tensor) -> Tensor:
    """A gradient with all of its entries, because an embedding may give a sparse one."""
    return gradient.to_dense() if gradient.layout != torch.strided else gradient


def role_inputs(layer: Layer, used: Sequence[Used], samples: int, like: Tensor) -> Tensor:
    """The input of a role, (N, ...), as ``geometry.patches`` takes it."""
    if layer.kind == "vector":
        return like.new_ones(samples, 1)
    if layer.kind in ("conv1d", "conv2d"):
        ((call, _),) = used
        assert call.x is not None
        return call.x
    if layer.kind == "matrix":
        return _joined([_patches(layer, call, use, samples) for call, use in used], 3)
    return _joined([_rows(call, use, _input(call), samples) for call, use in used], 1)


def role_gradient(layer: Layer, used: Sequence[Used], gradients: Sequence[Tensor], samples: int) -> Tensor:
    """The gradient of a role, as ``geometry.slopes`` takes it; ``gradients`` are those at the calls' edges."""
    pairs = list(zip(used, gradients, strict=True))
    if layer.kind == "vector":
        return _vector(layer, pairs, samples)
    if layer.kind in ("conv1d", "conv2d"):
        return gradients[0]
    if layer.kind == "matrix":
        return _joined([_slopes(layer, call, use, gradient, samples) for (call, use), gradient in pairs], 3)
    return _joined([_rows(call, use, gradient, samples) for (call, use), gradient in pairs], 1)


def _joined(parts: list[Tensor], dimension: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dimension)


def _input(call: Call) -> Tensor:
    assert call.x is not None
    return call.x


def _rows(call: Call, use: Use, tensor: Tensor, samples: int) -> Tensor:
    """Rows by sample, (N, S, ...). The row that fills up a gathered order is zero, or no index."""
    if call.key.operation == "lookup" and not tensor.is_floating_point():
        return use.layout.by_sample(tensor + 1, range(tensor.ndim), samples) - 1
    return use.layout.by_sample(tensor, call.rows, samples)


def _patches(layer: Layer, call: Call, use: Use, samples: int) -> Tensor:
    """The patches of a call with the bias's 1, (N, G, D, S)."""
    x = use.layout.by_sample(_input(call), call.rows, samples)
    if call.key.operation == "linear":
        entries = x.mT[:, None]
    elif call.key.operation == "conv":
        assert call.window is not None
        entries = _by_sample(_unfolded(x.flatten(0, 1), call.window), samples)
    else:
        entries = _by_sample(x.flatten(0, 1).reshape(x.shape[0] * x.shape[1], layer.groups, layer.inputs, -1), samples)
    if not use.ones:
        return entries
    # rows that fill up a gathered order have no gradient, so that their 1 does not count
    return torch.cat([entries, torch.ones_like(entries[:, :, :1])], 2)


def _slopes(layer: Layer, call: Call, use: Use, gradient: Tensor, samples: int) -> Tensor:
    """The output gradients of a call, (N, G, M, S)."""
    g = use.layout.by_sample(gradient, call.rows, samples)
    if call.key.operation == "linear":
        return g.mT[:, None]
    flat = g.flatten(0, 1)
    if call.key.operation == "conv":
        return _by_sample(flat.reshape(len(flat), layer.groups, layer.outputs, -1), samples)
    assert call.window is not None
    places = math.prod(_input(call).shape[2:])
    return _by_sample(_unfolded(flat, call.window)[..., :places], samples)


def _unfolded(x: Tensor, window: Window) -> Tensor:
    pads = [p for pair in reversed(window.padding) for p in pair]
    planes = F.pad(x, pads) if any(pads) else x
    return geometry.unfolded(planes, window.groups, window.kernel, window.stride, window.dilation)


def _by_sample(entries: Tensor, samples: int) -> Tensor:
    """(N k, G, n, S) as (N, G, n, k S)."""
    if len(entries) == samples:
        return entries
    return entries.unflatten(0, (samples, -1)).permute(0, 2, 3, 1, 4).flatten(3)


def _vector(layer: Layer, pairs: Sequence[tuple[Used, Tensor]], samples: int) -> Tensor:
    """The scores of a vector, (N, 1, n, columns)."""
    first = pairs[0][1]
    total = first.new_zeros(samples, layer.outputs, layer.inputs)
    for (call, use), gradient in pairs:
        total[:, :, use.column] += in_parameter(call, call_score(call, use, gradient, samples), layer.outputs)
    return total[:, None]


def call_score(call: Call, use: Use, gradient: Tensor, samples: int) -> Tensor:
    """The score of the weight that one call reads, per sample, in the order of the weight's entries: (N, numel)."""
    if call.key.operation == "shift":
        return use.layout.by_sample(gradient, call.rows, samples).sum(1).reshape(samples, -1)
    if call.key.operation == "scale":
        x = normalized(call)
        if isinstance(use.layout, Order) and use.layout == Order(0):
            return _contracted(gradient, x, call.rows)
        placed = (use.layout.by_sample(t, call.rows, samples) for t in (gradient, x))
        return torch.einsum("ns...,ns...->n...", *placed).reshape(samples, -1)
    return _formed(call, use, gradient, samples).reshape(samples, -1)


def _contracted(gradient: Tensor, x: Tensor, rows: Sequence[int]) -> Tensor:
    """The sum of gradient times x over all rows but the samples, (N, numel)."""
    letters = "abcdefgh"[: gradient.ndim]
    kept = "".join(letters[d] for d in range(gradient.ndim) if d not in rows or d == 0)
    return torch.einsum(f"{letters},{letters}->{kept}", gradient, x).reshape(gradient.shape[0], -1)


def normalized(call: Call) -> Tensor:
    """The normalized input of a scale; made at the first demand and kept with the call."""
    cached = call.__dict__.get("_normalized")
    if cached is None:
        assert call.normalized is not None and call.x is not None
        with torch.no_grad():
            cached = call.normalized(call.x)
        object.__setattr__(call, "_normalized", cached)
    return cached


def _formed(call: Call, use: Use, gradient: Tensor, samples: int) -> Tensor:
    """The score of the weight of a product, (N, *shape of the weight)."""
    x = _input(call)
    if call.key.operation == "lookup":
        indices, rows = _rows(call, use, x, samples), _rows(call, use, gradient, samples)
        total = rows.new_zeros(samples, _lookup_size(call) + 1, rows.shape[-1])
        places = indices.where(indices >= 0, total.shape[1] - 1)
        return total.scatter_add_(1, places[..., None].expand_as(rows), rows)[:, :-1]
    if call.key.operation == "linear":
        g, a = (use.layout.by_sample(t, call.rows, samples) for t in (gradient, x))
        return g.mT @ a
    window = call.window
    assert window is not None
    g, a = (use.layout.by_sample(t, call.rows, samples).flatten(0, 1) for t in (gradient, x))
    image, outer = (a, g) if call.key.operation == "conv" else (g, a)
    patches = _unfolded(image, window)[..., : math.prod(outer.shape[2:])]
    products = outer.reshape(len(outer), window.groups, -1, patches.shape[-1]) @ patches.mT
    return products.unflatten(0, (samples, -1)).sum(1)


def _lookup_size(call: Call) -> int:
    weight = call.key.weight
    return weight.size[0] if isinstance(weight, View) else len(call.tensor)  # type: ignore[arg-type]


def in_parameter(call: Call, score: Tensor, numel: int) -> Tensor:
    """The score of a view (N, size of the view) as entries of its parameter, (N, numel)."""
    view = call.key.weight
    assert isinstance(view, View)
    contiguous = tuple(math.prod(view.size[i + 1 :]) for i in range(len(view.size)))
    strides = [s for s, size in zip(view.stride, view.size, strict=True) if size > 1]
    plain = [s for s, size in zip(contiguous, view.size, strict=True) if size > 1]
    if score.shape[1] == numel and strides == plain:
        return score
    places = torch.arange(numel, device=score.device).as_strided(view.size, view.stride, view.offset).flatten()
    return score.new_zeros(len(score), numel).index_add_(1, places, score)


def formed_scores(
    used: Sequence[Used], gradients: Sequence[Tensor], leaves: Mapping[str, Tensor], samples: int
) -> dict[str, Tensor]:
    """The scores of the parameters whose calls form them, (N, numel) each: of views, and through computed weights."""
    totals: dict[str, Tensor] = {}
    for (call, use), gradient in zip(used, gradients, strict=True):
        score = call_score(call, use, gradient, samples)
        if isinstance(call.key.weight, Computed):
            parts = _through(call, score, leaves)
        else:
            name = call.key.weight.name
            parts = {name: in_parameter(call, score, leaves[name].numel())}
        for name, part in parts.items():
            totals[name] = part if name not in totals else totals[name] + part
    return totals


def _through(call: Call, score: Tensor, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The scores of the parameters behind a computed weight, by its own derivative, without the network."""
    assert call.tensor is not None
    directions = score.reshape(len(score), *call.tensor.shape)
    names, ends = list(leaves), list(leaves.values())
    try:
        parts = _derivatives(call.tensor, ends, directions, is_batched=True)
    except RuntimeError as error:  # some operations have no batched derivative
        if isinstance(error, torch.OutOfMemoryError):
            raise
        columns = [_derivatives(call.tensor, ends, direction, is_batched=False) for direction in directions]
        parts = [None if c[0] is None else torch.stack(list(c)) for c in zip(*columns, strict=True)]
    return {name: part.reshape(len(score), -1) for name, part in zip(names, parts, strict=True) if part is not None}


def _derivatives(tensor: Tensor, ends: Sequence[Tensor], along: Tensor, is_batched: bool) -> Sequence[Tensor | None]:
    return torch.autograd.grad(tensor, ends, along, retain_graph=True, allow_unused=True, is_grads_batched=is_batched)
