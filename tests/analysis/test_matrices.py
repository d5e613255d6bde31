from __future__ import annotations

import math

import numpy as np
import pytest

from curvbench.analysis import matrices
from curvbench.spec.pictures import Blocks, Spectrum

EXACT = np.arange(36.0).reshape(6, 6) + np.arange(36.0).reshape(6, 6).T + 1


def made(exact: np.ndarray = EXACT, approximation: np.ndarray | None = None, inputs: int = 2) -> Blocks:
    spectrum = Spectrum(np.array([3.0, 2.0]), np.array([1.0, 0.0]))
    made = np.diag(np.diag(exact)) if approximation is None else approximation
    return Blocks("fc", inputs, exact, made, {"fc": spectrum})


@pytest.mark.parametrize("inputs", [1, 2, 3, 4, 6, 9])
def test_norms_of_the_blocks_between_units(inputs: int) -> None:
    """Of four rows with D = 4 the last unit is a part."""
    found = matrices.unit_norms(EXACT, inputs)
    edges = list(range(0, 6, inputs))
    for i, top in enumerate(edges):
        for j, left in enumerate(edges):
            block = EXACT[top : top + inputs, left : left + inputs]
            assert found[i, j] == pytest.approx(np.linalg.norm(block), rel=1e-12)
    assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(EXACT), rel=1e-12)


def test_structure() -> None:
    table = matrices.structure(made()).set_index("matrix")
    within = sum(np.square(EXACT[k : k + 2, k : k + 2]).sum() for k in (0, 2, 4))
    assert table.loc["exact", "norm"] == pytest.approx(np.linalg.norm(EXACT), rel=1e-12)
    assert table.loc["exact", "share within units"] == pytest.approx(within / np.square(EXACT).sum(), rel=1e-12)
    assert table.loc["approximation", "share on the diagonal"] == pytest.approx(1, rel=1e-12)
    assert table.loc["difference", "trace"] == 0
    assert table.loc["difference", "share on the diagonal"] == 0


def test_structure_of_nothing_has_no_shares() -> None:
    table = matrices.structure(made(np.zeros((4, 4))))
    assert table["norm"].tolist() == [0, 0, 0]
    assert table["share within units"].isna().all()


def test_the_fitting_scale_is_the_best() -> None:
    generator = np.random.default_rng(0)
    blocks = made(approximation=generator.normal(size=(6, 6)))
    best = matrices.fitting_scale(blocks)

    def error(scale: float) -> float:
        return float(np.linalg.norm(scale * blocks.approximation - blocks.exact))

    assert all(error(best) <= error(best * factor) for factor in (0.9, 0.999, 1.001, 1.1))
    assert matrices.fitting_scale(made(approximation=np.zeros((6, 6)))) == 1.0


def test_spectra_side_by_side() -> None:
    table = matrices.spectra({"diag": made(), "eva": made()}, "fc")
    assert table.columns.tolist() == ["index", "exact", "diag", "eva"]
    assert table["index"].tolist() == [1, 2]
    assert table["exact"].tolist() == [3.0, 2.0]
    assert table["eva"].tolist() == [1.0, 0.0]
    assert matrices.spectra({"diag": made()}, "gone").empty


def test_values_that_are_not_finite_stay_so() -> None:
    table = matrices.structure(made(approximation=np.full((6, 6), math.nan))).set_index("matrix")
    assert math.isnan(table.loc["approximation", "norm"])
    assert math.isnan(table.loc["approximation", "share within units"])


def test_the_nearest_come_first_and_what_is_exact_or_not_finite_not_at_all() -> None:
    def off(error: float) -> Blocks:
        return made(approximation=3 * (EXACT + error * np.fliplr(np.eye(6))))

    kept = {"far": off(9.0), "near": off(1.0), "exact": off(0.0), "broken": off(math.nan), "zero": off(0.0)}
    kept["zero"] = made(approximation=np.zeros((6, 6)))
    assert matrices.nearest(kept) == ["near", "far", "zero"]
    assert matrices.nearest({"none": made(np.zeros((6, 6)))}) == []


def test_entries_name_their_row_and_column() -> None:
    blocks = made(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[5.0, 6.0], [7.0, 8.0]]))
    assert matrices.entries(blocks).to_numpy().tolist() == [[0, 0, 1, 5], [0, 1, 2, 6], [1, 0, 3, 7], [1, 1, 4, 8]]
