"""The inputs of a model: a tensor, a tuple of arguments, or a mapping of keywords."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from curvbench.instance.contents import leaves, mapped
from curvbench.numerics import widened

Inputs = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]


def arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional arguments and the keywords with which the model is called."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return inputs if type(inputs) is tuple else (inputs,), {}


def shapes(inputs: Inputs) -> tuple[torch.Size, ...]:
    """The shapes of all tensors among the inputs."""
    return tuple(value.shape for value in _values(inputs) if isinstance(value, Tensor))


def _sample_shapes(inputs: Inputs) -> list[torch.Size]:
    """The shapes of one sample's tensors among the inputs."""
    return [value.shape[1:] for value in _values(inputs) if isinstance(value, Tensor)]


def _fetch(tensors: Mapping[str, Tensor], name: str, shape: torch.Size) -> Tensor:
    if name not in tensors or tensors[name].shape != shape:
        came = tuple(tensors[name].shape) if name in tensors else "nothing"
        raise ValueError(f"pack needs {name!r} of shape {tuple(shape)}, got {came}")
    return widened(tensors[name])


def _values(inputs: Inputs) -> list[Any]:
    return [value for _, value in leaves(inputs)]


def _named(inputs: Inputs) -> dict[str, Any]:
    if isinstance(inputs, Tensor):
        return {"the input": inputs}
    return {f"input {name}": value for name, value in leaves(inputs)}


def batch_contents(inputs: Inputs, targets: Tensor) -> dict[str, Any]:
    """Inputs and targets by their names in messages."""
    return {**_named(inputs), "the targets": targets}


def _widened(inputs: Inputs) -> Inputs:
    """The inputs in float32 at least; the same object if no tensor has fewer digits."""
    return inputs if all(widened(value) is value for value in _values(inputs)) else mapped(inputs, widened)


def _leading_size(inputs: Inputs, targets: Tensor) -> int:
    """The number of samples: an index of the targets' first dimension is a sample."""
    if not any(isinstance(value, Tensor) and value.ndim for value in _values(inputs)):
        raise ValueError("inputs must hold a tensor whose first dimension is the batch")
    return targets.shape[0]
