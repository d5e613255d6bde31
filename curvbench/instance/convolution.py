"""Convolutions in float64 on CPU by large matrix products.

Torch's own float64 convolutions run sample by sample, at a sixth of the machine's peak. The weights must be frozen, as
in a recorded forward pass: only the gradient of the input is computed. Torch computes every other convolution (other
dtypes and devices, groups). Both directions are operations of torch's dispatcher, so that meters count a convolution
and not its matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

TILE_POSITIONS = 1024  # per product: enough for the peak of a matrix product, few enough for the cache

Pair = tuple[int, int]


class FrozenConvolutions(TorchFunctionMode):
    """Inside this context ``conv2d`` with frozen float64 weights on CPU runs as matrix products."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.conv2d and (geometry := _plain(*args, **(kwargs or {}))) is not None:
            return _Convolution.apply(*geometry)  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


def _plain(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[Any, ...] | None:
    """The arguments of ``torch.conv2d`` with pairs written out; None means that torch computes this call."""
    is_supported = (
        weight.dtype == torch.float64
        and weight.device.type == "cpu"
        and not weight.requires_grad
        and (bias is None or not bias.requires_grad)
        and groups == 1
        and input.ndim == 4
        and not isinstance(padding, str)
    )
    return (input, weight, bias, _pair(stride), _pair(padding), _pair(dilation)) if is_supported else None


def _pair(value: Any) -> Pair:
    first, second = (value, value) if isinstance(value, int) else (value[0], value[-1])
    return first, second


class _Convolution(torch.autograd.Function):
    """``convolve``, differentiable in x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Pair) -> Any:
        ctx.weight, ctx.shape, ctx.geometry = weight, x.shape, geometry
        return torch.ops.curvbench.convolution(x, weight, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        of_input = torch.ops.curvbench.convolution_backward(gradients[0], ctx.weight, ctx.shape, *ctx.geometry)
        return of_input, None, None, None, None, None


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    """The convolution of x (N, C, H, W) with weight (M, C, kh, kw) and bias (M,), (N, M, H', W')."""
    plane = F.pad(x, (padding[1], padding[1], padding[0], padding[0])).contiguous()
    (N, C, H, W), (M, _, kh, kw) = plane.shape, weight.shape
    height = (H - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    width = (W - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    windows = plane.as_strided(
        (C, kh, kw, N, height, width),
        (H * W, W * dilation[0], dilation[1], C * H * W, W * stride[0], stride[1]),
    )
    out = x.new_empty(N, M, height, width)  # no view, because an in-place activation may follow
    matrix = weight.reshape(M, -1)
    step = max(1, TILE_POSITIONS // (height * width))
    for first in range(0, N, step):
        patches = windows[:, :, :, first : first + step].reshape(C * kh * kw, -1)
        out[first : first + step] = (matrix @ patches).reshape(M, -1, height, width).transpose(0, 1)
    return out if bias is None else out.add_(bias[:, None, None])


def convolve_transposed(
    gradient: Tensor, weight: Tensor, shape: Sequence[int], stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """The gradient at the input, of shape ``shape``, from the gradient (N, M, H', W') at the output."""
    kernel = weight.shape[2:]
    reach = [d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding, strict=True)]
    if max(stride) == 1 and min(reach) >= 0:
        return convolve(gradient, weight.flip(2, 3).transpose(0, 1), None, stride, (reach[0], reach[1]), dilation)
    N, M, height, width = gradient.shape
    out = gradient.new_empty(shape)
    matrix = weight.reshape(M, -1).T.contiguous()
    step = max(1, TILE_POSITIONS // (height * width))
    for first in range(0, N, step):
        part = gradient[first : first + step].reshape(-1, M, height * width)
        patches = (matrix @ part.transpose(0, 1).reshape(M, -1)).reshape(len(matrix), len(part), -1).transpose(0, 1)
        out[first : first + step] = F.fold(patches, tuple(shape[2:]), kernel, dilation, padding, stride)
    return out


def convolution_in_float64(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Tensor:
    """``aten.convolution`` of float64 tensors without a graph, by ``convolve`` where it applies."""
    if transposed or groups > 1 or x.ndim != 4 or x.device.type != "cpu":
        other: Tensor = torch.ops.aten.convolution(
            x, weight, bias, stride, padding, dilation, transposed, output_padding, groups
        )
        return other
    result: Tensor = torch.ops.curvbench.convolution(x, weight, bias, stride, padding, dilation)
    return result


_GEOMETRY = "int[2] stride, int[2] padding, int[2] dilation"
# torch.library.custom_op would import the compiler at its first call, which takes a second in every process.
_LIBRARY = torch.library.Library("curvbench", "DEF")
_LIBRARY.define(f"convolution(Tensor x, Tensor weight, Tensor? bias, {_GEOMETRY}) -> Tensor")
_LIBRARY.define(f"convolution_backward(Tensor grad_output, Tensor weight, int[] shape, {_GEOMETRY}) -> Tensor")
_LIBRARY.impl("convolution", convolve, "CPU")
_LIBRARY.impl("convolution_backward", convolve_transposed, "CPU")
