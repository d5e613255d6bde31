"""The memory that a probe may store, so that methods with large blocks refuse a model before they allocate."""

from __future__ import annotations

import torch
from torch import Tensor

LIMIT_BYTES = 4 * 2**30


def fits(numbers: int, dtype: torch.dtype) -> bool:
    """Whether a probe may store ``numbers`` entries of ``dtype``."""
    return numbers * dtype.itemsize <= LIMIT_BYTES


def too_large(what: str, numbers: int, dtype: torch.dtype) -> str | None:
    """A one-line reason why a probe may not store ``numbers`` entries of ``dtype``; None means that it may."""
    if fits(numbers, dtype):
        return None
    needed, limit = numbers * dtype.itemsize / 2**30, LIMIT_BYTES / 2**30
    return f"the {what} take {needed:.1f} GiB: more than the {limit:.0f} GiB that this probe stores"


def appended(rows: Tensor, row: Tensor, limit: int) -> Tensor:
    """The newest ``limit`` of the rows (n, ...) and ``row``; a copy, because a slice keeps older rows in memory."""
    return torch.cat([rows[max(0, len(rows) + 1 - limit) :], row[None]])
