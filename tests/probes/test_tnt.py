"""TNT against the partial traces of dense blocks."""

from __future__ import annotations

import oracles
import pytest
import torch
from cases import Case, Truth, instance_of, truth
from judging import group_blocks, near
from kinds import blocks, kind
from torch import Tensor

import curvbench as cb


def found(name: str, **options: object) -> Tensor:
    return cb.fit(cb.probe("tnt", **options), instance_of(name)).to_dense()


@pytest.mark.parametrize("kind", ["type-2", "empirical"])
def test_is_the_product_of_the_partial_traces(case: Case, judge: Truth, kind: str) -> None:
    dense = found(case.name, fisher_type=kind)
    for (part, block), (_, exact) in zip(
        group_blocks(judge, dense, kind), group_blocks(judge, judge.fisher(kind), kind), strict=True
    ):
        M, D = part.gradients[0].shape[1], part.inputs[0].shape[1]
        if not exact.any():
            assert not block.any()
            continue
        assert near(block, oracles.tkfac_block(exact, M, D))
        for mine, its in zip(oracles.partial_traces(block, M, D), oracles.partial_traces(exact, M, D), strict=True):
            assert near(mine, its)


def test_is_tkfac_without_positions_alone() -> None:
    """The control is a layer with positions, of which TKFAC makes samples."""
    for name, same in (("mlp_tanh", True), ("conv1d", False), ("linear_pooled", False)):
        other = cb.fit(cb.probe("tkfac"), instance_of(name)).to_dense()
        assert near(other, found(name), 1e-10 if same else 1e-2) == same


def test_is_no_nearer_than_the_best_product() -> None:
    """And K-FAC has other partial traces."""
    for name in ("mlp_tanh", "nasty_cnn"):
        judge, best = truth(name), cb.fit(cb.probe("kpsvd"), instance_of(name)).to_dense()
        triples = zip(*(group_blocks(judge, m) for m in (found(name), best, judge.fisher())), strict=True)
        for (_, block), (_, bound), (_, exact) in triples:
            assert float((bound - exact).norm()) <= float((block - exact).norm()) + 1e-9 * float(exact.norm())


@pytest.mark.parametrize("name", ["embedded", "tied", "normed"])
def test_lookups_have_a_diagonal_and_tied_weights_one_matrix(name: str) -> None:
    dense = cb.fit(cb.probe("tnt", others="block"), kind(name)[3]).to_dense()
    start, lookups = 0, {layer.name for layer in kind(name)[3].layers if layer.kind == "lookup"}
    for label, block in blocks(name).items():
        (M, D), size = block.shape, len(block.matrix)
        mine, start = dense[start : start + size, start : start + size], start + size
        if not block.roles:
            assert near(mine, block.matrix), label
            continue
        left, right = oracles.partial_traces(block.matrix, M, D)
        right = right.diagonal().diag() if label in lookups else right
        assert near(mine, torch.kron(left, right) / left.trace()), label


def test_a_large_side_is_its_diagonal(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = cb.fit(cb.probe("tnt"), instance_of("conv1d")).blocks[0]  # type: ignore[attr-defined]
    monkeypatch.setattr("curvbench.parts.factors.LARGEST_SIDE", 3)
    cut = cb.fit(cb.probe("tnt"), instance_of("conv1d")).blocks[0]  # type: ignore[attr-defined]
    assert cut.left.ndim == cut.right.ndim == 2
    assert near(cut.left, whole.left.diagonal(dim1=1, dim2=2)) and near(cut.right, whole.right.diagonal(dim1=1, dim2=2))
