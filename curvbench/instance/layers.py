"""Geometry of covered layers: modules -> Layer, layer inputs -> patches, output gradients -> slopes.

A layer's score for one sample is the matrix ``slopes @ patches^T`` of shape (G, M, D). This file alone decides how
convolutions, groups, padding, sequences and biases are treated.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvbench.spec.geometry import Kind, Layer

_KINDS: dict[type[Any], Kind] = {nn.Linear: "linear", nn.Conv1d: "conv1d", nn.Conv2d: "conv2d"}


def describe(name: str, module: nn.Module) -> Layer | None:
    """The geometry of a trainable Linear, Conv1d or Conv2d (``start`` still 0); None for any other module.

    None too for a subclass that overrides ``forward``, and for a layer whose weight is frozen or computed (a
    parametrization), because its gradient is not the product of its input and its output gradient.
    """
    kind = _kind(module)
    weight = module._parameters.get("weight") if kind else None
    if kind is None or weight is None or not weight.requires_grad:
        return None
    trained_bias = module._parameters.get("bias")
    bias = trained_bias is not None and trained_bias.requires_grad
    groups = getattr(module, "groups", 1)
    layer = Layer(name, kind, groups, weight.shape[0] // groups, weight[0].numel() + bias, bias, 0)
    return layer if kind == "linear" else replace(layer, **_window(module))


def _kind(module: Any) -> Kind | None:
    return next((k for c, k in _KINDS.items() if isinstance(module, c) and type(module).forward is c.forward), None)


def parameter_names(layer: Layer) -> tuple[str, ...]:
    """Names of a layer's weight and of its bias, if the bias is trained, in ``named_parameters``."""
    prefix = f"{layer.name}." if layer.name else ""
    return (f"{prefix}weight", f"{prefix}bias") if layer.bias else (f"{prefix}weight",)


def _window(module: Any) -> dict[str, Any]:
    """Kernel, stride, dilation and padding of a convolution; a Conv1d counts as a Conv2d on planes of height 1."""

    def plane(values: tuple[int, ...]) -> tuple[int, ...]:
        return (1,) * (2 - len(values)) + tuple(values)

    kernel, dilation = plane(module.kernel_size), plane(module.dilation)
    if module.padding == "same":
        totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        pads = [(t // 2, t - t // 2) for t in totals]
    else:
        sizes = (0, 0) if module.padding == "valid" else module.padding
        pads = [(p, p) for p in (0,) * (2 - len(sizes)) + tuple(sizes)]
    (top, bottom), (left, right) = pads
    return {
        "kernel": kernel,
        "stride": plane(module.stride),
        "dilation": dilation,
        "padding": (left, right, top, bottom),
        "padding_mode": module.padding_mode,
    }


def _as_plane(layer: Layer, x: Tensor) -> Tensor:
    """(N, C, length) -> (N, C, 1, length) for a Conv1d."""
    return x.unsqueeze(-2) if layer.kind == "conv1d" else x


def padded(layer: Layer, x: Tensor) -> Tensor:
    """The input of a convolution as padded planes (N, channels, height, width), of height 1 for a Conv1d."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    left, right, top, bottom = layer.padding
    plane = _as_plane(layer, x)
    if any(layer.padding) and layer.kind == "conv1d":
        plane = F.pad(x, (left, right), mode=mode).unsqueeze(-2)
    elif any(layer.padding):
        plane = F.pad(plane, (left, right, top, bottom), mode=mode)
    return plane


def output_size(layer: Layer, planes: Tensor) -> tuple[int, int]:
    """Height and width of a convolution's output for its padded planes (..., height, width)."""
    sizes = zip(planes.shape[-2:], layer.kernel, layer.stride, layer.dilation, strict=True)
    height, width = ((size - d * (k - 1) - 1) // s + 1 for size, k, s, d in sizes)
    return height, width


def _windows(layer: Layer, planes: Tensor) -> Tensor:
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
    if layer.kind == "linear":
        entries = x.reshape(x.shape[0], -1, x.shape[-1]).mT[:, None]
    else:
        entries = _windows(layer, padded(layer, x)).reshape(x.shape[0], layer.groups, layer.inputs - layer.bias, -1)
    return _with_ones(entries, 2) if layer.bias else entries


def joined_patches(layer: Layer, x: Tensor) -> Tensor:
    """``patches`` with the samples side by side, for one product with all of them, (N, ...) -> (G, D, S, N)."""
    if layer.kind == "linear":
        entries = x.reshape(x.shape[0], -1, x.shape[-1]).permute(2, 1, 0)[None]
    else:
        planes = padded(layer, x).permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
        windows = _windows(layer, planes).permute(1, 2, 3, 4, 5, 0)
        entries = windows.reshape(layer.groups, layer.inputs - layer.bias, -1, x.shape[0])
    return _with_ones(entries, 1) if layer.bias else entries


def _with_ones(entries: Tensor, dimension: int) -> Tensor:
    ones = entries.new_ones(()).expand_as(entries.narrow(dimension, 0, 1))
    return torch.cat([entries, ones], dimension)


def slopes(layer: Layer, gradient: Tensor) -> Tensor:
    """The output gradient of the layer as a matrix per group, (N, ...) -> (N, G, M, S)."""
    samples = gradient.shape[0]
    if layer.kind == "linear":
        return gradient.reshape(samples, -1, gradient.shape[-1]).mT[:, None]
    return gradient.reshape(samples, layer.groups, layer.outputs, -1)
