"""Memory that a probe may store: methods with large blocks say that they do not apply before they try."""

from __future__ import annotations

import torch
from torch import Tensor

LIMIT_BYTES = 4 * 2**30


def fits(numbers: int, dtype: torch.dtype) -> bool:
    """Whether ``numbers`` entries of ``dtype`` are no more than a probe may store."""
    return numbers * dtype.itemsize <= LIMIT_BYTES


def too_large(what: str, numbers: int, dtype: torch.dtype) -> str | None:
    """A one-line reason where ``numbers`` entries of ``dtype`` take more than a probe may store, else None."""
    if fits(numbers, dtype):
        return None
    needed, limit = numbers * dtype.itemsize / 2**30, LIMIT_BYTES / 2**30
    return f"the {what} take {needed:.1f} GiB: more than the {limit:.0f} GiB that this probe stores"


def appended(rows: Tensor, row: Tensor, limit: int) -> Tensor:
    """The newest ``limit`` of the rows (n, ...) and one more, in storage that holds nothing else.

    A slice of all of them would keep alive what it leaves out.
    """
    return torch.cat([rows[max(0, len(rows) + 1 - limit) :], row[None]])
