"""What a cell keeps for pictures: a block of the operator and of the exact Fisher, and spectra of layers.

A meter keeps them where it has both matrices at hand, the engine collects them; they are no rows and judge nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Spectrum:
    """The largest eigenvalues of one layer's block, descending, (K,)."""

    exact: Array
    approximation: Array

    def __post_init__(self) -> None:
        if self.exact.ndim != 1 or self.exact.shape != self.approximation.shape:
            raise ValueError(f"two spectra of one length expected, got {self.exact.shape}, {self.approximation.shape}")


@dataclass(frozen=True)
class Blocks:
    """The leading (n, n) block of one layer, exact and approximated, and the spectra of layers by name.

    ``inputs`` (D): rows and columns that belong to one output unit.
    """

    layer: str
    inputs: int
    exact: Array
    approximation: Array
    spectra: Mapping[str, Spectrum]

    def __post_init__(self) -> None:
        n = self.exact.shape[0] if self.exact.ndim else 0
        if not n or self.exact.shape != (n, n) or self.approximation.shape != (n, n) or self.inputs < 1:
            shapes = f"{self.exact.shape}, {self.approximation.shape} and {self.inputs} inputs"
            raise ValueError(f"two square matrices of one size and their inputs expected, got {shapes}")


_kept: ContextVar[list[Blocks] | None] = ContextVar("blocks", default=None)


@contextmanager
def collected() -> Iterator[list[Blocks]]:
    """The blocks kept inside."""
    kept: list[Blocks] = []
    token = _kept.set(kept)
    try:
        yield kept
    finally:
        _kept.reset(token)


def wanted() -> bool:
    """Whether anyone collects: blocks cost something to make."""
    return _kept.get() is not None


def keep(blocks: Blocks) -> None:
    """Hand blocks to whoever collects them."""
    kept = _kept.get()
    if kept is not None:
        kept.append(blocks)
