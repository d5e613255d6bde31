"""Every operator against a dense matrix built by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from cases import fisher_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from curvbench import operators


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def psd(size: int, *batch: int, rank: int | None = None) -> Tensor:
    root = randn(*batch, size, size if rank is None else rank)
    return root @ root.mT


def positive(size: int, *batch: int) -> Tensor:
    return psd(size, *batch) + 0.5 * torch.eye(size, dtype=torch.float64)


def rotation(size: int, *batch: int) -> Tensor:
    return torch.linalg.qr(randn(*batch, size, size)).Q


@dataclass(frozen=True)
class Pair:
    """An operator and the matrix it stands for."""

    operator: operators.Operator
    dense: Tensor
    singular: bool = False


def identity() -> Pair:
    return Pair(operators.Identity(7, torch.float64), torch.eye(7, dtype=torch.float64))


def diagonal() -> Pair:
    entries = randn(9).square() + 0.1
    return Pair(operators.Diagonal(entries), torch.diag(entries))


def diagonal_singular() -> Pair:
    entries = torch.tensor([0.0, 1.0, 0.0, 3.0], dtype=torch.float64)
    return Pair(operators.Diagonal(entries), torch.diag(entries), singular=True)


def diagonal_zero() -> Pair:
    return Pair(operators.Diagonal(randn(5) * 0), torch.zeros(5, 5, dtype=torch.float64), singular=True)


def kronecker() -> Pair:
    left, right = positive(3), positive(4)
    return Pair(operators.Kronecker(left, right), torch.kron(left, right))


def kronecker_grouped(rank: int | None = None) -> Pair:
    left, right = (positive(3, 2), positive(4, 2)) if rank is None else (psd(3, 2, rank=rank), psd(4, 2, rank=rank))
    dense = torch.block_diag(*[torch.kron(a, b) for a, b in zip(left, right, strict=True)])
    return Pair(operators.Kronecker(left, right), dense, singular=rank is not None)


def kronecker_zero_group() -> Pair:
    left, right = positive(2, 3), positive(3, 3)
    left[1] = 0.0
    dense = torch.block_diag(*[torch.kron(a, b) for a, b in zip(left, right, strict=True)])
    return Pair(operators.Kronecker(left, right), dense, singular=True)


def kronecker_of_one() -> Pair:
    left, right = positive(1, 5), positive(4, 5)
    dense = torch.block_diag(*[torch.kron(a, b) for a, b in zip(left, right, strict=True)])
    return Pair(operators.Kronecker(left, right), dense)


def rotated(singular: bool = False) -> Pair:
    left, right, entries = rotation(3, 2), rotation(4, 2), torch.rand(2, 3, 4, dtype=torch.float64) + 0.1
    if singular:
        entries[0, :2] = 0.0
    basis = [torch.kron(a, b) for a, b in zip(left, right, strict=True)]
    dense = torch.block_diag(*[q @ torch.diag(e.flatten()) @ q.T for q, e in zip(basis, entries, strict=True)])
    return Pair(operators.RotatedDiagonal(left, right, entries), dense, singular)


def kronecker_of_sides(kinds: str, groups: int, singular: bool = False) -> Pair:
    """``kinds``: d for a dense side, v for the vector of a diagonal one, left before right."""
    sides = [positive(n, groups) for n in (3, 4)]
    if singular:
        sides[1][:, 0] = sides[1][:, :, 0] = 0.0
    vectors = [side.diagonal(dim1=1, dim2=2) for side in sides]
    stored = [a if kind == "d" else torch.diag_embed(v) for kind, a, v in zip(kinds, sides, vectors, strict=True)]
    given = [a if kind == "d" else v for kind, a, v in zip(kinds, sides, vectors, strict=True)]
    left, right = (side[0] if groups == 1 else side for side in given)
    dense = torch.block_diag(*[torch.kron(a, b) for a, b in zip(*stored, strict=True)])
    return Pair(operators.Kronecker(left, right, kinds[0] == "v", kinds[1] == "v"), dense, singular)


def rotated_in(kinds: str, groups: int, singular: bool = False) -> Pair:
    """``kinds``: q for a basis, i for the identity, left before right."""
    entries = torch.rand(groups, 3, 4, dtype=torch.float64) + 0.1
    entries[0, :2] *= not singular
    bases = [rotation(n, groups) if kind == "q" else None for kind, n in zip(kinds, (3, 4), strict=True)]
    eyes = [torch.eye(n, dtype=torch.float64).repeat(groups, 1, 1) for n in (3, 4)]
    stored = [eye if basis is None else basis for basis, eye in zip(bases, eyes, strict=True)]
    whole = torch.block_diag(*[torch.kron(a.contiguous(), b.contiguous()) for a, b in zip(*stored, strict=True)])
    return Pair(operators.RotatedDiagonal(*bases, entries), whole @ torch.diag(entries.flatten()) @ whole.T, singular)


def skew(size: int, *batch: int) -> Tensor:
    matrix = randn(*batch, size, size)
    return matrix - matrix.mT


def summed(lefts: list[Tensor], rights: list[Tensor], singular: bool = False) -> Pair:
    """A sum of products with factors (G, n, n)."""
    groups = range(len(lefts[0]))
    dense = [sum(torch.kron(a[g], b[g]) for a, b in zip(lefts, rights, strict=True)) for g in groups]
    return Pair(operators.KroneckerSum(torch.stack(lefts), torch.stack(rights)), torch.block_diag(*dense), singular)  # type: ignore[arg-type]


def kronecker_sum_of_one() -> Pair:
    return summed([positive(3, 2)], [positive(4, 2)])


def kronecker_sum_of_two() -> Pair:
    return summed([positive(3, 2), psd(3, 2, rank=2)], [positive(4, 2), psd(4, 2, rank=1)])


def kronecker_sum_with_a_skew_pair() -> Pair:
    """Small enough that the sum stays positive definite."""
    return summed([positive(3, 2), 0.1 * skew(3, 2)], [positive(4, 2), 0.1 * skew(4, 2)])


def kronecker_sum_of_each_kind() -> Pair:
    """The second pair is skew in one of the groups, and there is a third one."""
    second = torch.stack([psd(3), 0.1 * skew(3)]), torch.stack([psd(4), 0.1 * skew(4)])
    return summed([positive(3, 2), second[0], 0.05 * skew(3, 2)], [positive(4, 2), second[1], 0.05 * skew(4, 2)])


def kronecker_sum_singular() -> Pair:
    return summed([psd(3, 1, rank=1)] * 3, [psd(4, 1, rank=2), psd(4, 1, rank=1), psd(4, 1, rank=1)], singular=True)


def low_rank() -> Pair:
    columns, weights = randn(12, 3), torch.rand(3, dtype=torch.float64)
    dense = 0.7 * torch.eye(12, dtype=torch.float64) + columns @ torch.diag(weights) @ columns.T
    return Pair(operators.LowRank(columns, weights, 0.7), dense)


def low_rank_without_shift() -> Pair:
    columns, weights = randn(12, 3), torch.rand(3, dtype=torch.float64)
    return Pair(operators.LowRank(columns, weights, 0.0), columns @ torch.diag(weights) @ columns.T, singular=True)


def low_rank_zero_weight() -> Pair:
    columns, weights = randn(8, 3), torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)
    dense = 0.5 * torch.eye(8, dtype=torch.float64) + columns @ torch.diag(weights) @ columns.T
    return Pair(operators.LowRank(columns, weights, 0.5), dense)


def low_rank_repeated_columns() -> Pair:
    columns = randn(8, 1).repeat(1, 3)
    return Pair(operators.LowRank(columns, torch.ones(3).double(), 0.0), columns @ columns.T, singular=True)


def low_rank_wide() -> Pair:
    columns, weights = randn(5, 9), torch.rand(9, dtype=torch.float64)
    dense = 0.2 * torch.eye(5, dtype=torch.float64) + columns @ torch.diag(weights) @ columns.T
    return Pair(operators.LowRank(columns, weights, 0.2), dense)


def low_rank_no_columns() -> Pair:
    return Pair(operators.LowRank(randn(6, 0), randn(0), 2.0), 2.0 * torch.eye(6, dtype=torch.float64))


def subspace() -> Pair:
    """Values on both sides of the rest."""
    basis, values = rotation(10)[:, :3], torch.tensor([0.1, 0.7, 5.0], dtype=torch.float64)
    outside = torch.eye(10, dtype=torch.float64) - basis @ basis.T
    return Pair(operators.Subspace(basis, values, 0.7), basis @ torch.diag(values) @ basis.T + 0.7 * outside)


def subspace_singular() -> Pair:
    basis, values = rotation(10)[:, :3], torch.tensor([0.0, 0.7, 5.0], dtype=torch.float64)
    outside = torch.eye(10, dtype=torch.float64) - basis @ basis.T
    dense = basis @ torch.diag(values) @ basis.T + 0.2 * outside
    return Pair(operators.Subspace(basis, values, 0.2), dense, singular=True)


def subspace_without_rest() -> Pair:
    basis, values = rotation(10)[:, :3], torch.tensor([0.1, 0.7, 5.0], dtype=torch.float64)
    return Pair(operators.Subspace(basis, values, 0.0), basis @ torch.diag(values) @ basis.T, singular=True)


def subspace_whole() -> Pair:
    """Nothing outside, so that the rest does not count."""
    basis, values = rotation(6), torch.rand(6, dtype=torch.float64) + 0.1
    return Pair(operators.Subspace(basis, values, 0.0), basis @ torch.diag(values) @ basis.T)


def subspace_empty() -> Pair:
    return Pair(operators.Subspace(randn(6, 0), randn(0), 2.0), 2.0 * torch.eye(6, dtype=torch.float64))


def dense() -> Pair:
    matrix = positive(8)
    return Pair(operators.Dense(matrix), matrix)


def dense_singular() -> Pair:
    matrix = psd(8, rank=3)
    return Pair(operators.Dense(matrix), matrix, singular=True)


def dense_batched() -> Pair:
    matrices = positive(4, 3)
    return Pair(operators.Dense(matrices), torch.block_diag(*matrices))


def block_diagonal() -> Pair:
    parts = [kronecker_grouped(), diagonal(), low_rank(), rotated(), dense_batched(), identity()]
    return Pair(
        operators.BlockDiagonal([part.operator for part in parts]), torch.block_diag(*[part.dense for part in parts])
    )


def block_diagonal_singular() -> Pair:
    parts = [kronecker(), diagonal_singular(), dense_singular()]
    inner = operators.BlockDiagonal([part.operator for part in parts[1:]])
    dense = torch.block_diag(*[part.dense for part in parts])
    return Pair(operators.BlockDiagonal([parts[0].operator, inner]), dense, singular=True)


def permuted() -> Pair:
    """Two blocks whose entries alternate."""
    part, order = block_diagonal(), torch.arange(88).reshape(44, 2).T.flatten()
    dense = torch.zeros_like(part.dense)
    dense[order[:, None], order[None, :]] = part.dense
    return Pair(operators.Permuted(part.operator, order), dense)


def permuted_singular() -> Pair:
    part, order = diagonal_singular(), torch.tensor([2, 0, 3, 1])
    return Pair(operators.Permuted(part.operator, order), torch.diag(part.dense.diagonal()[order.argsort()]), True)


def shifted() -> Pair:
    part = low_rank_without_shift()
    return Pair(part.operator.damped(0.3), part.dense + 0.3 * torch.eye(12, dtype=torch.float64))


def shifted_by_nothing() -> Pair:
    part = dense_singular()
    return Pair(part.operator.damped(0.0), part.dense, singular=True)


MAKERS: dict[str, Callable[[], Pair]] = {
    f.__name__: f
    for f in (
        identity, diagonal, diagonal_singular, diagonal_zero, kronecker, kronecker_grouped, kronecker_zero_group,
        kronecker_of_one, kronecker_sum_of_one, kronecker_sum_of_two, kronecker_sum_with_a_skew_pair,
        kronecker_sum_of_each_kind, kronecker_sum_singular, rotated,
        low_rank, low_rank_without_shift, low_rank_zero_weight, low_rank_repeated_columns,
        low_rank_wide, low_rank_no_columns, subspace, subspace_singular, subspace_without_rest, subspace_whole,
        subspace_empty, dense, dense_singular, dense_batched,
        block_diagonal, block_diagonal_singular, permuted, permuted_singular, shifted, shifted_by_nothing,
    )
}  # fmt: skip
MAKERS |= {"kronecker_singular": lambda: kronecker_grouped(rank=1), "rotated_singular": lambda: rotated(singular=True)}
MAKERS |= {
    f"kronecker_{kinds}_{groups}{'_singular' * zero}": partial(kronecker_of_sides, kinds, groups, zero)
    for kinds, groups, zero in itertools.product(("dv", "vd", "vv"), (1, 3), (False, True))
}
MAKERS |= {
    f"rotated_{kinds}_{groups}{'_singular' * zero}": partial(rotated_in, kinds, groups, zero)
    for kinds, groups, zero in itertools.product(("qi", "iq", "ii"), (1, 3), (False, True))
}


@pytest.fixture(params=MAKERS)
def pair(request: pytest.FixtureRequest) -> Pair:
    torch.manual_seed(2)
    return MAKERS[request.param]()


def near(value: Tensor | float, expected: Tensor | float, tolerance: float = 1e-10) -> bool:
    """Relative distance below the tolerance; false for NaN and for another shape."""
    value, expected = (torch.as_tensor(x, dtype=torch.float64) for x in (value, expected))
    return value.shape == expected.shape and bool((value - expected).norm() <= tolerance * (1e-3 + expected.norm()))


def test_dense_form(pair: Pair) -> None:
    assert tuple(pair.operator.shape) == tuple(pair.dense.shape)
    assert near(pair.operator.to_dense(), pair.dense, 1e-13)


def test_products(pair: Pair) -> None:
    vectors = randn(len(pair.dense), 4)
    assert near(pair.operator.matvec(vectors[:, 0]), pair.dense @ vectors[:, 0], 1e-13)
    assert near(pair.operator.matmat(vectors), pair.dense @ vectors, 1e-13)
    stacked = torch.stack([pair.operator.matvec(v) for v in vectors.T], dim=1)
    assert near(pair.operator.matmat(vectors), stacked, 1e-13)


def test_products_are_symmetric(pair: Pair) -> None:
    v, w = randn(2, len(pair.dense))
    assert abs(float(v @ pair.operator.matvec(w) - w @ pair.operator.matvec(v))) <= 1e-12 * (1 + pair.dense.norm())


def test_numbers(pair: Pair) -> None:
    assert near(float(pair.operator.trace()), pair.dense.trace())
    assert near(float(pair.operator.frobenius_norm()), pair.dense.norm())
    assert near(pair.operator.diagonal(), pair.dense.diagonal())


def test_eigenvalues(pair: Pair) -> None:
    expected = torch.linalg.eigvalsh(pair.dense).flip(0)
    for k in (1, 3, len(expected)):
        assert near(pair.operator.eigenvalues(k), expected[:k])
    scale = float(expected[0].abs())
    assert abs(float(pair.operator.smallest_eigenvalue()) - float(expected[-1])) <= 1e-10 * max(scale, 1e-3)


@pytest.mark.parametrize("damping", [1e-8, 1e-3, 1.0, 1e4])
def test_solve_undoes_the_damped_product(pair: Pair, damping: float) -> None:
    vector = randn(len(pair.dense))
    product = pair.operator.matvec(vector) + damping * vector
    condition = float(pair.dense.norm()) / damping if pair.singular else 1e3
    assert near(pair.operator.solve(product, damping), vector, max(1e-10, 1e-15 * condition))


@pytest.mark.parametrize("damping", [1e-3, 1.0])
def test_solve_agrees_with_the_dense_solution(pair: Pair, damping: float) -> None:
    vector = randn(len(pair.dense))
    expected = torch.linalg.solve(pair.dense + damping * torch.eye(len(vector), dtype=torch.float64), vector)
    assert near(pair.operator.solve(vector, damping), expected)


def test_solve_without_damping(pair: Pair) -> None:
    vector = randn(len(pair.dense))
    if pair.singular:
        # no inverse exists: a refusal, or the minimum-norm answer for a vector in the range; never a NaN
        product = pair.operator.matvec(vector)
        try:
            found = pair.operator.solve(product, 0.0)
        except (ValueError, torch.linalg.LinAlgError) as refusal:
            assert "\n" not in str(refusal)
        else:
            assert near(pair.operator.matvec(found), product, 1e-6)
    else:
        assert near(pair.operator.solve(vector, 0.0), torch.linalg.solve(pair.dense, vector))


@pytest.mark.parametrize("damping", [0.3, torch.tensor([0.3, 0.7]).double()])
def test_factors_are_damped_on_their_own(damping: Tensor | float) -> None:
    left, right = psd(3, 2, rank=1), psd(4, 2, rank=2)
    found = operators.Kronecker(left, right).damped_factors(damping, 0.5)
    left = left + torch.eye(3).double() * (damping[:, None, None] if isinstance(damping, Tensor) else damping)
    right = right + 0.5 * torch.eye(4).double()
    expected = torch.block_diag(*[torch.kron(a, b) for a, b in zip(left, right, strict=True)])
    assert near(found.to_dense(), expected, 1e-14)


@pytest.mark.parametrize("damping", [-1e-12, -1.0, math.nan])
def test_solve_refuses_what_is_no_damping(pair: Pair, damping: float) -> None:
    with pytest.raises(ValueError, match="damping"):
        pair.operator.solve(randn(len(pair.dense)), damping)


@pytest.mark.parametrize("length", [1, 3])
def test_a_vector_of_another_length_is_refused(pair: Pair, length: int) -> None:
    """Broadcasting would give an answer to a question nobody asked."""
    for method in (pair.operator.matvec, lambda v: pair.operator.solve(v, 1.0)):
        with pytest.raises((ValueError, RuntimeError)):
            method(randn(length))


def test_whole_block(pair: Pair) -> None:
    assert near(pair.operator.block(0, len(pair.dense)).to_dense(), pair.dense, 1e-13)


@pytest.mark.parametrize(
    "name", ["identity", "diagonal", "low_rank", "subspace", "subspace_whole", "subspace_empty", "dense", "shifted"]
)
def test_any_block(name: str) -> None:
    torch.manual_seed(2)
    pair = MAKERS[name]()
    block = pair.operator.block(2, 6)
    assert tuple(block.shape) == (4, 4)
    assert near(block.to_dense(), pair.dense[2:6, 2:6], 1e-13)
    assert near(float(block.frobenius_norm()), pair.dense[2:6, 2:6].norm(), 1e-12)
    assert near(block.eigenvalues(4), torch.linalg.eigvalsh(pair.dense[2:6, 2:6]).flip(0), 1e-12)


def test_blocks_of_a_block_diagonal() -> None:
    torch.manual_seed(2)
    pair = block_diagonal()
    boundaries = [0, 24, 33, 45, 69, 81, 88]
    for start, stop in itertools.pairwise(boundaries):
        assert near(pair.operator.block(start, stop).to_dense(), pair.dense[start:stop, start:stop], 1e-13)


def test_a_block_that_does_not_exist_is_refused(pair: Pair) -> None:
    for start, stop in ((0, len(pair.dense) + 1), (-1, 2)):
        with pytest.raises(ValueError):
            pair.operator.block(start, stop).to_dense()


def test_float32_stays_float32() -> None:
    operator = operators.Kronecker(positive(3).float(), positive(4).float())
    vector = randn(12).float()
    assert operator.matvec(vector).dtype == operator.solve(vector, 0.1).dtype == torch.float32
    assert operator.diagonal().dtype == operator.to_dense().dtype == torch.float32


def test_float32_norm_keeps_its_digits() -> None:
    """A float32 sum over many entries loses digits; norms and traces are accumulated in float64."""
    entries = torch.full((30_000_000,), 0.1)
    exact = math.sqrt(3e7) * float(torch.tensor(0.1))
    assert float(operators.Diagonal(entries).frobenius_norm()) == pytest.approx(exact, rel=1e-6)
    assert float(operators.Diagonal(entries).trace()) == pytest.approx(3e7 * float(torch.tensor(0.1)), rel=1e-6)


WRONG: dict[str, Callable[[], operators.Operator]] = {
    "kronecker, not square": lambda: operators.Kronecker(randn(3, 4), randn(3, 3)),
    "kronecker, groups differ": lambda: operators.Kronecker(psd(3, 2), psd(3, 3)),
    "kronecker, a vector for a matrix": lambda: operators.Kronecker(psd(3, 1), randn(1, 4)),
    "kronecker, a matrix for a vector": lambda: operators.Kronecker(psd(3, 1), psd(4, 1), right_is_diagonal=True),
    "kronecker, groups of vectors differ": lambda: operators.Kronecker(randn(2, 3), randn(3, 4), True, True),
    "kronecker sum, not square": lambda: operators.KroneckerSum(randn(2, 1, 3, 4), randn(2, 1, 3, 3)),
    "kronecker sum, a factor missing": lambda: operators.KroneckerSum(psd(3, 2, 1), psd(4, 1, 1)),
    "kronecker sum of nothing": lambda: operators.KroneckerSum(randn(0, 1, 3, 3), randn(0, 1, 3, 3)),
    "dense, not square": lambda: operators.Dense(randn(3, 4)),
    "low rank, weights missing": lambda: operators.LowRank(randn(5, 3), randn(2).abs(), 0.0),
    "low rank, negative weight": lambda: operators.LowRank(randn(5, 2), torch.tensor([1.0, -1.0]).double(), 0.0),
    "subspace, negative value": lambda: operators.Subspace(rotation(4)[:, :1], -torch.ones(1).double(), 1.0),
    "subspace, negative rest": lambda: operators.Subspace(rotation(4)[:, :1], torch.ones(1).double(), -1.0),
    "subspace, too many columns": lambda: operators.Subspace(randn(2, 3), torch.ones(3).double(), 1.0),
    "subspace, one value for two": lambda: operators.Subspace(rotation(4)[:, :2], torch.ones(1).double(), 1.0),
    "rotated, identity of another order": lambda: operators.RotatedDiagonal(rotation(3, 1), None, randn(1, 2, 3)),
    "rotated, groups differ": lambda: operators.RotatedDiagonal(None, rotation(3, 2), randn(1, 2, 3)),
    "rotated, entries transposed": lambda: operators.RotatedDiagonal(rotation(3, 1), rotation(2, 1), randn(1, 2, 3)),
    "diagonal, a matrix": lambda: operators.Diagonal(randn(3, 3)),
    "shifted, a negative shift": lambda: operators.Identity(3).damped(-1.0),
    "shifted, no shift": lambda: operators.Identity(3).damped(math.nan),
    "permuted, an entry twice": lambda: operators.Permuted(operators.Identity(3), torch.tensor([0, 1, 1])),
    "permuted, an entry missing": lambda: operators.Permuted(operators.Identity(3), torch.tensor([0, 1])),
    "block diagonal of nothing": lambda: operators.BlockDiagonal([]),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_such_operator_is_refused(name: str) -> None:
    """When it is made or when it is first used; never an answer."""
    with pytest.raises((ValueError, RuntimeError)):
        operator = WRONG[name]()
        operator.matvec(randn(operator.shape[1]))
        operator.to_dense()
        operator.frobenius_norm()


sizes = st.integers(min_value=1, max_value=5)
dampings = st.sampled_from([1e-6, 1e-2, 1.0, 100.0])


@settings(deadline=None, max_examples=40)
@given(g=sizes, m=sizes, d=sizes, rank=st.integers(0, 5), damping=dampings, seed=st.integers(0, 2**31))
def test_kronecker_of_any_shape(g: int, m: int, d: int, rank: int, damping: float, seed: int) -> None:
    torch.manual_seed(seed)
    left, right = psd(m, g, rank=rank), psd(d, g, rank=rank)
    dense = torch.block_diag(*[torch.kron(a, b) for a, b in zip(left, right, strict=True)])
    operator, vector = operators.Kronecker(left, right), randn(g * m * d)
    assert near(operator.to_dense(), dense)
    assert near(operator.diagonal(), dense.diagonal())
    found = operator.solve(operator.matvec(vector) + damping * vector, damping)
    assert near(found, vector, max(1e-10, 1e-14 * float(dense.norm()) / damping))


@settings(deadline=None, max_examples=40)
@given(g=sizes, m=sizes, d=sizes, damping=dampings, seed=st.integers(0, 2**31))
def test_rotated_diagonal_of_any_shape(g: int, m: int, d: int, damping: float, seed: int) -> None:
    torch.manual_seed(seed)
    left, right, entries = rotation(m, g), rotation(d, g), torch.rand(g, m, d, dtype=torch.float64)
    basis = torch.block_diag(*[torch.kron(a, b) for a, b in zip(left, right, strict=True)])
    operator, vector = operators.RotatedDiagonal(left, right, entries), randn(g * m * d)
    dense = basis @ torch.diag(entries.flatten()) @ basis.T
    assert near(operator.to_dense(), dense)
    assert near(operator.diagonal(), dense.diagonal())
    assert near(operator.solve(operator.matvec(vector) + damping * vector, damping), vector, 1e-8)


@settings(deadline=None, max_examples=40)
@given(size=sizes, k=st.integers(0, 8), shift=st.sampled_from([0.0, 0.5]), damping=dampings, seed=st.integers(0, 2**31))
def test_low_rank_of_any_shape(size: int, k: int, shift: float, damping: float, seed: int) -> None:
    torch.manual_seed(seed)
    columns, weights = randn(size, k), torch.rand(k, dtype=torch.float64)
    operator, vector = operators.LowRank(columns, weights, shift), randn(size)
    dense = shift * torch.eye(size, dtype=torch.float64) + columns @ torch.diag(weights) @ columns.T
    assert near(operator.to_dense(), dense)
    assert near(float(operator.frobenius_norm()), dense.norm(), 1e-9)
    assert near(operator.eigenvalues(size), torch.linalg.eigvalsh(dense).flip(0))
    found = operator.solve(operator.matvec(vector) + damping * vector, damping)
    assert near(found, vector, max(1e-9, 1e-13 * float(dense.norm()) / damping))


@pytest.mark.parametrize("damping", [1e-3, 1.0])
def test_damped_inverse(pair: Pair, damping: float) -> None:
    """The matrix, its trace and its log-determinant; nothing is left of the damping when it is inverted again."""
    damped = pair.dense + damping * torch.eye(len(pair.dense), dtype=torch.float64)
    expected, found = torch.linalg.inv(damped), pair.operator.inverse(damping)
    assert near(found.to_dense(), expected, 1e-9)
    assert near(found.trace(), expected.trace(), 1e-9)
    assert near(found.log_determinant(), -torch.linalg.slogdet(damped).logabsdet, 1e-9)
    assert near(pair.operator.damped(damping).log_determinant(), torch.linalg.slogdet(damped).logabsdet, 1e-9)
    assert near(found.inverse(0.0).to_dense(), damped, 1e-8)


def test_inverse_without_damping(pair: Pair) -> None:
    if pair.singular:
        for refuse in (lambda: pair.operator.inverse(0.0), pair.operator.log_determinant):
            with pytest.raises((ValueError, torch.linalg.LinAlgError)):
                refuse()
    else:
        assert near(pair.operator.inverse(0.0).to_dense(), torch.linalg.inv(pair.dense), 1e-9)
        assert near(pair.operator.log_determinant(), torch.linalg.slogdet(pair.dense).logabsdet, 1e-9)


def test_float32_factors_with_a_damping_of_their_own_are_not_singular() -> None:
    """A large factor whose damping is below float32's rounding of a singular one."""
    root = torch.ones(400, 1)
    side = root @ root.T + 2e-4 * torch.eye(400)
    found, exact = operators.Kronecker(side, torch.eye(2)).inverse(0.0), torch.linalg.inv(side.double())
    assert near(found.trace(), 2 * exact.trace(), 1e-3)
    assert near(found.log_determinant(), 2 * torch.linalg.slogdet(exact).logabsdet, 1e-3)


