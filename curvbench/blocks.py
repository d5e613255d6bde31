"""What a cell keeps for pictures: a block of the operator and of the exact Fisher, and spectra of layers.

A meter keeps them where it has both matrices at hand, the engine collects them; they are no rows and judge nothing.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]
_EXACT, _APPROXIMATION = "exact", "approximation"


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


def pack(blocks: Blocks) -> bytes:
    """Blocks as a file of numpy arrays."""
    arrays: dict[str, Any] = {"layer": np.array(blocks.layer), "inputs": np.array(blocks.inputs)}
    arrays |= {_EXACT: blocks.exact, _APPROXIMATION: blocks.approximation}
    arrays["names"] = np.array(list(blocks.spectra), dtype=np.str_)
    for k, spectrum in enumerate(blocks.spectra.values()):  # names of layers may hold what a name in a zip may not
        arrays |= {f"{k} {_EXACT}": spectrum.exact, f"{k} {_APPROXIMATION}": spectrum.approximation}
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


def unpack(content: bytes) -> Blocks:
    """Blocks from a file; raises ValueError where it is damaged. Nothing in it is ever executed."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            spectra = {
                str(name): Spectrum(_floats(file[f"{k} {_EXACT}"]), _floats(file[f"{k} {_APPROXIMATION}"]))
                for k, name in enumerate(file["names"])
            }
            matrices = _floats(file[_EXACT]), _floats(file[_APPROXIMATION])
            return Blocks(str(file["layer"]), int(file["inputs"]), *matrices, spectra)
    except (ValueError, KeyError, TypeError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        # numpy's own text would advise to execute what is in the file
        raise ValueError(f"damaged, or no blocks of curvbench ({type(error).__name__})") from error


def _floats(array: npt.NDArray[Any]) -> Array:
    return array.astype(np.float64)
