"""The rules of the calls whose uses of a weight are known: products, convolutions, lookups, norms and broadcasts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from curvbench.uses.calls import Window
from curvbench.uses.tracer import RULES, Rule, Tracer, tensors_in, traced


def rule(*functions: Any) -> Callable[[Rule], Rule]:
    """Register a rule for some torch functions."""

    def register(act: Rule) -> Rule:
        for function in functions:
            RULES[function] = act
        return act

    return register


@rule(F.linear)
def linear(t: Tracer, _: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    """X W^T + b for x (..., D) and W (M, D)."""
    if input.ndim < 2 or weight.ndim != 2 or t.weight(input) is not None:
        return NotImplemented
    key, shift = t.take("linear", weight), t.take("shift", bias)
    if key is None and shift is None:
        return NotImplemented
    out = traced(F.linear(input, t.cut(weight, key), t.cut(bias, shift)))
    rows = tuple(range(out.ndim - 1))
    t.note(key, out, rows, weight, input)
    t.note(shift, out, rows, bias, host=key)  # type: ignore[arg-type]
    return out


@rule(torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm, torch.bmm, Tensor.bmm)
def matmul(t: Tracer, func: Any, a: Tensor, b: Tensor) -> Any:
    """A product with a weight on either side, or with one weight per entry of a batch (experts)."""
    left, right = t.weight(a) is not None, t.weight(b) is not None
    if left == right:
        return NotImplemented
    with t:
        if right:
            return _times_weight(a, b)
        if a.ndim == 2 and b.ndim >= 2:
            return F.linear(b.mT, a).mT
        if a.ndim == 3 and b.ndim == 3 and len(a) == len(b):
            return _times_weight(b.mT, a.mT).mT
    return NotImplemented


def _times_weight(x: Tensor, weight: Tensor) -> Any:
    if weight.ndim == 2 and x.ndim >= 2:
        return F.linear(x, weight.mT)
    if weight.ndim == 1 and x.ndim >= 2:
        return F.linear(x, weight[None]).squeeze(-1)
    if weight.ndim == 3 and x.ndim == 3 and len(x) == len(weight):
        return torch.stack([F.linear(part, of_part.mT) for part, of_part in zip(x, weight, strict=True)])
    return NotImplemented


@rule(torch.addmm, Tensor.addmm)
def addmm(t: Tracer, _: Any, input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Any:
    """Beta b + alpha x W, which is a Linear with a transposed weight."""
    if t.weight(mat2) is None or t.weight(mat1) is not None or (beta, alpha) != (1, 1) or input.ndim != 1:
        return NotImplemented
    with t:
        return F.linear(mat1, mat2.mT, input)


@rule(F.pad)
def pad(t: Tracer, func: Any, input: Tensor, pad: Sequence[int], mode: str = "constant", value: Any = None) -> Any:
    """Padding that repeats entries, as a convolution has it that is not padded with zeros."""
    if mode == "constant" or t.weight(input) is not None:
        return NotImplemented
    out = func(input, pad, mode, value)
    t.note_padding(out, input)
    return out


@rule(torch.conv1d, torch.conv2d, torch.conv3d)
def conv(
    t: Tracer,
    func: Any,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """A convolution of x (N, C, ...) with W (M, C / groups, ...)."""
    if input.ndim != weight.ndim or t.weight(input) is not None:
        return NotImplemented
    key, shift = t.take("conv", weight), t.take("shift", bias)
    if key is None and shift is None:
        return NotImplemented
    out = traced(func(input, t.cut(weight, key), t.cut(bias, shift), stride, padding, dilation, groups))
    window = _window(weight, stride, padding, dilation, groups)
    t.note(key, out, (0,), weight, input, window=window)
    t.note(shift, out, (0, *range(2, out.ndim)), bias, host=key)  # type: ignore[arg-type]
    return out


@rule(torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)
def conv_transpose(
    t: Tracer,
    func: Any,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Any:
    """The adjoint of a convolution, from x (N, C, ...) with W (C, M / groups, ...)."""
    if input.ndim != weight.ndim or t.weight(input) is not None:
        return NotImplemented
    key, shift = t.take("transposed", weight), t.take("shift", bias)
    if key is None and shift is None:
        return NotImplemented
    places = (stride, padding, output_padding, groups, dilation)
    out = traced(func(input, t.cut(weight, key), t.cut(bias, shift), *places))
    window = _window(weight, stride, padding, dilation, groups)
    t.note(key, out, (0,), weight, input, window=window)
    t.note(shift, out, (0, *range(2, out.ndim)), bias)  # type: ignore[arg-type]
    return out


def _window(weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int) -> Window:
    kernel = tuple(weight.shape[2:])
    dilations = _each(dilation, len(kernel))
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
        pads = tuple((total // 2, total - total // 2) for total in totals)
    else:
        pads = tuple((p, p) for p in _each(0 if padding == "valid" else padding, len(kernel)))
    return Window(groups, kernel, _each(stride, len(kernel)), dilations, pads)


def _each(value: Any, count: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * count if len(values) == 1 else values


@rule(F.embedding)
def embedding(
    t: Tracer,
    func: Any,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    """Rows of W (V, d) by index; the row ``padding_idx`` has no gradient."""
    if max_norm is not None or scale_grad_by_freq or (key := t.take("lookup", weight)) is None:
        return NotImplemented
    out = traced(func(input, t.cut(weight, key), padding_idx))
    indices = input.long()
    if padding_idx is not None:
        indices = torch.where(input == padding_idx % len(weight), -1, input)
    t.note(key, out, tuple(range(input.ndim)), weight, indices)
    return out


@rule(torch.embedding)
def torch_embedding(t: Tracer, _: Any, weight: Tensor, indices: Tensor, padding_idx: int = -1, *others: Any) -> Any:
    """The same with torch's own order of arguments."""
    return (
        NotImplemented
        if any(others)
        else embedding(t, F.embedding, indices, weight, None if padding_idx < 0 else padding_idx)
    )