def of_a_user(size: int) -> operators.Operator:
    """An operator with the abstract methods alone, which stands for 2 I."""
    names = ("trace", "frobenius_norm", "diagonal", "eigenvalues", "smallest_eigenvalue", "device")
    members = {name: None for name in names} | {"size": size, "dtype": torch.float64, "device": torch.device("cpu")}
    members |= {"_matmat": lambda self, V: 2 * V, "_solve": lambda self, V, damping: V / (2 + damping)}
    kind: type[operators.Operator] = type("OfAUser", (operators.Operator,), members)
    return kind()


def test_the_inverse_of_a_small_operator_needs_no_method() -> None:
    found = of_a_user(5).inverse(0.5)
    assert near(found.to_dense(), torch.eye(5, dtype=torch.float64) / 2.5, 1e-14)
    assert near(of_a_user(5).log_determinant(), 5 * math.log(2), 1e-14)


def test_a_large_operator_without_a_closed_form_is_not_formed() -> None:
    for refuse in (lambda: of_a_user(3000).inverse(0.5), of_a_user(3000).log_determinant):
        with pytest.raises(ValueError, match="OfAUser of size 3000 has no inverse in closed form, and is too large"):
            refuse()


@pytest.mark.parametrize("damping", [-1e-12, math.nan])
def test_inverse_refuses_what_is_no_damping(pair: Pair, damping: float) -> None:
    with pytest.raises(ValueError, match="damping"):
        pair.operator.inverse(damping)


