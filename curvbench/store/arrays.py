"""Blocks of matrices as files of numpy arrays."""

from __future__ import annotations

import io
import zipfile
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from curvbench.spec.pictures import Array, Blocks, Spectrum

_EXACT = "exact"
_APPROXIMATION = "approximation"


def pack(blocks: Blocks) -> bytes:
    """Blocks as a file of numpy arrays."""
    arrays: dict[str, Any] = {"layer": np.array(blocks.layer), "inputs": np.array(blocks.inputs)}
    arrays |= {_EXACT: blocks.exact, _APPROXIMATION: blocks.approximation}
    arrays["names"] = np.array(list(blocks.spectra), dtype=np.str_)
    for k, spectrum in enumerate(blocks.spectra.values()):  # numbers, because a zip refuses the names of some layers
        arrays |= {f"{k} {_EXACT}": spectrum.exact, f"{k} {_APPROXIMATION}": spectrum.approximation}
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


def unpack(content: bytes) -> Blocks:
    """Blocks from a file; raises ValueError if the file is damaged. Nothing in the file is ever executed."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            spectra = {
                str(name): Spectrum(_floats(file[f"{k} {_EXACT}"]), _floats(file[f"{k} {_APPROXIMATION}"]))
                for k, name in enumerate(file["names"])
            }
            matrices = _floats(file[_EXACT]), _floats(file[_APPROXIMATION])
            return Blocks(str(file["layer"]), int(file["inputs"]), *matrices, spectra)
    except (ValueError, KeyError, TypeError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        # the text of numpy would advise to execute the file
        raise ValueError(f"damaged, or no blocks of curvbench ({type(error).__name__})") from error


def _floats(array: npt.NDArray[Any]) -> Array:
    return array.astype(np.float64)
