"""Passes through the network: marked, so that a meter can tell them from a method's own work, and without autocast."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_depth = 0  # of the process: on CUDA a backward pass runs in threads of autograd's own, where no ContextVar is set
_KINDS = ("cpu", "cuda")


@contextmanager
def network_pass() -> Iterator[None]:
    """What runs inside is a forward or backward pass through the network, or a part of one; blocks may nest."""
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1


def in_network_pass() -> bool:
    """Whether a block of ``network_pass`` is open."""
    return _depth > 0


def autocasts() -> bool:
    """Whether ``torch.autocast`` is on for some kind of device: products of float32 are rounded to 8 or 11 bits."""
    return any(map(torch.is_autocast_enabled, _KINDS))


@contextmanager
def full_precision() -> Iterator[None]:
    """Inside, ``torch.autocast`` is off; as a decorator, in the function."""
    with ExitStack() as off:
        for kind in filter(torch.is_autocast_enabled, _KINDS):
            off.enter_context(torch.autocast(kind, enabled=False))
        yield


class Uncast(TorchFunctionMode):
    """Inside this context autocast is off even where a model enters it in its own ``forward``; ``met``: one did."""

    met = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        if not autocasts():
            return func(*args, **(kwargs or {}))
        self.met = True
        with full_precision():
            return func(*args, **(kwargs or {}))
