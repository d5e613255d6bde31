"""Sums over the patches of a layer, without forming the patches; those of a lookup are sums at its indices, in float64.

The patch of a position consists of k_h slabs, one per row of the kernel, each with k_w shifted numbers per channel.
Only the shifts along a row are copied, because a shift along a column is an offset in the same memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.instance import layers as geometry
from curvbench.spec import Layer


def patch_moment(layer: Layer, x: Tensor, weights: Tensor | None = None) -> Tensor:
    """The sum of a a^T over the patches a of all samples and positions, (N, ...) -> (G, D, D); the bias comes last.

    ``weights``: of each sample's patches, (N, G), not negative; None means 1. A lookup has none.
    """
    if layer.kind == "lookup":
        return patch_squares(layer, x).diag_embed()
    if layer.kind in ("matrix", "vector"):
        patches = _scaled(geometry.patches(layer, x), weights).permute(1, 2, 0, 3).flatten(2)
        return patches @ patches.mT
    rows, height = _shifted(layer, _planes(layer, x), weights)
    k_h, (G, R, *_) = layer.kernel[0], rows.shape
    blocks = rows.new_empty(G, k_h, R, k_h, R)
    for lower, upper, product in _slab_products(layer, rows, height):
        blocks[:, lower, :, upper] = product
        blocks[:, upper, :, lower] = product.mT
    order = (G, k_h, R // layer.kernel[1], layer.kernel[1])
    moment = blocks.reshape(*order, *order[1:]).permute(0, 2, 1, 3, 5, 4, 6).reshape(G, k_h * R, k_h * R)
    if not layer.bias:
        return moment
    mean = mean_patch(layer, x)
    positions = rows.shape[-1] // len(x) * height
    sums = mean if weights is None else mean * weights[..., None]
    sums = sums.sum(0)[..., None] * positions  # the last entry belongs to the bias: N times the positions
    return torch.cat([torch.cat([moment, sums[:, :-1]], 2), sums.mT], 1)


def _scaled(tensor: Tensor, weights: Tensor | None) -> Tensor:
    """A tensor (N, G, ...) times the roots of weights (N, G)."""
    return tensor if weights is None else tensor * weights.sqrt().reshape(*weights.shape, *[1] * (tensor.ndim - 2))


def patch_lengths(layer: Layer, x: Tensor) -> Tensor:
    """|a|^2 of every patch a, the bias's 1 included, (N, ...) -> (N, G, S)."""
    if layer.kind == "lookup":
        return (x >= 0)[:, None]
    if layer.kind in ("matrix", "vector"):
        return geometry.patches(layer, x).square().sum(2)
    if layer.kind == "linear":
        squares = x.reshape(len(x), 1, -1, x.shape[-1]).square().sum(-1)
    else:
        channels = x.unflatten(1, (layer.groups, -1))
        planes = geometry.padded(layer, torch.cat([tile.square().sum(2) for tile in numerics.tiles(channels)]))
        squares = _box_sums(layer, planes, *geometry.output_size(layer, planes)).flatten(2)
    return squares + 1 if layer.bias else squares


def _box_sums(layer: Layer, planes: Tensor, height: int, width: int) -> Tensor:
    """The sums of planes (..., H, W) over the kernel at every position, (..., height, width)."""
    (k_h, k_w), (s_h, s_w), (d_h, d_w) = layer.kernel, layer.stride, layer.dilation
    along = [planes[..., j * d_w :][..., : s_w * width : s_w] for j in range(k_w)]
    lines = reduce(torch.add, along)
    return reduce(torch.add, [lines[..., i * d_h :, :][..., : s_h * height : s_h, :] for i in range(k_h)])


def patch_squares(layer: Layer, x: Tensor) -> Tensor:
    """The diagonal of ``patch_moment``, (N, ...) -> (G, D), by itself."""
    if layer.kind == "lookup":
        return index_sums(layer, x, torch.ones_like(x, dtype=torch.float64)).sum(0)
    if layer.kind in ("matrix", "vector"):
        return geometry.patches(layer, x).square().sum((0, 3))
    height, width = geometry.output_size(layer, _planes(layer, x))
    return height * width * mean_patch(layer, x.square()).sum(0)


