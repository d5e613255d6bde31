"""State that a measurement must not change: contents of tensors and states of random generators."""

from __future__ import annotations

import os
import pickle
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Contents:
    """Copies of named tensors. Version counters do not see writes through ``.data`` or numpy; a comparison does."""

    copies: Mapping[str, Tensor]

    @classmethod
    def of(cls, named: Mapping[str, Any]) -> Self:
        """The present contents of all tensors among the values."""
        return cls({name: value.detach().clone() for name, value in named.items() if isinstance(value, Tensor)})

    def changed(self, named: Mapping[str, Any]) -> str | None:
        """The name of a tensor that has changed, is missing or is new; None means that no tensor has changed."""
        tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
        if different := tensors.keys() ^ self.copies.keys():
            return min(different)
        if _all_equal([(tensors[name], copy) for name, copy in self.copies.items()]):
            return None  # a GPU is waited for once, and not for every tensor
        return next((name for name, copy in self.copies.items() if not _equal(tensors[name], copy)), None)


@torch.no_grad()
def _all_equal(pairs: Sequence[tuple[Tensor, Tensor]]) -> bool:
    """Whether all pairs have the same numbers, none of them NaN."""
    if any(a.layout != torch.strided or not _alike(a, b) for a, b in pairs):
        return False
    devices = {a.device for a, _ in pairs}
    by_device = [[(a == b).all() for a, b in pairs if a.device == device] for device in devices]
    return all(bool(torch.stack(flags).all()) for flags in by_device)


def _alike(a: Tensor, b: Tensor) -> bool:
    return (a.shape, a.dtype, a.device, a.layout) == (b.shape, b.dtype, b.device, b.layout)


@torch.no_grad()
def _equal(a: Tensor, b: Tensor) -> bool:
    if not _alike(a, b):
        return False
    if a.layout != torch.strided:
        a, b = a.to_dense(), b.to_dense()
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())  # a NaN that stays a NaN is equal


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The values inside tuples, lists and mappings, each with its place as a name: ``0``, ``'mask'``, ``0['mask']``."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from leaves(part, f"{name}[{key!r}]" if name else repr(key))
    elif isinstance(value, (tuple, list)):
        for key, part in enumerate(value):
            yield from leaves(part, f"{name}[{key}]" if name else str(key))
    else:
        yield name, value


def mapped(value: Any, act: Callable[[Any], Any]) -> Any:
    """The same containers with ``act`` of every value inside."""
    if isinstance(value, Mapping):
        return {key: mapped(part, act) for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(part, act) for part in value))
    if isinstance(value, (tuple, list)):
        return type(value)(mapped(part, act) for part in value)
    return act(value)


def mapped_by_name(value: Any, act: Callable[[str, Any], Any]) -> Any:
    """The same containers with ``act(name, part)`` of every value inside, named as by ``leaves``."""
    names = iter([name for name, _ in leaves(value)])
    return mapped(value, lambda part: act(next(names), part))


@dataclass(frozen=True)
class RandomStates:
    """The states of the generators that a model may draw from: torch's, Python's and numpy's."""

    cpu: Tensor
    cuda: Tensor | None
    python: Any
    numpy: Any

    @classmethod
    def now(cls, device: torch.device) -> Self:
        """The present states; that of CUDA is None if the device is not a CUDA device."""
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(torch.get_rng_state(), cuda, random.getstate(), np.random.get_state(legacy=False))

    def restore(self, device: torch.device) -> None:
        """Set the generators back to these states."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, device)
        random.setstate(self.python)
        np.random.set_state(self.numpy)

    def drawn_from(self, later: RandomStates) -> bool:
        """Whether a number was drawn between these states and later ones."""
        cuda = self.cuda is not None and later.cuda is not None and not torch.equal(self.cuda, later.cuda)
        same = torch.equal(self.cpu, later.cpu) and self.python == later.python
        # Numpy's generator may be of any kind, so that only the pickled states can be compared.
        return cuda or not same or pickle.dumps(self.numpy) != pickle.dumps(later.numpy)


_passes = threading.RLock()


def _renew() -> None:
    global _passes
    _passes = threading.RLock()


os.register_at_fork(after_in_child=_renew)  # at the fork another thread may have held the lock


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, no other thread runs a pass, because a pass changes the modes and hooks of its modules."""
    with _passes:
        yield
