"""The Kronecker product nearest to a sum, against the SVD of the dense rearranged sum (Van Loan)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import oracles
import pytest
import torch
from torch import Tensor

from curvbench.operators import Kronecker
from curvbench.parts.nearest import nearest

M, D = 4, 5


def psd(size: int, groups: int) -> Tensor:
    root = torch.randn(groups, size, 2, dtype=torch.float64)
    return root @ root.mT


def product(kinds: str, groups: int, scales: tuple[float, float] = (1.0, 1.0)) -> Kronecker:
    """``kinds``: d for a dense side, v for the vector of a diagonal one, left before right."""
    dense = [scale * psd(n, groups) for n, scale in zip((M, D), scales, strict=True)]
    pairs = zip(kinds, dense, strict=True)
    return Kronecker.batched(*(f if kind == "d" else f.diagonal(dim1=1, dim2=2).clone() for kind, f in pairs))


def group_sums(products: Sequence[Kronecker]) -> list[Tensor]:
    """The dense sum of every group."""
    total = sum(product.to_dense() for product in products)
    assert isinstance(total, Tensor)
    return oracles.diagonal_blocks(total, [M * D] * len(products[0].left))


def expected(products: Sequence[Kronecker]) -> Tensor:
    return torch.block_diag(*[oracles.kpsvd_block(block, M, D) for block in group_sums(products)])


TERMS = [pair for count in (2, 3) for pair in itertools.combinations_with_replacement(("dd", "dv", "vd", "vv"), count)]


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("kinds", TERMS, ids="-".join)
def test_no_product_is_nearer(kinds: tuple[str, ...], groups: int) -> None:
    torch.manual_seed(0)
    products = [product(kind, groups) for kind in kinds]
    found = nearest(products)
    assert oracles.relative(found.to_dense(), expected(products)) <= 1e-12
    assert found.left_is_diagonal == all(kind[0] == "v" for kind in kinds)
    assert found.right_is_diagonal == all(kind[1] == "v" for kind in kinds)
    for side in (found.left, found.right):
        matrices = side if side.ndim == 3 else side.diag_embed()
        assert float(torch.linalg.eigvalsh(matrices).min()) >= -1e-14 * float(matrices.norm())


def test_the_sum_of_factors_is_farther() -> None:
    torch.manual_seed(0)
    products = [product("dd", 1, (1.0, 3.0)), product("dd", 1)]
    summed = Kronecker(products[0].left + products[1].left, products[0].right + products[1].right)
    total = products[0].to_dense() + products[1].to_dense()
    best = torch.linalg.norm(nearest(products).to_dense() - total)
    for other in (summed, *products):
        assert best < 0.9 * torch.linalg.norm(other.to_dense() - total)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_sum_that_is_a_product_is_found(side: str) -> None:
    """Terms with one side in common, or in proportion."""
    torch.manual_seed(1)
    first, second = product("dd", 3), product("dv", 3)
    if side == "right":
        products = [first, Kronecker(second.left, 2 * first.right)]
        left, right = first.left + 2 * second.left, first.right
    else:
        products = [first, Kronecker.batched(2 * first.left, second.right)]
        left, right = first.left, first.right + 2 * second.right.diag_embed()
    assert oracles.relative(nearest(products).to_dense(), Kronecker(left, right).to_dense()) <= 1e-14


def test_one_product_is_itself() -> None:
    only = product("dv", 3)
    assert nearest([only]) is only


@pytest.mark.parametrize("scales", [(1e9, 1e-9), (1e-9, 1e9), (1e9, 1.0), (1e-9, 1e-9), (1e-30, 1e-30)])
def test_terms_of_any_scale(scales: tuple[float, float]) -> None:
    torch.manual_seed(2)
    products = [product("dd", 1, scales), product("dd", 1)]
    assert oracles.relative(nearest(products).to_dense(), expected(products)) <= 1e-12


def test_groups_without_scores_are_zero() -> None:
    """A group may be dead in one term, in a side, or in all terms."""
    torch.manual_seed(3)
    products = [product("dd", 4), product("dd", 4)]
    for term, index in ((0, 0), (0, 1), (1, 1)):
        products[term].left[index] = 0
    products[1].right[2] = 0
    products[0].left[3], products[1].right[3] = 0, 0
    found = nearest(products)
    assert oracles.relative(found.to_dense(), expected(products).nan_to_num()) <= 1e-12
    assert not found.left[1].any() and not found.to_dense()[3 * M * D :].any()


def test_terms_on_different_entries_have_a_nearest_product() -> None:
    """Both terms are nearest: the leading singular value is double, and no weight may become negative."""
    eye = torch.eye(2, dtype=torch.float64)
    products = [Kronecker(e[None], e[None], True, True) for e in eye]
    found = nearest(products)
    assert float((found.to_dense() - torch.diag(torch.tensor([1.0, 0, 0, 1]).double())).norm()) == pytest.approx(1)
    assert float(found.left.min()) >= 0 and float(found.right.min()) >= 0


@pytest.mark.parametrize("kinds", [("dd", "dd"), ("dd", "dv"), ("dv", "dd")], ids="-".join)
def test_a_cut_side_is_the_diagonal_of_dense_factors(kinds: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curvbench.parts.factors.LARGEST_SIDE", M)
    torch.manual_seed(4)
    products = [product(kind, 3) for kind in kinds]
    diagonals = [p.right if p.right_is_diagonal else p.right.diagonal(dim1=1, dim2=2) for p in products]
    cut = [Kronecker.batched(p.left, diagonal) for p, diagonal in zip(products, diagonals, strict=True)]
    found = nearest(products)
    assert found.right_is_diagonal and not found.left_is_diagonal
    assert oracles.relative(found.to_dense(), expected(cut)) <= 1e-12
    assert oracles.relative(found.to_dense(), expected(products)) > 0.1


def test_a_tied_embedding_is_never_a_matrix() -> None:
    """50,000 tokens on the right side of both roles; a dense factor would take 20 GB."""
    torch.manual_seed(5)
    vectors = torch.rand(2, 1, 50_000)
    products = [Kronecker(psd(3, 1).float(), vector, right_is_diagonal=True) for vector in vectors]
    found = nearest(products)
    assert found.dtype == torch.float32 and found.right.shape == (1, 50_000)
    left, right = (torch.stack([getattr(p, side)[0].double() for p in products]) for side in ("left", "right"))
    _, s, v = torch.linalg.svd(left.flatten(1).T @ right, full_matrices=False)
    assert found.frobenius_norm() == pytest.approx(float(s[0]), rel=1e-6)
    assert float((found.right[0].double() / found.right[0].double().norm() - v[0].abs()).norm()) <= 1e-6


@pytest.mark.parametrize("products", [[], [product("dd", 1), product("dd", 3)]], ids=["none", "groups"])
def test_what_is_no_sum_is_refused(products: list[Kronecker]) -> None:
    with pytest.raises(ValueError, match="one shape"):
        nearest(products)
