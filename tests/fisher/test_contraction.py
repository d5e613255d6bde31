"""Both contraction orders and their tiles against one large product; the cheaper order by counted FLOPs."""

from __future__ import annotations

import pytest
import torch

import curvbench as cb
from curvbench.fisher import ExactFisher, contraction
from curvbench.fisher.columns import Columns
from curvbench.meters.cost import published_cost
from curvbench.meters.flops import FlopMeter
from curvbench.operators import LowRank, Subspace
from curvbench.spec import Layer, LayerSize


def linear(samples: int, columns: int, inputs: int, outputs: int, positions: int, seed: int = 0) -> Columns:
    torch.manual_seed(seed)
    x = torch.randn(samples, positions, inputs, dtype=torch.float64)
    slopes = torch.randn(columns, samples, 1, outputs, positions, dtype=torch.float64)
    return Columns(Layer("layer", "linear", 1, outputs, inputs + 1, True, 0), x, slopes)


def grouped(samples: int, columns: int, seed: int = 0) -> Columns:
    torch.manual_seed(seed)
    layer = Layer("layer", "conv2d", 3, 4, 2 * 9, False, 0, (3, 3), padding=(1, 1, 1, 1))
    x = torch.randn(samples, 6, 5, 5, dtype=torch.float64)
    return Columns(layer, x, torch.randn(columns, samples, 3, 4, 25, dtype=torch.float64))


def matrix(columns: Columns) -> torch.Tensor:
    """All columns stored, (R N, P)."""
    patches = columns.patches()
    rows = [
        torch.cat([(b @ x.T).flatten() for b, x in zip(columns.slopes[r, n], patches[n], strict=True)])
        for r in range(columns.slopes.shape[0])
        for n in range(columns.slopes.shape[1])
    ]
    return torch.stack(rows)


MAKERS = {
    "one position": lambda seed: linear(7, 3, 5, 4, 1, seed),
    "positions": lambda seed: linear(7, 3, 5, 4, 6, seed),
    "few positions": lambda seed: linear(5, 9, 5, 4, 2, seed),
    "one column": lambda seed: linear(5, 1, 20, 4, 8, seed),
    "groups": lambda seed: grouped(5, 2, seed),
}


