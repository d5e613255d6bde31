"""States of probes as trees of tensors: blended into running averages, and stored as plain containers and back."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from curvbench.spec.outcomes import Unsupported

_CLASS, _FIELDS = "class", "fields"
_PLAIN = (bool, int, float, str, bytes, torch.dtype, torch.device)


def blend(old: Any, new: Any, weight: float) -> Any:
    """The state ``weight * old + (1 - weight) * new``, for every floating-point tensor of two states of one structure.

    Everything else is taken from ``new``.

    Raises:
        Unsupported: a part declares by ``averages = False`` that its tensors are no statistics.
    """
    if not getattr(new, "averages", True):
        raise Unsupported(
            "a block too large to be stored is formed from each batch and has no running average: leave ema out"
        )
    if isinstance(new, Tensor):
        return weight * old + (1 - weight) * new if new.is_floating_point() else new
    parts = _children(new)
    if parts is None:
        return new
    before = _children(old)
    assert before is not None and before.keys() == parts.keys(), "an update keeps the structure of a state"
    return _rebuild(new, {key: blend(before[key], part, weight) for key, part in parts.items()})


def weighted(parts: Sequence[Any], weights: Sequence[float]) -> Any:
    """The weighted sum of floating-point tensors of states of one structure; the rest comes from the first state."""
    sums = [
        sum((weight * tensor for weight, tensor in zip(weights, versions, strict=True)), torch.zeros_like(versions[0]))
        if versions[0].is_floating_point()
        else versions[0]
        for versions in zip(*map(tensors, parts), strict=True)
    ]
    following = iter(sums)
    return mapped(parts[0], lambda _: next(following))


def kept(old: Any, new: Any, layers: Sequence[slice], skipped: Collection[int]) -> Any:
    """``new`` with the entries of ``old`` for the ``skipped`` layers, in lists by layer and in vectors (P,).

    ``layers`` are the layers' places in a vector. Both states belong to a probe whose state is ``layerwise``.
    """
    if isinstance(new, Tensor):
        return _spliced(old, new, [layers[i] for i in skipped]) if new.shape == (layers[-1].stop,) else new
    if isinstance(new, list) and len(new) == len(layers):
        return [old[i] if i in skipped else part for i, part in enumerate(new)]
    parts = _children(new)
    if parts is None:
        return new
    before = _children(old) or {}
    return _rebuild(new, {key: kept(before[key], part, layers, skipped) for key, part in parts.items()})


def _spliced(old: Tensor, new: Tensor, places: Sequence[slice]) -> Tensor:
    spliced = new.clone()
    for place in places:
        spliced[place] = old[place]
    return spliced


def mapped(state: Any, act: Callable[[Tensor], Tensor]) -> Any:
    """A state of the same structure with ``act`` of every tensor; cached values are left out."""
    if isinstance(state, Tensor):
        return act(state)
    parts = _children(state)
    return state if parts is None else _rebuild(state, {key: mapped(part, act) for key, part in parts.items()})


def cast(state: Any, change: Callable[[torch.dtype], torch.dtype]) -> Any:
    """A state whose floating-point tensors, and the dtypes among its fields, are those that ``change`` gives.

    A state that does not change stays the same object, with its cached values.
    """
    found = [tensor.dtype for tensor in tensors(state) if tensor.is_floating_point()] + list(_dtypes(state))
    if all(change(dtype) == dtype for dtype in found):
        return state
    made: dict[int, Tensor] = {}  # a tensor that a state holds twice is converted once
    return _cast(state, change, made)


def _cast(state: Any, change: Callable[[torch.dtype], torch.dtype], made: dict[int, Tensor]) -> Any:
    if isinstance(state, torch.dtype):
        return change(state)
    if isinstance(state, Tensor):
        if not state.is_floating_point():
            return state
        if id(state) not in made:
            made[id(state)] = state.to(change(state.dtype))
        return made[id(state)]
    parts = _children(state)
    return state if parts is None else _rebuild(state, {key: _cast(part, change, made) for key, part in parts.items()})


def _dtypes(state: Any) -> Iterator[torch.dtype]:
    """The dtypes among the fields of a state."""
    if isinstance(state, torch.dtype):
        yield state
    for part in (_children(state) or {}).values():
        yield from _dtypes(part)


def tensors(state: Any) -> list[Tensor]:
    """The tensors of a state, in the order of the state's fields."""
    if isinstance(state, Tensor):
        return [state]
    return [tensor for part in (_children(state) or {}).values() for tensor in tensors(part)]


def pack(state: Any) -> Any:
    """A state as tensors, numbers, texts, lists, tuples and dictionaries alone, which torch loads ``weights_only``.

    Named tuples and dataclasses become the name of their class and their fields; cached values are left out.
    """
    parts = _children(state)
    if parts is None:
        if state is not None and not isinstance(state, (Tensor, *_PLAIN)):
            raise TypeError(f"a {type(state).__name__} inside a probe's state cannot be stored: use dataclasses")
        return state
    packed = {key: pack(part) for key, part in parts.items()}
    if type(state) in (list, tuple):
        return type(state)(packed.values())
    if isinstance(state, Mapping):
        return {_CLASS: "", _FIELDS: list(packed.items())}
    return {_CLASS: f"{type(state).__module__}:{type(state).__qualname__}", _FIELDS: packed}


def unpack(packed: Any, *modules: str) -> Any:
    """The state that ``pack`` has packed. Its classes are the package's or those of ``modules``, the probe's own.

    Raises:
        ValueError: a class is from another module, or does not exist in this version.
    """
    if type(packed) in (list, tuple):
        return type(packed)(unpack(part, *modules) for part in packed)
    if not isinstance(packed, dict):
        return packed
    name, fields = packed[_CLASS], packed[_FIELDS]
    if not name:
        return {key: unpack(part, *modules) for key, part in fields}
    return _state_class(name, modules)(**{key: unpack(part, *modules) for key, part in fields.items()})


def _children(state: Any) -> dict[Any, Any] | None:
    """The parts of a container by key; None for anything else."""
    if dataclasses.is_dataclass(state) and not isinstance(state, type):
        return {f.name: getattr(state, f.name) for f in dataclasses.fields(state) if f.init}
    if isinstance(state, Mapping):
        return dict(state)
    if isinstance(state, tuple) and hasattr(state, "_fields"):
        return dict(zip(state._fields, state, strict=True))
    return dict(enumerate(state)) if isinstance(state, (list, tuple)) else None


def _rebuild(state: Any, parts: Mapping[Any, Any]) -> Any:
    """A container of the same type with other parts."""
    if isinstance(state, Mapping):
        return dict(parts)
    if isinstance(state, (list, tuple)) and not hasattr(state, "_fields"):
        return type(state)(parts.values())
    return type(state)(**parts)


def _state_class(name: str, modules: Collection[str]) -> Callable[..., Any]:
    home, _, path = name.partition(":")
    is_allowed = home in modules or home.startswith("curvbench.")
    kind = getattr(importlib.import_module(home), path, None) if is_allowed else None
    if not isinstance(kind, type) or not (dataclasses.is_dataclass(kind) or hasattr(kind, "_fields")):
        raise ValueError(f"the stored state holds a {name!r}, which this version does not know: train from the start")
    return kind
