"""The blocks of matrices that a cell stored: norms, spectra, and the shares within single units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from curvbench.spec.pictures import Array, Blocks

ROUNDING = 1e-5  # relative error of a matrix that was measured in float32
_quiet = np.errstate(invalid="ignore", over="ignore")  # a matrix that is not finite is shown without a warning


@_quiet
def unit_norms(matrix: Array, inputs: int) -> Array:
    """Frobenius norms of the blocks between units, (units, units); the last unit may be cut."""
    edges = np.arange(0, len(matrix), inputs)
    squares = np.square(matrix, dtype=np.float64)
    return np.sqrt(np.add.reduceat(np.add.reduceat(squares, edges, axis=0), edges, axis=1))


@_quiet
def fitting_scale(blocks: Blocks) -> float:
    """The factor that brings the approximation nearest to the exact block; 1 if the approximation is zero."""
    exact, approximation = blocks.exact.astype(np.float64), blocks.approximation.astype(np.float64)
    square = float(np.square(approximation).sum())
    return float((exact * approximation).sum()) / square if square > 0 else 1.0


def fitted(blocks: Blocks) -> Blocks:
    """The blocks after the best scalar multiple of the approximation."""
    return replace(blocks, approximation=fitting_scale(blocks) * blocks.approximation)


@_quiet
def nearest(blocks_of: Mapping[str, Blocks]) -> list[str]:
    """The labels of ``blocks_of``, sorted by distance from the exact block after the best scalar multiple.

    Approximations that differ by rounding alone, or are not finite, are left out.
    """
    norms_of = {probe: structure(fitted(blocks))["norm"].to_list() for probe, blocks in blocks_of.items()}
    distances = {probe: norms[2] / norms[0] for probe, norms in norms_of.items() if norms[0] > 0}
    far = (probe for probe, distance in distances.items() if ROUNDING < distance < np.inf)
    return sorted(far, key=distances.__getitem__)


def entries(blocks: Blocks) -> pd.DataFrame:
    """One row per entry: row, column, exact, approximation."""
    n = len(blocks.exact)
    places = {"row": np.repeat(np.arange(n), n), "column": np.tile(np.arange(n), n)}
    return pd.DataFrame(places | {"exact": blocks.exact.ravel(), "approximation": blocks.approximation.ravel()})


@_quiet
def structure(blocks: Blocks) -> pd.DataFrame:
    """Norm and trace of the exact block, the approximation and their difference, and shares of |.|^2.

    The shares lie within units and on the diagonal; they are NaN for a zero matrix.
    """
    exact, approximation = blocks.exact.astype(np.float64), blocks.approximation.astype(np.float64)
    parts = {"exact": exact, "approximation": approximation, "difference": approximation - exact}
    return pd.DataFrame([{"matrix": name, **_shares(matrix, blocks.inputs)} for name, matrix in parts.items()])


def _shares(matrix: Array, inputs: int) -> dict[str, float]:
    square = float(np.square(matrix).sum())
    within, diagonal = np.square(np.diag(unit_norms(matrix, inputs))).sum(), np.square(np.diag(matrix)).sum()
    norms = {"norm": square**0.5, "trace": float(np.trace(matrix))}
    shares = {"within units": float(within), "on the diagonal": float(diagonal)}
    return norms | {f"share {name}": part / square if square > 0 else float("nan") for name, part in shares.items()}


def spectra(blocks_of: Mapping[str, Blocks], layer: str) -> pd.DataFrame:
    """The largest eigenvalues of one layer: index from 1, ``exact``, and a column per probe that stored them.

    ``blocks_of``: blocks by the probe's label, all with the same exact Fisher.
    """
    stored = {probe: blocks.spectra[layer] for probe, blocks in blocks_of.items() if layer in blocks.spectra}
    columns = {"exact": next(iter(stored.values())).exact} if stored else {}
    columns |= {probe: spectrum.approximation for probe, spectrum in stored.items()}
    table = pd.DataFrame(columns, dtype="float64")
    return table.set_index(np.arange(1, len(table) + 1)).rename_axis("index").reset_index()
