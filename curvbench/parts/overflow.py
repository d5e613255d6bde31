"""Where numbers leave the range of a dtype: in a pass through the network, or in a probe's statistics."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from curvbench import states
from curvbench.instance import Instance
from curvbench.instance.passes import in_network_pass
from curvbench.operators import BlockDiagonal
from curvbench.spec import Diverged, Layer, Probe
from curvbench.uses.calls import View

_OF_LABELS = ("type-2", "mc", "empirical")
# Names of the operations that overflow; others give infinity without an overflow, or hold memory that nobody has set.
_OVERFLOWING = frozenset(
    {
        *("matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv", "dot", "einsum", "tensordot", "outer", "addmm"),
        *("baddbmm", "baddbmm_", "multi_dot", "mul", "mul_", "__mul__", "__rmul__", "__imul__", "square", "square_"),
        *("add", "add_", "__add__", "__radd__", "__iadd__", "sub", "__sub__", "sum", "cumsum", "mean", "addcmul_"),
        *("index_add", "index_add_", "norm", "vector_norm", "linalg_norm", "linalg_vector_norm", "to", "half"),
    }
)


class Watch(TorchFunctionMode):
    """Inside, an operation of statistics in ``dtype`` that overflows raises Diverged, with the layer.

    A later division may hide the overflow: x / infinity is zero, which is finite. Passes through the network are not
    watched.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in _OVERFLOWING and not in_network_pass():
            if any(tensor.dtype == self._dtype and bool(tensor.isinf().any()) for tensor in states.tensors(result)):
                raise Diverged(f"{str(self._dtype).removeprefix('torch.')} overflows at {_layer_in_work()}")
        return result


def _layer_in_work() -> str:
    """The layer whose statistics are computed: that of the nearest caller with a layer among its variables."""
    frame = sys._getframe(2)
    while frame is not None and frame.f_back is not None:
        for value in frame.f_locals.values():
            layer = value if isinstance(value, Layer) else getattr(value, "layer", None)
            if isinstance(layer, Layer):
                return f"layer {layer.name!r}: its statistics are not finite"
        frame = frame.f_back
    return "its statistics"


def pass_overflow(instance: Instance) -> str | None:
    """The first layer at which a forward pass is not finite, in words. None means that it is finite."""
    large = (la.name for la in instance.layers if not all(_is_finite(instance.parameters[p]) for p in la.parameters))
    if (name := next(large, None)) is not None:
        return f"layer {name!r}: its weights are not finite"
    tape = instance.tape()
    before = "the inputs"
    for call, use in tape.calls:
        if call.x is not None and not _is_finite(call.x):
            return f"{before}: its outputs are not finite" if before != "the inputs" else before
        name = use.role or (call.key.weight.name if isinstance(call.key.weight, View) else "")
        before = f"layer {name!r}"
    return None if _is_finite(tape.outputs) else f"{before}: the outputs are not finite"


def overflow(instance: Instance, probe: Probe, state: Any = None) -> str | None:
    """Where a pass or the statistics in ``state`` are not finite, in words. None means that all are finite."""
    if where := pass_overflow(instance):
        return where
    kind = own if (own := probe.fisher_type) and own in _OF_LABELS else "empirical"
    for slopes in instance.slopes(instance.tape(), kind, probe.mc_samples, probe.seed or 0):
        for name in reversed(list(slopes)):
            if not _is_finite(slopes[name]):
                return f"layer {name!r}: its output gradients are not finite"
    flawed = (name for name, part in _parts(instance, probe, state) if not all(map(_is_finite, states.tensors(part))))
    if (layer := next(flawed, None)) is not None:
        return f"layer {layer!r}: its statistics are not finite"
    return None if all(map(_is_finite, states.tensors(state))) else "its statistics"


def _parts(instance: Instance, probe: Probe, state: Any) -> Iterator[tuple[str, Any]]:
    """The parts of a state that belong to one layer, with the layer's name."""
    operator = None if state is None else probe.operator(state)
    if isinstance(operator, BlockDiagonal) and len(operator.blocks) == len(instance.layers):
        yield from ((layer.name, block) for layer, block in zip(instance.layers, operator.blocks, strict=True))
    for tensor in states.tensors(operator):
        if tensor.shape == (instance.size,):
            yield from ((layer.name, tensor[layer.slice]) for layer in instance.layers)


def _is_finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())