@rule(F.embedding_bag)
def embedding_bag(
    t: Tracer,
    _: Any,
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Any:
    """Sums or means of looked-up rows, as lookups and a sum."""
    if t.weight(weight) is None or mode == "max" or max_norm is not None or scale_grad_by_freq:
        return NotImplemented
    if input.ndim == 2:
        bags = torch.arange(len(input), device=input.device).repeat_interleave(input.shape[1])
        count = len(input)
    else:
        assert offsets is not None
        starts = offsets[:-1] if include_last_offset else offsets
        bags = torch.searchsorted(starts, torch.arange(len(input), device=input.device), right=True) - 1
        count = len(starts)
    with t:
        rows = F.embedding(input.flatten(), weight, padding_idx)
    is_row = torch.ones_like(rows[:, 0])
    if padding_idx is not None:
        is_row = is_row * (input.flatten() != padding_idx % len(weight))
    shares = is_row if per_sample_weights is None else is_row * per_sample_weights.flatten()
    sums = rows.new_zeros(count, rows.shape[1]).index_add(0, bags, rows * shares[:, None])
    if mode == "sum":
        return sums
    return sums / is_row.new_zeros(count).index_add(0, bags, is_row).clamp_min(1)[:, None]


@rule(Tensor.__getitem__)
def getitem(t: Tracer, _: Any, tensor: Tensor, index: Any) -> Any:
    """A lookup by a tensor of integers; slices are views, which need no rule."""
    is_lookup = isinstance(index, Tensor) and index.dtype in (torch.int64, torch.int32) and index.ndim > 0
    return _rows(t, tensor, index) if is_lookup and t.weight(tensor) is not None else NotImplemented


@rule(torch.index_select, Tensor.index_select)
def index_select(t: Tracer, _: Any, tensor: Tensor, dim: int, index: Tensor) -> Any:
    """A lookup of entries along the first dimension."""
    return _rows(t, tensor, index) if dim == 0 and t.weight(tensor) is not None else NotImplemented


def _rows(t: Tracer, tensor: Tensor, index: Tensor) -> Any:
    with t:
        rows = F.embedding(index % len(tensor), tensor.reshape(len(tensor), -1))
    return rows.reshape(*index.shape, *tensor.shape[1:])


def _norm(t: Tracer, call: Callable[..., Tensor], input: Tensor, weight: Any, bias: Any, kept: tuple[int, ...]) -> Any:
    """A norm ``call(input, weight, bias)`` whose scale and shift lie along the dimensions ``kept`` of the output."""
    key, shift = t.take("scale", weight), t.take("shift", bias)
    if (key is None and shift is None) or t.weight(input) is not None:
        return NotImplemented
    out = traced(call(input, t.cut(weight, key), t.cut(bias, shift)))
    rows = tuple(d for d in range(out.ndim) if d not in kept)
    t.note(key, out, rows, weight, input, normalized=lambda x: call(x, None, None))
    t.note(shift, out, rows, bias, host=key)
    return out


@rule(F.layer_norm)
def layer_norm(
    t: Tracer,
    func: Any,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
) -> Any:
    """Scale and shift along the normalized dimensions."""
    kept = tuple(range(input.ndim - len(normalized_shape), input.ndim))
    return _norm(t, lambda x, w, b: func(x, normalized_shape, w, b, eps), input, weight, bias, kept)


@rule(F.rms_norm)
def rms_norm(
    t: Tracer, func: Any, input: Tensor, normalized_shape: Sequence[int], weight: Any = None, eps: float | None = None
) -> Any:
    """Scale along the normalized dimensions."""
    kept = tuple(range(input.ndim - len(normalized_shape), input.ndim))
    return _norm(t, lambda x, w, b: func(x, normalized_shape, w, eps), input, weight, None, kept)


@rule(F.group_norm)
def group_norm(
    t: Tracer, func: Any, input: Tensor, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Any:
    """Scale and shift per channel."""
    return _norm(t, lambda x, w, b: func(x, num_groups, w, b, eps), input, weight, bias, (1,))


@rule(F.batch_norm)
def batch_norm(
    t: Tracer,
    func: Any,
    input: Tensor,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """Scale and shift per channel; in training mode the running statistics must be updated once only."""

    def call(x: Tensor, w: Any, b: Any) -> Tensor:
        is_again = training and w is None and b is None
        means = (None, None) if is_again else (running_mean, running_var)
        return func(x, *means, w, b, training, momentum, eps)

    return _norm(t, call, input, weight, bias, (1,))


@rule(F.instance_norm)
def instance_norm(
    t: Tracer,
    func: Any,
    input: Tensor,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """Scale and shift per channel."""
    places = (running_mean, running_var)
    return _norm(t, lambda x, w, b: func(x, *places, w, b, use_input_stats, momentum, eps), input, weight, bias, (1,))


@rule(torch.prelu, F.prelu, Tensor.prelu)
def prelu(t: Tracer, _: Any, input: Tensor, weight: Tensor) -> Any:
    """X where x is positive, else the slope of the channel times x."""
    if t.weight(weight) is None:
        return NotImplemented
    with t:
        slope = weight.reshape(-1, *[1] * (input.ndim - 2)) if input.ndim > 1 else weight
        return torch.where(input > 0, input, slope * input)


@rule(Tensor.expand, Tensor.expand_as, torch.broadcast_to, Tensor.broadcast_to, Tensor.repeat)
def expand(t: Tracer, func: Any, tensor: Tensor, *sizes: Any, **kwargs: Any) -> Any:
    """A weight that is repeated along new or single dimensions, as a class token is for every sample."""
    if t.weight(tensor) is None:
        return NotImplemented
    out = func(tensor, *sizes, **kwargs)
    rows = _repeated(tensor.shape, out.shape)
    if out.shape == tensor.shape or rows is None:
        return NotImplemented
    key = t.take("shift", tensor, rows=math.prod(out.shape[d] for d in rows))
    if key is None:
        return NotImplemented
    out = out if t.live else out.detach().requires_grad_()
    t.note(key, out, rows, tensor)
    return out


def _repeated(shape: torch.Size, out: torch.Size) -> tuple[int, ...] | None:
    """The dimensions of the result along which a tensor was repeated; None if another dimension has grown."""
    sizes = (1,) * (len(out) - len(shape)) + tuple(shape)
    if any(a not in (1, b) for a, b in zip(sizes, out, strict=True)):
        return None
    return tuple(d for d, a in enumerate(sizes) if a == 1)


_NAMES = (
    "add sub mul div true_divide where maximum minimum pow lerp addcmul masked_fill rsub atan2 logaddexp fmod".split()
)
_DUNDERS = "add radd sub rsub mul rmul truediv rtruediv pow rpow iadd isub imul itruediv".split()
ELEMENTWISE = [
    *(getattr(torch, name) for name in _NAMES if hasattr(torch, name)),
    *(getattr(Tensor, name) for name in _NAMES if hasattr(Tensor, name)),
    *(getattr(Tensor, f"{name}_") for name in _NAMES if hasattr(Tensor, f"{name}_")),
    *(getattr(Tensor, f"__{name}__") for name in _DUNDERS if hasattr(Tensor, f"__{name}__")),
]


@rule(*ELEMENTWISE)
def elementwise(t: Tracer, func: Any, *args: Any, **kwargs: Any) -> Any:
    """An operation entry by entry: the weight is expanded to the result's shape, where every entry has a gradient."""
    tensors = list(tensors_in((args, kwargs.values())))
    weights = [x for x in tensors if t.weight(x) is not None]
    if not weights or len(weights) == len(tensors) or (tensors[0] is weights[0] and _is_in_place(func)):
        return NotImplemented
    shape = torch.broadcast_shapes(*(x.shape for x in tensors))
    replaced = {id(w): expanded for w in weights if (expanded := _expanded(t, w, shape)) is not None}
    if not replaced:
        return NotImplemented
    args = tuple(replaced.get(id(x), x) for x in args)
    return func(*args, **{name: replaced.get(id(x), x) for name, x in kwargs.items()})


def _is_in_place(func: Any) -> bool:
    name = func.__name__
    return (name.endswith("_") and not name.endswith("__")) or name.startswith("__i")


def _expanded(t: Tracer, weight: Tensor, shape: torch.Size) -> Tensor | None:
    rows = _repeated(weight.shape, shape)
    if rows is None or (key := t.take("shift", weight, rows=math.prod(shape[d] for d in rows))) is None:
        return None
    expanded = weight.expand(shape)
    expanded = expanded if t.live else expanded.detach().requires_grad_()
    t.note(key, expanded, rows, weight)
    return expanded


@rule(torch.einsum)
def einsum(t: Tracer, _: Any, equation: str, *operands: Any) -> Any:
    """A sum over indices of one weight and one other tensor, which is a product of matrices."""
    tensors = operands[0] if len(operands) == 1 and isinstance(operands[0], (tuple, list)) else operands
    weights = [t.weight(x) is not None for x in tensors]
    if len(tensors) != 2 or sum(weights) != 1 or "." in equation or "->" not in equation:
        return NotImplemented
    inputs, out = equation.replace(" ", "").split("->")
    names = inputs.split(",")
    x, w = (names[1], names[0]) if weights[0] else (names[0], names[1])
    if any(len(set(letters)) < len(letters) for letters in (x, w, out)) or set(w) - set(x) - set(out):
        return NotImplemented
    both = [c for c in w if c in x and c in out]
    with t:
        value, weight = (tensors[1], tensors[0]) if weights[0] else (tensors[0], tensors[1])
        return _summed(value, x, weight, w, out, both)


def _summed(value: Tensor, x: str, weight: Tensor, w: str, out: str, both: Sequence[str]) -> Any:
    if both:  # one product per entry of the index that both have
        c = both[0]
        pairs = zip(value.unbind(x.index(c)), weight.unbind(w.index(c)), strict=True)
        names = (x.replace(c, ""), w.replace(c, ""), out.replace(c, ""))
        parts = [_summed(a, names[0], b, names[1], names[2], both[1:]) for a, b in pairs]
        return torch.stack(parts, out.index(c))
    summed, free = [c for c in w if c in x], [c for c in w if c not in x]
    kept = [c for c in x if c in out]
    alone = [x.index(c) for c in x if c not in out and c not in w]
    value = value.sum(alone) if alone else value
    letters = [c for c in x if c in out or c in w]
    rows = value.permute([letters.index(c) for c in (*kept, *summed)])
    sizes = dict(zip(w, weight.shape, strict=True))
    flat = rows.reshape(*rows.shape[: len(kept)], math.prod(sizes[c] for c in summed))
    matrix = weight.permute([w.index(c) for c in (*free, *summed)])
    product = F.linear(flat, matrix.reshape(math.prod(sizes[c] for c in free), -1))
    product = product.reshape(*product.shape[:-1], *(sizes[c] for c in free))
    return product.permute([[*kept, *free].index(c) for c in out])


@rule(F.bilinear, torch.bilinear)
def bilinear(t: Tracer, _: Any, input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    """x^T W y + b per output, which is linear in the outer product of x and y."""
    if t.weight(weight) is None or input1.ndim < 2:
        return NotImplemented
    with t:
        return F.linear((input1[..., :, None] * input2[..., None, :]).flatten(-2), weight.flatten(1), bias)
