"""Geometry of blocks: inputs -> patches, output gradients -> slopes.

A block's score for one sample is the matrix ``slopes @ patches^T`` of shape (G, M, D). This file alone decides how
convolutions, groups, padding, sequences and biases are treated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from curvbench.spec.geometry import Layer


def as_plane(layer: Layer, x: Tensor) -> Tensor:
    """(N, C, length) -> (N, C, 1, length) for a Conv1d."""
    return x.unsqueeze(-2) if layer.kind == "conv1d" else x


def padded(layer: Layer, x: Tensor) -> Tensor:
    """The input of a convolution as padded planes (N, channels, height, width), of height 1 for a Conv1d."""
    plane = as_plane(layer, x)
    return F.pad(plane, layer.padding) if any(layer.padding) else plane


def own_padding(layer: Layer, planes: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Planes (N, channels, height, width) and the padding that torch's convolution adds to them by itself.

    Only a padding that differs from side to side is copied.
    """
    left, right, top, bottom = layer.padding
    return (planes, (top, left)) if (left, top) == (right, bottom) else (F.pad(planes, layer.padding), (0, 0))


def output_size(layer: Layer, planes: Tensor, padding: tuple[int, int] = (0, 0)) -> tuple[int, int]:
    """Height and width of a convolution's output for its planes (..., height, width) with a ``padding`` to come."""
    sizes = zip(planes.shape[-2:], padding, layer.kernel, layer.stride, layer.dilation, strict=True)
    height, width = ((size + 2 * p - d * (k - 1) - 1) // s + 1 for size, p, k, s, d in sizes)
    return height, width


def windows(layer: Layer, planes: Tensor) -> Tensor:
    """A view (N, C, k_h, k_w, H', W') of padded planes (N, C, H, W): the pixels that every kernel entry reads.

    A copy of the view equals the result of ``F.unfold`` and takes a third of the time.
    """
    row, pixel = planes.stride()[-2:]
    (d_h, d_w), (s_h, s_w) = layer.dilation, layer.stride
    steps = (row * d_h, pixel * d_w, row * s_h, pixel * s_w)
    size = (*planes.shape[:2], *layer.kernel, *output_size(layer, planes))
    return planes.as_strided(size, (*planes.stride()[:2], *steps))


def patches(layer: Layer, x: Tensor) -> Tensor:
    """The matrix that the layer multiplies with its weight, (N, ...) -> (N, G, D, S); the bias's 1 comes last."""
    if layer.kind == "matrix":
        return x
    if layer.kind == "lookup":
        return one_hot(layer, x)
    if layer.kind == "vector":
        return torch.eye(layer.inputs, dtype=x.dtype, device=x.device).expand(len(x), 1, -1, -1)
    if layer.kind == "linear":
        entries = x.reshape(x.shape[0], -1, x.shape[-1]).mT[:, None]
    else:
        entries = windows(layer, padded(layer, x)).reshape(x.shape[0], layer.groups, layer.inputs - layer.bias, -1)
    return _with_ones(entries, 2) if layer.bias else entries


def joined_patches(layer: Layer, x: Tensor) -> Tensor:
    """``patches`` with the samples side by side, for one product with all of them, (N, ...) -> (G, D, S, N)."""
    if layer.kind in ("matrix", "lookup", "vector"):
        return patches(layer, x).permute(1, 2, 3, 0)
    if layer.kind == "linear":
        entries = x.reshape(x.shape[0], -1, x.shape[-1]).permute(2, 1, 0)[None]
    else:
        planes = padded(layer, x).permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
        pixels = windows(layer, planes).permute(1, 2, 3, 4, 5, 0)
        entries = pixels.reshape(layer.groups, layer.inputs - layer.bias, -1, x.shape[0])
    return _with_ones(entries, 1) if layer.bias else entries


def _with_ones(entries: Tensor, dimension: int) -> Tensor:
    ones = entries.new_ones(()).expand_as(entries.narrow(dimension, 0, 1))
    return torch.cat([entries, ones], dimension)


def one_hot(layer: Layer, indices: Tensor) -> Tensor:
    """Indices (N, S), -1 for none, as columns of the identity in float64's place: (N, 1, D, S) of zeros and ones."""
    entries = indices.new_zeros(len(indices), layer.inputs + 1, indices.shape[1], dtype=torch.get_default_dtype())
    entries.scatter_(1, indices.where(indices >= 0, layer.inputs)[:, None], 1.0)
    return entries[:, None, : layer.inputs]


def unfolded(x: Tensor, groups: int, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """Patches of planes (N, C, ...) with any number of spatial dimensions, (N, G, C / G k, S)."""
    steps = x.stride()[2:]
    places = [
        (size - d * (k - 1) - 1) // s + 1 for size, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True)
    ]
    strides = [step * d for step, d in zip(steps, dilation, strict=True)] + [
        step * s for step, s in zip(steps, stride, strict=True)
    ]
    view = x.as_strided((*x.shape[:2], *kernel, *places), (*x.stride()[:2], *strides))
    return view.reshape(len(x), groups, x.shape[1] // groups * math.prod(kernel), math.prod(places))


def slopes(layer: Layer, gradient: Tensor) -> Tensor:
    """The output gradient of the layer as a matrix per group, (N, ...) -> (N, G, M, S)."""
    samples = gradient.shape[0]
    if layer.kind in ("matrix", "vector"):
        return gradient
    if layer.kind in ("linear", "lookup"):
        return gradient.reshape(samples, -1, gradient.shape[-1]).mT[:, None]
    return gradient.reshape(samples, layer.groups, layer.outputs, -1)
