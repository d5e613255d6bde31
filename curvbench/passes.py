"""Marks passes through the network, so that a meter can tell them from a method's own arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_depth = 0  # of the process: on CUDA a backward pass runs in threads of autograd's own, where no ContextVar is set


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
