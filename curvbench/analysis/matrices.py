"""The matrices that a cell kept: what lies in the blocks of single units, and how much of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from curvbench.spec.pictures import Array, Blocks

ROUNDING = 1e-5  # of a matrix that was measured in float32
_quiet = np.errstate(invalid="ignore", over="ignore")  # a matrix that is not finite is shown as it is


@_quiet
def unit_norms(matrix: Array, inputs: int) -> Array:
    """Frobenius norms of the blocks between units, (units, units); a unit of which there is only a part counts."""
    edges = np.arange(0, len(matrix), inputs)
    squares = np.square(matrix, dtype=np.float64)
    return np.sqrt(np.add.reduceat(np.add.reduceat(squares, edges, axis=0), edges, axis=1))


@_quiet
def fitting_scale(blocks: Blocks) -> float:
    """The multiple of the approximation that is nearest to the exact block; 1 where it is zero."""
    exact, approximation = blocks.exact.astype(np.float64), blocks.approximation.astype(np.float64)
    square = float(np.square(approximation).sum())
    return float((exact * approximation).sum()) / square if square > 0 else 1.0


def fitted(blocks: Blocks) -> Blocks:
    """The blocks after the best scalar multiple of the approximation."""
    return replace(blocks, approximation=fitting_scale(blocks) * blocks.approximation)


@_quiet
def nearest(kept: Mapping[str, Blocks]) -> list[str]:
    """The labels of ``kept``, the one nearest to the exact block after the best multiple first.

    What differs by rounding alone is left out, and what is not finite.
    """
    off = {probe: structure(fitted(blocks))["norm"].to_list() for probe, blocks in kept.items()}
    far = {probe: norms[2] / norms[0] for probe, norms in off.items() if norms[0] > 0}
    return sorted((probe for probe, distance in far.items() if ROUNDING < distance < np.inf), key=far.__getitem__)


def entries(blocks: Blocks) -> pd.DataFrame:
    """One row per entry: row, column, exact, approximation."""
    n = len(blocks.exact)
    places = {"row": np.repeat(np.arange(n), n), "column": np.tile(np.arange(n), n)}
    return pd.DataFrame(places | {"exact": blocks.exact.ravel(), "approximation": blocks.approximation.ravel()})


@_quiet
def structure(blocks: Blocks) -> pd.DataFrame:
    """Norm and trace of the exact block, the approximation and their difference, and where they lie.

    Shares of |.|^2 are within units and on the diagonal; NaN where a matrix is zero.
    """
    exact, approximation = blocks.exact.astype(np.float64), blocks.approximation.astype(np.float64)
    parts = {"exact": exact, "approximation": approximation, "difference": approximation - exact}
    return pd.DataFrame([{"matrix": name, **_shares(matrix, blocks.inputs)} for name, matrix in parts.items()])


def _shares(matrix: Array, inputs: int) -> dict[str, float]:
    whole = float(np.square(matrix).sum())
    within, diagonal = np.square(np.diag(unit_norms(matrix, inputs))).sum(), np.square(np.diag(matrix)).sum()
    found = {"norm": whole**0.5, "trace": float(np.trace(matrix))}
    shares = {"within units": float(within), "on the diagonal": float(diagonal)}
    return found | {f"share {name}": part / whole if whole > 0 else float("nan") for name, part in shares.items()}


def spectra(kept: Mapping[str, Blocks], layer: str) -> pd.DataFrame:
    """The largest eigenvalues of one layer: index from 1, ``exact``, and a column per probe that kept them.

    ``kept``: blocks by the probe's label, all of the same exact Fisher.
    """
    found = {probe: blocks.spectra[layer] for probe, blocks in kept.items() if layer in blocks.spectra}
    columns = {"exact": next(iter(found.values())).exact} if found else {}
    columns |= {probe: spectrum.approximation for probe, spectrum in found.items()}
    table = pd.DataFrame(columns, dtype="float64")
    return table.set_index(np.arange(1, len(table) + 1)).rename_axis("index").reset_index()
