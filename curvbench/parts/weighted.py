"""Weighted sums of per-sample gradients at the cost of one weight gradient, and FNGD's weights.

sum_n c_n grad_n is the weight gradient of the batch with every sample's input, or output gradient, multiplied by c_n
(Ou et al. 2024, Sec. IV-C): Z^T (c * X) for a Linear, ``conv2d_weight`` for a convolution with any stride, padding,
dilation and groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from curvbench import numerics
from curvbench.fisher import ExactFisher
from curvbench.fisher.columns import Columns
from curvbench.instance import Instance
from curvbench.instance import layers as geometry
from curvbench.instance.passes import full_precision, keeps_graph
from curvbench.instance.placing import formed_scores, role_gradient, role_inputs
from curvbench.instance.profiling import labelled
from curvbench.instance.tape import Tape
from curvbench.numerics import widened
from curvbench.operators import Shifted
from curvbench.spec import Layer

ScaleMode = Literal["normalized", "natural"]

_TILE_BYTES = 2**21  # of samples that are scaled at once, so that the product finds them in the cache


def weighted_gradient(layer: Layer, x: Tensor, slopes: Tensor, weights: Tensor) -> Tensor:
    """The sum of per-sample gradients ``[W | b]`` with weights (N,), (G, M, D).

    ``x`` is the layer's input (N, ...), ``slopes`` (N, G, M, S) are gradients of each sample's own loss: multiply the
    gradients of a mean loss by N first.
    """
    if layer.kind not in ("linear", "conv1d", "conv2d"):
        return Columns(layer, x, slopes[None]).combine(weights[None, :, None].to(slopes)).reshape(layer.shape)
    total = _weighted_product(layer, x, slopes, weights)
    if not layer.bias:
        return total
    bias = (weights @ slopes.sum(-1).flatten(1)).reshape(slopes.shape[1:3])
    return torch.cat([total, bias[..., None]], dim=-1)


def _weighted_product(layer: Layer, x: Tensor, slopes: Tensor, weights: Tensor) -> Tensor:
    """The part of W. Samples are scaled in tiles, in the input or in the slopes, whichever have fewer numbers."""
    if layer.kind == "linear":
        vectors = x.reshape(len(x), -1, x.shape[-1])
        total = x.new_zeros(layer.outputs, x.shape[-1])
        for a, g in _scaled_tiles(vectors, slopes[:, 0].mT, weights):
            total.addmm_(g.flatten(0, 1).T, a.flatten(0, 1))
        return total[None]
    planes, padding = geometry.own_padding(layer, geometry.as_plane(layer, x))
    outgoing = slopes.reshape(len(x), -1, *geometry.output_size(layer, planes, padding))
    shape = (outgoing.shape[1], planes.shape[1] // layer.groups, *layer.kernel)
    total = planes.new_zeros(shape)
    for a, g in _scaled_tiles(planes, outgoing, weights):
        total += conv2d_weight(a, shape, g, layer.stride, padding, layer.dilation, layer.groups)
    return total.reshape(layer.groups, layer.outputs, -1)


def _scaled_tiles(x: Tensor, outgoing: Tensor, weights: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Both factors in tiles of samples (n, ...), the smaller one times the weights; valid until the next tile."""
    scales_input = x.numel() <= outgoing.numel()
    smaller = x if scales_input else outgoing
    bytes_per_sample = smaller[:1].numel() * smaller.element_size()
    samples = max(1, _TILE_BYTES // bytes_per_sample)
    scratch = smaller.new_empty(min(samples, len(x)), *smaller.shape[1:])
    factors = weights.to(smaller.dtype).reshape(-1, *[1] * (smaller.ndim - 1))
    for a, g, c in zip(x.split(samples), outgoing.split(samples), factors.split(samples), strict=True):
        scaled = torch.mul(a if scales_input else g, c, out=scratch[: len(c)])
        yield (scaled, g) if scales_input else (a, scaled)


def weigh_backward(instance: Instance, tape: Tape, weights: Tensor) -> None:
    """Let backward passes through a ``frozen`` tape add weighted gradients to ``.grad`` of the covered parameters.

    ``weights`` (L, N) multiply each sample's share of the gradient; weights of 1 give the plain gradient. The gradient
    belongs to the training pass, with BatchNorm in training mode, while measurements run in evaluation mode. Gradients
    that do not come through the layers (penalties, coupled weight decay) are not weighted. Sums of tensors with fewer
    digits than float32 are computed in float32. A backward pass that frees the graph frees the inputs of the layers.
    """
    rows = {layer.name: w for layer, w in zip(instance.layers, weights, strict=True)}
    blocks = {role.name: (layer, role) for layer in instance.layers for role in layer.roles or (layer,)}
    samples, leaves = tape.samples, tape.leaves
    calls = {number: (call.without_graph(), use) for number, (call, use) in enumerate(tape.calls)}

    def gather(number: int, gradient: Tensor) -> None:
        with full_precision(), labelled("precondition"):
            add(number, gradient)

    def add(number: int, gradient: Tensor) -> None:
        take = calls.get if keeps_graph() else calls.pop
        if (used := take(number, None)) is None:  # the graph has been freed, which autograd itself will say
            return
        call, use = used
        gradient = widened(gradient.detach())
        if use.formed:
            scores = formed_scores([(call, use)], [gradient], leaves, samples)
            for name in scores.keys() & blocks.keys():
                layer, _ = blocks[name]
                _add(instance, layer, (rows[name] @ scores[name]).reshape(layer.shape))
            return
        assert use.role is not None, "a tape holds the calls of its roles"
        layer, role = blocks[use.role]
        slopes = geometry.slopes(role, role_gradient(role, [(call, use)], [gradient], samples))
        x = widened(role_inputs(role, [(call, use)], samples, slopes))
        total = weighted_gradient(role, x, slopes, rows[layer.name])
        _add(instance, layer, total if role.shape == layer.shape and role.pieces == layer.pieces else total.mT)

    tape.watch(gather)


def _add(instance: Instance, layer: Layer, total: Tensor) -> None:
    """Add a gradient (G, M, D) of a block to ``.grad`` of its parameters."""
    for piece, part in zip(layer.pieces, total.split([piece.columns for piece in layer.pieces], -1), strict=True):
        parameter = instance.model.get_parameter(piece.parameter)
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
        else:
            parameter.grad = parameter.grad.contiguous()
        offset = parameter.grad.storage_offset() + piece.offset
        parameter.grad.as_strided(part.shape, piece.strides, offset).add_(part.to(parameter.dtype))


def weighted_sum(columns: Columns, weights: Tensor, accelerated: bool = True) -> Tensor:
    """The sum of a layer's score columns with weights (R, N), (P,); ``accelerated`` does not form the columns."""
    if not accelerated:
        return torch.einsum("rn,ngrmd->gmd", weights, columns.matrices().to(weights)).flatten()
    if columns.layer.roles:
        return columns.combine(weights[..., None])[:, 0]
    if len(weights) == 1:
        return weighted_gradient(columns.layer, columns.inputs, columns.slopes[0], weights[0]).flatten()
    mixed = torch.einsum("rn,rngms->ngms", weights, columns.slopes)
    return weighted_gradient(columns.layer, columns.inputs, mixed, torch.ones_like(weights[0])).flatten()


def responses(columns: Columns, v: Tensor) -> Tensor:
    """Inner products of a layer's score columns with a vector (P,), (R, N).

    The layer's forward product with ``v`` for its weights, which all columns of a sample share, times the slopes.
    """
    layer, x = columns.layer, columns.inputs
    if layer.kind not in ("linear", "conv1d", "conv2d") or x.dtype == torch.float64:  # torch's own would be slower
        return columns.project(v[:, None])[..., 0]
    matrix = v.to(x.dtype).reshape(layer.shape)
    weight, bias = (matrix[..., :-1], matrix[..., -1].flatten()) if layer.bias else (matrix, None)
    if layer.kind == "linear":
        outputs = F.linear(x.reshape(len(x), -1, x.shape[-1]), weight[0], bias).mT[:, None]
    else:
        planes, padding = geometry.own_padding(layer, geometry.as_plane(layer, x))
        weight = weight.reshape(-1, planes.shape[1] // layer.groups, *layer.kernel)
        made = F.conv2d(planes, weight, bias, layer.stride, padding, layer.dilation, layer.groups)
        outputs = made.reshape(len(x), layer.groups, layer.outputs, -1)
    tiles = numerics.tiles(outputs)
    slopes = columns.slopes.split([len(tile) for tile in tiles], 1)
    return torch.cat([(b * z).sum((2, 3, 4)) for b, z in zip(slopes, tiles, strict=True)], 1)


def first_steps(
    blocks: Sequence[ExactFisher],
    dampings: Sequence[float],
    factors: Sequence[Tensor | None],
    parts: Sequence[Tensor],
    mode: ScaleMode,
) -> list[Tensor]:
    """Per layer FNGD's step of the first epoch for a gradient ``parts``: (F + damping I)^-1 g, or damping times it."""
    steps = map(normalized_step, blocks, dampings, factors, parts)
    scales = [damping if damping and mode == "natural" else 1.0 for damping in dampings]
    return [step / scale for step, scale in zip(steps, scales, strict=True)]


def damped_blocks(blocks: Sequence[ExactFisher], dampings: Sequence[float], mode: ScaleMode) -> list[Shifted]:
    """Per layer the matrix whose inverse ``first_steps`` applies: F + damping I, or that over the damping.

    A damping of 0 means that F is zero and the matrix I.
    """
    scales = [damping if damping and mode == "normalized" else 1.0 for damping in dampings]
    triples = zip(blocks, dampings, scales, strict=True)
    return [_over(block, scale).damped((damping or 1.0) / scale) for block, damping, scale in triples]


def _over(block: ExactFisher, scale: float) -> ExactFisher:
    """F / scale."""
    return replace(block, columns=[replace(c, slopes=c.slopes / scale**0.5) for c in block.columns])


def normalized_step(block: ExactFisher, damping: float, factor: Tensor | None, gradient: Tensor) -> Tensor:
    """Damping (F + damping I)^-1 gradient, (P,).

    ``factor``: None means that the block has no scores, so that the result is the gradient itself.
    """
    if factor is None:
        return gradient
    return damping * block.solve_factorized(gradient[:, None], damping, factor)[:, 0]


def coefficients(gram: Tensor, terms: int, damping: float) -> Tensor:
    """Coefficients c = damping (damping I + gram / terms)^-1 1 in float64, (b,).

    U c / terms = damping (F + damping I)^-1 g for the score columns U, F = U U^T / terms and g = U 1 / terms.
    c = 1 is plain gradient descent. A damping of 0 means that the layer has no scores, and gives c = 1.
    """
    ones = torch.ones(len(gram), 1, dtype=torch.float64, device=gram.device)
    if damping == 0:
        return ones[:, 0]
    eye = torch.eye(len(gram), dtype=torch.float64, device=gram.device)
    factor = numerics.cholesky(gram / (terms * damping) + eye)
    return numerics.cholesky_solve(ones, factor)[:, 0]
