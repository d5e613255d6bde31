"""The statistics of the latest batch, for fits whose updates all have the same batch at the same parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from curvbench.instance import Instance

T = TypeVar("T")

_latest: ContextVar[list[tuple[Instance, Any]] | None] = ContextVar("latest", default=None)


@contextmanager
def kept() -> Iterator[None]:
    """Inside, ``of`` keeps what it has made for the latest batch; outside an update would not be the whole work."""
    token = _latest.set([])
    try:
        yield
    finally:
        _latest.reset(token)


def of(batch: Instance, make: Callable[[Instance], T]) -> T:
    """What ``make`` gives for a batch, made anew unless it is kept."""
    pairs = _latest.get()
    if pairs is None:
        return make(batch)
    if not pairs or pairs[0][0] is not batch:
        pairs[:] = [(batch, make(batch))]
    made: T = pairs[0][1]
    return made
