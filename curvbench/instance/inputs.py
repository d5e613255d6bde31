"""The inputs of a model: a tensor, a tuple of arguments, or a mapping of keywords."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from curvbench.instance.contents import leaves, mapped, mapped_by_name
from curvbench.numerics import widened

Inputs = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]


def arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional arguments and the keywords with which the model is called."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return inputs if type(inputs) is tuple else (inputs,), {}


def inputs_of(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Inputs:
    """The inputs of a call of ``forward``; raises ValueError for keywords beside arguments that have no name."""
    if not kwargs:
        return args[0] if len(args) == 1 and isinstance(args[0], Tensor) else args
    kinds = {name: parameter.kind for name, parameter in inspect.signature(forward).parameters.items()}
    names = [name for name, kind in kinds.items() if kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    if len(args) > len(names):
        raise ValueError(
            f"{len(args)} positional arguments and the keywords {', '.join(map(repr, kwargs))} came, which have no "
            "common names: call the model with positional arguments or with keywords alone"
        )
    return {**dict(zip(names, args, strict=False)), **kwargs}


def counted(inputs: Inputs, like: Inputs, samples: int) -> int | None:
    """The number of samples in inputs, by the tensor that has as many rows in ``like`` as it has samples."""
    found = dict(leaves(inputs))
    sizes = [
        len(found[name])
        for name, value in leaves(like)
        if isinstance(value, Tensor) and value.shape[:1] == (samples,) and isinstance(found.get(name), Tensor)
    ]
    return sizes[0] if sizes else None


def shapes(inputs: Inputs) -> tuple[torch.Size, ...]:
    """The shapes of all tensors among the inputs."""
    return tuple(value.shape for value in _values(inputs) if isinstance(value, Tensor))


def _sample_shapes(inputs: Inputs) -> list[torch.Size]:
    """The shapes of one sample's tensors among the inputs."""
    return [value.shape[1:] for value in _values(inputs) if isinstance(value, Tensor)]


def _values(inputs: Inputs) -> list[Any]:
    return [value for _, value in leaves(inputs)]


def named_inputs(inputs: Inputs) -> dict[str, Any]:
    """The values among the inputs by their names in messages."""
    if isinstance(inputs, Tensor):
        return {"the input": inputs}
    return {f"input {name}": value for name, value in leaves(inputs)}


def batch_contents(inputs: Inputs, targets: Tensor) -> dict[str, Any]:
    """Inputs and targets by their names in messages."""
    return {**named_inputs(inputs), "the targets": targets}


def _widened(inputs: Inputs) -> Inputs:
    """The inputs in float32 at least; the same object if no tensor has fewer digits."""
    return inputs if all(widened(value) is value for value in _values(inputs)) else mapped(inputs, widened)


SampleInputs = Mapping[str | int, int]


def sample_dimensions(inputs: Inputs, samples: int, given: SampleInputs | None) -> dict[str, int]:
    """The dimension of the samples by the name of an input; an input without one belongs to no sample.

    By default it is the first dimension of every input that is as long as the batch.

    Raises:
        ValueError: no input has a name that is given, or another number of samples along its dimension.
    """
    named = {name: value for name, value in leaves(inputs) if isinstance(value, Tensor)}
    if given is None:
        return {name: 0 for name, value in named.items() if value.shape[:1] == (samples,)}
    plain = {name.strip("'") or "0": name for name in named}
    for name, dim in given.items():
        if str(name) not in plain:
            raise ValueError(f"sample_inputs names {name!r}: the inputs are {', '.join(plain)}")
        shape = named[plain[str(name)]].shape
        if not -len(shape) <= dim < len(shape) or shape[dim] != samples:
            raise ValueError(
                f"sample_inputs: dimension {dim} of input {name!r} {tuple(shape)} has not {samples} samples"
            )
    return {plain[str(name)]: dim for name, dim in given.items()}


def cut(inputs: Inputs, rows: slice | Tensor, dimensions: Mapping[str, int]) -> Inputs:
    """The inputs of some samples; inputs without a dimension of samples stay."""

    def of_rows(name: str, value: Any) -> Any:
        dim = dimensions.get(name)
        if dim is None or not isinstance(value, Tensor):
            return value
        return value[rows] if dim == 0 else value.movedim(dim, 0)[rows].movedim(0, dim)

    return mapped_by_name(inputs, of_rows)


def _leading_size(inputs: Inputs, targets: Tensor) -> int:
    """The number of samples: an index of the targets' first dimension is a sample."""
    if not any(isinstance(value, Tensor) and value.ndim for value in _values(inputs)):
        raise ValueError(
            "inputs must hold a tensor whose first dimension is the batch, "
            f"got {type(inputs).__name__}: torch.as_tensor makes one of numbers"
        )
    if not isinstance(targets, Tensor):
        kind = type(targets).__name__
        raise ValueError(
            f"targets must be a tensor with one target per sample or more, got {kind}: torch.as_tensor makes one"
        )
    return targets.shape[0]