def indefinite_sum() -> Pair:
    return summed([positive(3, 2), -4 * positive(3, 2)], [positive(4, 2), positive(4, 2)])


@pytest.mark.parametrize("count", [2, 3])
def test_an_indefinite_sum_is_refused_unless_its_damping_is_large_enough(count: int) -> None:
    torch.manual_seed(2)
    pair = indefinite_sum()
    if count == 3:
        one = operators.KroneckerSum(psd(3, 1, 2), psd(4, 1, 2))
        operator = operators.KroneckerSum(
            torch.cat([pair.operator.lefts, one.lefts]),  # type: ignore[attr-defined]
            torch.cat([pair.operator.rights, one.rights]),  # type: ignore[attr-defined]
        )
        pair = Pair(operator, pair.dense + one.to_dense())
    least = float(torch.linalg.eigvalsh(pair.dense)[0])
    assert least < 0
    for damping in (0.0, -0.5 * least):
        with pytest.raises(ValueError, match="indefinite"):
            pair.operator.solve(randn(24), damping)
    v = randn(24)
    expected = torch.linalg.solve(pair.dense - 1.5 * least * torch.eye(24).double(), v)
    assert near(pair.operator.solve(v, -1.5 * least), expected)


def test_spectrum_of_a_large_sum_is_estimated_at_its_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    pair = summed([positive(6, 1), skew(6, 1), psd(6, 1)], [positive(7, 1), skew(7, 1), psd(7, 1)])
    monkeypatch.setattr("curvbench.operators.kronsum.LARGEST_DENSE", 10)
    expected = torch.linalg.eigvalsh(pair.dense).flip(0)
    assert near(pair.operator.eigenvalues(3), expected[:3], 1e-9)
    assert float(pair.operator.smallest_eigenvalue()) == pytest.approx(
        float(expected[-1]), abs=1e-8 * float(expected[0])
    )


def test_an_inner_product_with_a_sum_is_that_of_its_products() -> None:
    """Skew ones included, by both ways to contract: with kernels of positions, and with formed columns."""
    for name in ("conv1d", "linear_tokens", "mlp_tanh"):
        fisher = fisher_of(name)
        blocks = []
        for layer in fisher.layers:
            G, M, D = layer.shape
            lefts, rights = torch.stack([psd(M, G), skew(M, G)]), torch.stack([psd(D, G), skew(D, G)])
            blocks.append(operators.KroneckerSum(lefts, rights))
        operator = operators.BlockDiagonal(blocks)
        expected = float((fisher.to_dense() * operator.to_dense()).sum())
        assert fisher.inner(operator) == pytest.approx(expected, rel=1e-10)
