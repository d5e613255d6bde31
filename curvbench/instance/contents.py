"""What a measurement must leave alone: tensors kept by content, states of random generators, one pass at a time."""

from __future__ import annotations

import os
import pickle
import random
import threading
from collections.abc import Callable, Iterator, Mapping
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
        """The contents as they are now; what is no tensor is passed over."""
        return cls({name: value.detach().clone() for name, value in named.items() if isinstance(value, Tensor)})

    def changed(self, named: Mapping[str, Any]) -> str | None:
        """The name of a tensor that is not as it was, is missing or is new; None where all are as they were."""
        tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
        if different := tensors.keys() ^ self.copies.keys():
            return min(different)
        return next((name for name, copy in self.copies.items() if not _equal(tensors[name], copy)), None)


@torch.no_grad()
def _equal(a: Tensor, b: Tensor) -> bool:
    if (a.shape, a.dtype, a.device, a.layout) != (b.shape, b.dtype, b.device, b.layout):
        return False
    if a.layout != torch.strided:
        a, b = a.to_dense(), b.to_dense()
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())  # a NaN that stays is no change


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """What tuples, lists and mappings hold, with a name that says where: ``0``, ``'mask'``, ``0['mask']``."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from leaves(part, f"{name}[{key!r}]" if name else repr(key))
    elif isinstance(value, (tuple, list)):
        for key, part in enumerate(value):
            yield from leaves(part, f"{name}[{key}]" if name else str(key))
    else:
        yield name, value


def mapped(value: Any, act: Callable[[Any], Any]) -> Any:
    """The same containers with ``act`` of what they hold."""
    if isinstance(value, Mapping):
        return {key: mapped(part, act) for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(part, act) for part in value))
    if isinstance(value, (tuple, list)):
        return type(value)(mapped(part, act) for part in value)
    return act(value)


@dataclass(frozen=True)
class RandomStates:
    """The states of the generators that a model may draw from: torch's, Python's and numpy's."""

    cpu: Tensor
    cuda: Tensor | None
    python: Any
    numpy: Any

    @classmethod
    def now(cls, device: torch.device) -> Self:
        """The states as they are; CUDA's of the device where it is one."""
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(torch.get_rng_state(), cuda, random.getstate(), np.random.get_state(legacy=False))

    def restore(self, device: torch.device) -> None:
        """Make them the states again."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, device)
        random.setstate(self.python)
        np.random.set_state(self.numpy)

    def drawn_from(self, later: RandomStates) -> bool:
        """Whether a number was drawn between these states and later ones."""
        cuda = self.cuda is not None and later.cuda is not None and not torch.equal(self.cuda, later.cuda)
        same = torch.equal(self.cpu, later.cpu) and self.python == later.python
        return cuda or not same or pickle.dumps(self.numpy) != pickle.dumps(later.numpy)  # whatever generator it has


_passes = threading.RLock()


def _renew() -> None:
    global _passes
    _passes = threading.RLock()


os.register_at_fork(after_in_child=_renew)  # another thread may have held it when the process was forked


@contextmanager
def one_thread() -> Iterator[None]:
    """A pass changes modes and hooks of its modules for as long as it runs: another thread's pass waits for its end."""
    with _passes:
        yield
