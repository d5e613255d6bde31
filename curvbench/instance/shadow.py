"""Passes whose graph is float32 and whose values are float64: backward passes take a third of the seconds, exactly.

Each float32 tensor of a pass has a shadow in float64, on which every operation runs. Autograd sees the rounded result:
it records an ordinary float32 graph, and whatever this saves (the sign of a ReLU, the place of a maximum, a softmax) is
that of the float64 value. What is lost is the rounding of the backward pass, 1e-7 of a Gram matrix, where a float32
forward pass flips units near zero and costs 1e-3.

A mode of torch's dispatcher does this below autograd, so that no operation needs a rule of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from curvbench.instance.contents import leaves, mapped
from curvbench.instance.convolution import convolution_in_float64

_UNFOLLOWED = {torch.float64, torch.float16, torch.bfloat16, torch.complex32, torch.complex64, torch.complex128}


class NotFollowed(RuntimeError):
    """A pass has an operation whose float64 result cannot stand in for the float32 one."""


class Shadows(TorchDispatchMode):
    """Inside this context operations on float32 tensors compute in float64 and return the rounded result.

    Values that come from outside (weights, inputs, constants) have their own value as shadow. Tensors of other
    floating-point dtypes, and parts that a model runs again in its backward pass, raise ``NotFollowed``.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._shadows = WeakTensorKeyDictionary()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first operation imports the compiler, which takes most of a second

    def take(self, outputs: Tensor) -> Tensor:
        """The float64 values of a pass's outputs; all other shadows are dropped, which would keep their memory."""
        values: Tensor = self._of(outputs)
        self._shadows = WeakTensorKeyDictionary()
        return values

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        _refuse(func, args, kwargs)
        if not any(_is_single(value) for _, value in leaves((args, kwargs))):
            return func(*args, **kwargs)
        own, shadowed = (args, kwargs), mapped((args, kwargs), self._of)
        values = (convolution_in_float64 if func is _CONVOLUTION else func)(*shadowed[0], **shadowed[1])
        if _is_view(func):
            return self._noted(func(*args, **kwargs), values)
        written = self._write_back(own, shadowed) if _writes(func) else {}
        return mapped(values, lambda value: written[id(value)] if id(value) in written else self._rounded(value))

    def _of(self, value: Any) -> Any:
        """What stands for an argument in float64."""
        if value is torch.float32:
            return torch.float64
        if not _is_single(value):
            return value
        if value not in self._shadows:
            self._shadows[value] = value.double()
        return self._shadows[value]

    def _rounded(self, value: Any) -> Any:
        """A new result as autograd sees it."""
        if not isinstance(value, Tensor) or value.dtype != torch.float64:
            return value
        return self._noted(value.float(), value)

    def _noted(self, results: Any, values: Any) -> Any:
        """Results of an operation, with their float64 values noted."""
        for (_, result), (_, value) in zip(leaves((results,)), leaves((values,)), strict=True):
            if _is_single(result):
                self._shadows[result] = value
        return results

    def _write_back(self, own: Any, shadowed: Any) -> dict[int, Tensor]:
        """Write what an operation has written to shadows to the tensors themselves; these by the id of the shadow."""
        pairs = zip(leaves(own), leaves(shadowed), strict=True)
        singles = [(tensor, shadow) for (_, tensor), (_, shadow) in pairs if _is_single(tensor)]
        for tensor, shadow in singles:
            tensor.copy_(shadow)
        return {id(shadow): tensor for tensor, shadow in singles}


_CONVOLUTION = torch.ops.aten.convolution.default


def _is_single(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float32


def _refuse(func: OpOverload, args: Any, kwargs: Any) -> None:
    for _, value in leaves((args, kwargs)):
        dtype = value.dtype if isinstance(value, Tensor) else value
        if isinstance(dtype, torch.dtype) and dtype in _UNFOLLOWED:
            raise NotFollowed(f"{func} computes in {dtype}")
    if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
        raise NotFollowed("a part of the model runs again in its backward pass, where nothing is shadowed")


@lru_cache(1024)
def _is_view(func: OpOverload) -> bool:
    """Whether results share the memory of an argument, which the operation does not write to."""
    return any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)


@lru_cache(1024)
def _writes(func: OpOverload) -> bool:
    return any(a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments)