@pytest.fixture(params=["whole", "tiled"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The usual tiles, in which these sizes fit whole, and tiles of a few entries."""
    if request.param == "tiled":
        for module in ("curvbench.fisher.contraction.TILE_BYTES", "curvbench.fisher.columns.TILE_BYTES"):
            monkeypatch.setattr(module, 2000)
        monkeypatch.setattr("curvbench.fisher.contraction._KERNEL_TILE_BYTES", 1500)
        monkeypatch.setattr("curvbench.fisher.contraction._MIRROR_ROWS", 5)
    return str(request.param)


@pytest.mark.parametrize("order", ["direct", "kernel"])
@pytest.mark.parametrize("name", MAKERS)
def test_gram(name: str, order: contraction.Order, tiles: str) -> None:
    columns = MAKERS[name](0)
    V = matrix(columns)
    assert torch.allclose(contraction.gram(columns, order), V @ V.T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", ["direct", "kernel"])
@pytest.mark.parametrize("name", MAKERS)
def test_cross_gram(name: str, order: contraction.Order, tiles: str) -> None:
    a, b = MAKERS[name](0), MAKERS[name](1)
    assert torch.allclose(contraction.cross_gram(a, b, order), matrix(a) @ matrix(b).T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", MAKERS)
def test_products_of_columns(name: str, tiles: str) -> None:
    columns = MAKERS[name](0)
    V, size = matrix(columns), columns.layer.size
    torch.manual_seed(5)
    vectors = torch.randn(size, 2, dtype=torch.float64)
    weights = torch.randn(*columns.slopes.shape[:2], 3, dtype=torch.float64)
    assert torch.allclose(columns.project(vectors).flatten(0, 1), V @ vectors)
    assert torch.allclose(columns.combine(weights), V.T @ weights.flatten(0, 1))
    assert torch.allclose(columns.squares().flatten(), (V**2).sum(0))
    G, M, D = columns.layer.shape
    left = torch.linalg.qr(torch.randn(G, M, M, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(G, D, D, dtype=torch.float64)).Q
    rotated = torch.einsum("gom,kgoe,ged->kgmd", left, V.reshape(-1, G, M, D), right)
    assert torch.allclose(columns.squares(left, right), (rotated**2).sum(0))
    rotated = torch.einsum("gom,kgod->kgmd", left, V.reshape(-1, G, M, D))
    assert torch.allclose(columns.squares(left, None), (rotated**2).sum(0))
    rotated = torch.einsum("kgme,ged->kgmd", V.reshape(-1, G, M, D), right)
    assert torch.allclose(columns.squares(None, right), (rotated**2).sum(0))
    units = V.reshape(len(V), -1, columns.layer.inputs)
    assert torch.allclose(columns.unit_blocks(), torch.einsum("mui,muj->uij", units, units))


@pytest.mark.parametrize("name", MAKERS)
def test_products_with_matrices_of_low_rank_have_the_digits_that_a_small_error_needs(name: str, tiles: str) -> None:
    """Of float32 columns and operators in float64: |F|^2 - 2 <F, F^> + |F^|^2 cancels where F^ is near."""
    columns = MAKERS[name](0).to(torch.float32)
    V, size = matrix(columns.to(torch.float64)), columns.layer.size
    fisher, dense = ExactFisher((columns,), 7), V.T @ V / 7
    vectors, weights = torch.randn(size, 3), torch.rand(3)
    low, U, w = LowRank(vectors, weights, 0.5), vectors.double(), weights.double()
    expected = U @ torch.diag(w) @ U.T + 0.5 * torch.eye(size, dtype=torch.float64)
    trace = 0.5 * (fisher.trace() - float(dense.trace()))  # float32 products of columns, as every Gram matrix
    assert abs(fisher.inner(low) - trace - float((dense * expected).sum())) <= 1e-12 * float(
        dense.norm() * expected.norm()
    )
    assert low.frobenius_norm() == pytest.approx(float(expected.norm()), rel=1e-13)
    basis = torch.linalg.qr(vectors).Q
    along = (basis.double().T @ dense @ basis.double()).diagonal()
    excess = (weights - 0.25).double()
    assert fisher.inner(Subspace(basis, weights, 0.25)) - 0.25 * fisher.trace() == pytest.approx(
        float(along @ excess), rel=1e-11, abs=1e-11 * float(dense.norm())
    )


@pytest.mark.parametrize("order", ["direct", "kernel"])
@pytest.mark.parametrize("positions", [4, 12])
def test_cost_is_what_is_counted(order: contraction.Order, positions: int) -> None:
    """Up to what the blocks of the symmetric half compute twice, and the sums over tiles."""
    columns = linear(24, 5, 30, 20, positions)
    with FlopMeter() as meter:
        contraction.gram(columns, order)
    assert not meter.uncounted
    assert 0.9 <= meter.total / contraction.cost(columns, order) <= 1.35


def test_cheaper_order() -> None:
    assert contraction.cheaper(linear(4, 3, 40, 40, 2)) == "kernel"
    assert contraction.cheaper(linear(4, 3, 4, 4, 60)) == "direct"


def cost_of_full(size: LayerSize, N: int, R: int) -> dict[str, float]:
    """What the probe ``full`` publishes: a Gram matrix, four products of the columns and two of the Gram matrix."""
    return published_cost(cb.probe("full"), [size], N, R)


def test_published_cost_of_a_gram_matrix() -> None:
    """Without positions b^2 (m + d); with them half of b^2 p and forming b S p, or S x S kernels if cheaper."""
    assert cost_of_full(LayerSize(1, 4, 5, 1), 5, 2)["statistics"] == 10**2 * (4 + 5)
    assert cost_of_full(LayerSize(2, 4, 5, 30), 5, 2)["statistics"] == 10**2 * 40 / 2 + 10 * 30 * 40
    assert cost_of_full(LayerSize(1, 40, 50, 2), 5, 2)["statistics"] == 15 * (50 * 2**2 + 2 * 40 * 2**2 + 2**2 * 40 * 2)


def test_cost_of_products_is_what_is_counted() -> None:
    columns = linear(6, 3, 20, 30, 4)
    size = LayerSize(*columns.layer.shape, 4)
    vector = torch.randn(columns.layer.size, 1, dtype=columns.slopes.dtype)
    product = (cost_of_full(size, 6, 3)["precondition"] - 2 * (6 * 3) ** 2) / 4
    with FlopMeter() as meter:
        weights = columns.project(vector)
    assert meter.total == pytest.approx(2 * product, rel=0.05)
    with FlopMeter() as meter:
        columns.combine(weights)
    assert meter.total == pytest.approx(2 * product, rel=0.05)
    stored = cost_of_full(size, 6, 3)["memory"] - 2 * (6 * 3) ** 2
    assert stored == columns.patches().numel() + columns.slopes.numel()