def mean_patch(layer: Layer, x: Tensor) -> Tensor:
    """The mean over positions of each sample's patches, (N, ...) -> (N, G, D); the bias's 1 comes last."""
    if layer.kind == "lookup":
        return index_sums(layer, x, torch.full_like(x, 1 / x.shape[1], dtype=torch.float64))
    if layer.kind in ("matrix", "vector"):
        return geometry.patches(layer, x).mean(-1)
    planes = _planes(layer, x)
    (k_h, k_w), (s_h, s_w), (d_h, d_w) = layer.kernel, layer.stride, layer.dilation
    height, width = geometry.output_size(layer, planes)
    row_sums = torch.stack([planes[..., j * d_w :][..., : s_w * width : s_w].sum(-1) for j in range(k_w)], -2)
    sums = torch.stack([row_sums[..., i * d_h :][..., : s_h * height : s_h].sum(-1) for i in range(k_h)], -2)
    mean = sums.flatten(2) / (height * width)
    return torch.cat([mean, torch.ones_like(mean[..., :1])], -1) if layer.bias else mean


def index_sums(layer: Layer, indices: Tensor, weights: Tensor) -> Tensor:
    """The sums of a lookup's weights (N, S) at each index, (N, 1, D); an index of -1 counts nowhere."""
    sums = weights.new_zeros(len(indices), layer.inputs + 1)
    return sums.scatter_add_(1, indices.where(indices >= 0, layer.inputs), weights)[:, None, :-1]


def _planes(layer: Layer, x: Tensor) -> Tensor:
    """The padded input per group, (N, G, channels, height, width); a Linear's positions lie along the width."""
    if layer.kind == "linear":
        return x.reshape(len(x), -1, x.shape[-1]).mT[:, None, :, None]
    return geometry.padded(layer, x).unflatten(1, (layer.groups, -1))


def _shifted(layer: Layer, planes: Tensor, weights: Tensor | None) -> tuple[Tensor, int]:
    """Rows of the padded plane with k_w shifts side by side, (G, channels k_w, rows, N width), and the height.

    With ``weights`` (N, G) they are multiplied by the roots on the way.
    """
    height, width = geometry.output_size(layer, planes)
    stride, dilation = layer.stride[1], layer.dilation[1]
    lines = planes.permute(1, 2, 3, 0, 4)
    shifts = [lines[..., j * dilation :][..., : stride * width : stride] for j in range(layer.kernel[1])]
    if weights is None:
        return torch.stack(shifts, 2).flatten(-2).flatten(1, 2), height
    rows = planes.new_empty(*lines.shape[:2], len(shifts), *shifts[0].shape[2:])
    roots = weights.sqrt().mT[:, None, None, :, None]
    for j, shift in enumerate(shifts):
        torch.mul(shift, roots, out=rows[:, :, j])
    return rows.flatten(-2).flatten(1, 2), height


def _slab_products(layer: Layer, rows: Tensor, height: int) -> Iterator[tuple[int, int, Tensor]]:
    """For every two rows of the kernel, the lower one first, the product of their slabs, (G, n, n).

    n is the number of channels times k_w. Pairs of kernel rows at one distance read the same rows of the plane, except
    for a few rows at either end: the rows that they share are multiplied once.
    """
    stride, dilation = layer.stride[0], layer.dilation[0]

    def product(start: int, stop: int, lag: int) -> Tensor:
        lower, upper = (rows[:, :, first : first + stop - start : stride] for first in (start + lag, start))
        return lower.flatten(2) @ upper.flatten(2).mT

    for distance in range(layer.kernel[0]):
        lag, starts = distance * dilation, [i * dilation for i in range(layer.kernel[0] - distance)]
        first, last = starts[-1], height if stride == 1 else 0
        shared = product(first, last, lag) if len(starts) > 1 and first < last else None
        for upper, start in enumerate(starts):
            if shared is None:
                total = product(start, start + stride * height, lag)
            else:
                ends = [(start, first), (last, start + height)]
                total = sum((product(*end, lag) for end in ends if end[0] < end[1]), shared)
            yield upper + distance, upper, total
