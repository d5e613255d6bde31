"""Blocks of matrices as files of numpy arrays."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
import numpy.typing as npt

from curvbench.spec.pictures import Array, Blocks, Spectrum

_EXACT = "exact"
_APPROXIMATION = "approximation"
_MOST = 2**28  # bytes of all arrays: a small file can claim to hold terabytes


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
        return _unpacked(content)
    # Damaged archives and headers raise errors of every kind. The text of numpy would advise to execute the file.
    except Exception as error:
        raise ValueError(f"damaged, or no blocks of curvbench ({type(error).__name__})") from error


def _unpacked(content: bytes) -> Blocks:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > _MOST:
            raise ValueError("larger than any blocks")
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        spectra = {
            _text(name): Spectrum(_floats(file[f"{k} {_EXACT}"]), _floats(file[f"{k} {_APPROXIMATION}"]))
            for k, name in enumerate(_of_kind(file["names"], "U", 1))
        }
        matrices = _floats(file[_EXACT]), _floats(file[_APPROXIMATION])
        inputs = int(_of_kind(file["inputs"], "iu", 0))
        return Blocks(_text(_of_kind(file["layer"], "U", 0)), inputs, *matrices, spectra)


def _of_kind(array: npt.NDArray[Any], kinds: str, dimensions: int) -> npt.NDArray[Any]:
    if array.dtype.kind not in kinds or array.ndim != dimensions:
        raise ValueError(f"unexpected {array.dtype} of {array.ndim} dimensions")
    return array


def _text(name: Any) -> str:
    return str(name).encode().decode()  # raises ValueError for halves of signs, which no page can show


def _floats(array: npt.NDArray[Any]) -> Array:
    if array.dtype.kind != "f":
        raise ValueError(f"unexpected {array.dtype}")
    return array.astype(np.float64)
