"""Kronecker products with diagonal sides: their eigenbasis, other bases, storage, and what they never form."""

from __future__ import annotations

import dataclasses
import io
import itertools

import pytest
import torch
from torch import Tensor

from curvbench import states
from curvbench.operators import Kronecker, RotatedDiagonal

KINDS = [(kinds, groups) for kinds, groups in itertools.product(("dd", "dv", "vd", "vv"), (1, 3))]
BASES = list(itertools.product(("qq", "qi", "iq", "ii"), ("qq", "qi", "iq", "ii")))
M, D = 3, 4


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def product(kinds: str, groups: int) -> Kronecker:
    """``kinds``: d for a dense side, v for the vector of a diagonal one, left before right."""
    torch.manual_seed(0)
    roots = randn(groups, M, M), randn(groups, D, D)
    left, right = (r @ r.mT if kind == "d" else r[:, 0].square() for kind, r in zip(kinds, roots, strict=True))
    return Kronecker(left, right, kinds[0] == "v", kinds[1] == "v")


def dense(operator: Kronecker) -> Tensor:
    left = operator.left.diag_embed() if operator.left_is_diagonal else operator.left
    right = operator.right.diag_embed() if operator.right_is_diagonal else operator.right
    return torch.block_diag(*[torch.kron(a, b) for a, b in zip(left, right, strict=True)])


def basis(kind: str, groups: int, order: int) -> Tensor | None:
    return torch.linalg.qr(randn(groups, order, order)).Q if kind == "q" else None


def stored_basis(vectors: Tensor | None, groups: int, order: int) -> Tensor:
    eye = torch.eye(order, dtype=torch.float64).repeat(groups, 1, 1)
    return (eye if vectors is None else vectors).contiguous()


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-12) -> bool:
    return found.shape == expected.shape and bool((found - expected).norm() <= tolerance * expected.norm())


@pytest.mark.parametrize(("kinds", "groups"), KINDS)
def test_the_eigenbasis_of_a_diagonal_side_is_the_identity(kinds: str, groups: int) -> None:
    operator = product(kinds, groups)
    rotated, matrix = operator.rotated, dense(operator)
    assert [b is None for b in (rotated.left_basis, rotated.right_basis)] == [kind == "v" for kind in kinds]
    assert close(rotated.to_dense(), matrix)
    eye = torch.eye(len(matrix), dtype=torch.float64)
    assert close(rotated.inverse(0.3).to_dense(), torch.linalg.inv(matrix + 0.3 * eye))


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(("own", "other"), BASES)
def test_the_diagonal_in_other_bases(own: str, other: str, groups: int) -> None:
    torch.manual_seed(1)
    orders = (M, D)
    mine, wanted = ([basis(k, groups, n) for k, n in zip(kinds, orders, strict=True)] for kinds in (own, other))
    operator = RotatedDiagonal(*mine, torch.rand(groups, M, D, dtype=torch.float64))
    pairs = zip(*[stored_basis(b, groups, n) for b, n in zip(wanted, orders, strict=True)], strict=True)
    Q = torch.block_diag(*[torch.kron(a, b) for a, b in pairs])
    assert close(operator.entries_in(*wanted).flatten(), (Q.T @ operator.to_dense() @ Q).diagonal())


@pytest.mark.parametrize(("kinds", "groups"), KINDS)
def test_states_keep_the_kind_of_every_side(kinds: str, groups: int) -> None:
    operator, file = product(kinds, groups), io.BytesIO()
    other = dataclasses.replace(operator, left=2 * operator.left)
    torch.save(states.pack([operator, operator.rotated]), file)
    file.seek(0)
    again, rotated = states.unpack(torch.load(file, weights_only=True), "curvbench.operators")
    assert torch.equal(again.to_dense(), operator.to_dense()) and torch.equal(rotated.entries, operator.rotated.entries)
    assert close(states.blend(operator, other, 0.25).to_dense(), 1.75 * dense(operator))
    assert close(states.weighted([operator, other], [0.5, 0.5]).to_dense(), 1.5 * dense(operator))
    assert close(states.mapped(operator, lambda t: 3 * t).to_dense(), 9 * dense(operator))
    assert len(states.tensors(operator)) == 2
    assert len(states.tensors(operator.rotated)) == 1 + kinds.count("d")


def test_a_square_factor_is_what_its_flag_says() -> None:
    """(3, 3) is one matrix, or the diagonals of three groups."""
    square, vectors = randn(3, 3).square(), randn(3, 2).square()
    assert Kronecker(square, vectors, True, True).layout == (3, 3, 2)
    assert Kronecker(square, vectors[0], right_is_diagonal=True).layout == (1, 3, 2)
    assert Kronecker.batched(square, vectors).layout == (3, 3, 2)
    assert Kronecker.batched(square[None], vectors[:1]).layout == (1, 3, 2)


def test_a_dense_side_is_not_its_diagonal() -> None:
    operator = product("dd", 3)
    cut = Kronecker.batched(operator.left, operator.right.diagonal(dim1=1, dim2=2))
    assert torch.equal(cut.diagonal(), operator.diagonal()) and not close(cut.to_dense(), dense(operator), 0.1)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_long_diagonal_side_is_never_a_matrix(side: str) -> None:
    """An embedding of 50,000 tokens: its matrix would take 20 GB."""
    frequencies, factor = torch.arange(50_000, dtype=torch.float64), torch.eye(2, dtype=torch.float64) + 1
    operator = Kronecker(frequencies, factor, True) if side == "left" else Kronecker(factor, frequencies, False, True)
    vector = randn(100_000)
    solved = operator.solve(operator.matvec(vector) + 0.5 * vector, 0.5)
    assert close(solved, vector) and close(operator.rotated.matvec(vector), operator.matvec(vector))
    assert float(operator.eigenvalues(1)) == pytest.approx(3 * 49_999)
    assert operator.trace() == pytest.approx(4 * float(frequencies.sum()))
    assert operator.smallest_eigenvalue() == 0


def test_rare_tokens_are_no_rounding() -> None:
    """A frequency of 1 among 1e6 is exact, so that a solve without damping needs no eigenvalue above V eps."""
    frequencies = torch.full((50_000,), 1e6)
    frequencies[0] = 1.0
    operator = Kronecker(torch.eye(2), frequencies, right_is_diagonal=True)
    vector = torch.ones(100_000)
    assert torch.allclose(operator.solve(operator.matvec(vector), 0.0), vector)
    unseen = Kronecker(torch.eye(2), frequencies - 1, right_is_diagonal=True)
    with pytest.raises(ValueError, match="singular"):
        unseen.solve(vector, 0.0)
