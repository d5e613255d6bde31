"""Factors too large for a matrix are their diagonals; the damped solve of diagonal sides, against dense matrices."""

from __future__ import annotations

import itertools

import oracles
import pytest
import torch
from cases import instance_of, truth
from judging import near
from torch import Tensor

import curvbench as cb
from curvbench.fisher import collect
from curvbench.operators import BlockDiagonal, Kronecker, Operator, RotatedDiagonal
from curvbench.parts.factors import DampingRule, Factored, KroneckerDamping, MomentSum, kfac_factors, second_moment

CUT = 4  # rows
CASES = ("mlp_tanh", "nasty_cnn", "conv1d", "tokens", "linear_4d")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit that some factors of the cases exceed and others do not."""
    monkeypatch.setattr("curvbench.parts.factors.LARGEST_SIDE", CUT)


def cut(matrix: Tensor) -> Tensor:
    return matrix.diagonal() if len(matrix) > CUT else matrix


@pytest.mark.parametrize("order", [CUT, CUT + 1])
@pytest.mark.parametrize("positions", [1, 3])
def test_moments_of_large_factors_are_their_diagonals(order: int, positions: int, small: None) -> None:
    torch.manual_seed(0)
    tensors = torch.randn(5, 2, 3, order, positions, dtype=torch.float64)
    expected = torch.einsum("rngis,rngjs->gij", tensors, tensors)
    total = MomentSum()
    for T in tensors:
        total.add(T)
    for found in (total.total(), second_moment(tensors.flatten(0, 1))):
        assert found.shape == ((3, order) if order > CUT else (3, order, order))
        assert all(near(f, cut(matrix)) for f, matrix in zip(found, expected, strict=True))


def test_large_moments_are_never_a_matrix_and_wait_for_no_rows() -> None:
    """Of 50,000 rows: the matrix would take 10 GB, and so many rows together too."""
    total = MomentSum()
    for value in (1.0, 2.0):
        total.add(torch.full((1, 1, 50_000, 2), value))
        assert not total._waiting
    assert torch.equal(total.total(), torch.full((1, 50_000), 10.0))


@pytest.mark.parametrize("approx", ["expand", "reduce"])
@pytest.mark.parametrize("name", CASES)
def test_large_factors_of_kfac_are_the_diagonals_of_the_dense_ones(name: str, approx: str, small: None) -> None:
    instance, kinds = instance_of(name), set()
    layers = zip(collect(instance, "type-2"), truth(name).factors().values(), strict=True)
    for columns, groups in layers:
        found = kfac_factors(columns, instance.terms, approx)  # type: ignore[arg-type]
        kinds |= {found.left_is_diagonal, found.right_is_diagonal}
        for left, right, part in zip(found.left, found.right, groups, strict=True):
            B, A = oracles.kfac_factors(part, approx)  # type: ignore[arg-type]
            assert near(left, cut(B)) and near(right, cut(A))
    assert kinds == {False, True}


@pytest.mark.parametrize("rule", ["exact", "factored", "pi"])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("kinds", ["dd", "dv", "vd", "vv"])
def test_damping_rules_of_diagonal_sides(kinds: str, groups: int, rule: DampingRule) -> None:
    """``kinds``: d for a dense side, v for the vector of a diagonal one, left before right."""
    torch.manual_seed(1)
    roots = [scale * torch.randn(groups, n, n, dtype=torch.float64) for n, scale in ((3, 1.0), (4, 5.0))]
    sides = [r @ r.mT if kind == "d" else r[:, 0].square() for r, kind in zip(roots, kinds, strict=True)]
    dense = [side if side.ndim == 3 else side.diag_embed() for side in sides]
    solver, vector = KroneckerDamping(0.3, rule), torch.randn(groups * 12, dtype=torch.float64)
    state = solver.refresh(Factored([Kronecker.batched(*sides)]))
    triples = zip(*dense, vector.split(12), strict=True)
    expected = [oracles.damped_kronecker_solve(b, a, v, 0.3, rule) for b, a, v in triples]
    found = solver.precondition(state, vector)
    assert near(found, torch.cat(expected), 1e-12)
    other = KroneckerDamping(0.3, "factored" if rule == "exact" else "exact")
    assert not near(found, other.precondition(other.refresh(state), vector), 0.01)


@pytest.mark.parametrize("rule", ["factored", "pi"])
def test_a_singular_diagonal_side_needs_damping(rule: DampingRule) -> None:
    factor = Kronecker(torch.eye(2), torch.tensor([0.0, 1.0]), right_is_diagonal=True)
    with pytest.raises(ValueError, match="give a damping above zero"):
        KroneckerDamping(0.0, rule).refresh(Factored([factor]))


def is_diagonal(block: Operator, side: str) -> bool:
    if isinstance(block, RotatedDiagonal):
        return getattr(block, f"{side}_basis") is None
    return bool(getattr(block, f"{side}_is_diagonal"))


FORWARD_ONLY = ("kfac", {"fisher_type": "forward-only"})
TKFAC = ("tkfac", {"damping_rule": "exact"})
PROBES = [("kfac", {}), FORWARD_ONLY, ("ekfac", {}), ("ekfac", {"ema": 0.5}), TKFAC]


@pytest.mark.parametrize(("name", "options"), PROBES, ids=str)
def test_probes_with_large_factors(name: str, options: dict[str, object], small: None) -> None:
    """Two updates, and the damped solve of the represented matrix, which has diagonal sides."""
    instance = instance_of("nasty_cnn")
    probe = cb.probe(name, damping=0.1, **options)
    state = probe.refresh(probe.update(probe.update(probe.init(instance), instance), instance))
    operator, gradient = probe.operator(state), instance.gradient()
    assert isinstance(operator, BlockDiagonal)
    assert all(is_diagonal(block, "right") for block in operator.blocks)
    assert {is_diagonal(block, "left") for block in operator.blocks} == {False, True}
    expected = oracles.natural_gradient(operator.to_dense(), gradient, 0.1)
    assert near(probe.precondition(state, gradient), expected)


def test_scores_in_a_large_basis_are_the_diagonal_there(small: None) -> None:
    """EKFAC's matrix is the nearest in its basis, which is the identity on diagonal sides."""
    instance = instance_of("nasty_cnn")
    operator = cb.fit(cb.probe("ekfac"), instance)
    assert isinstance(operator, BlockDiagonal)
    fisher, start = truth("nasty_cnn").fisher(), 0
    for block in operator.blocks:
        part, start = slice(start, start + block.size), start + block.size
        bases = block.left_basis, block.right_basis  # type: ignore[attr-defined]
        G, M, D = block.entries.shape  # type: ignore[attr-defined]
        eyes = [torch.eye(n, dtype=torch.float64).repeat(G, 1, 1) for n in (M, D)]
        whole = [(eye if basis is None else basis).contiguous() for basis, eye in zip(bases, eyes, strict=True)]
        Q = torch.block_diag(*itertools.starmap(torch.kron, zip(*whole, strict=True)))
        assert near(block.entries.flatten(), (Q.T @ fisher[part, part] @ Q).diagonal())  # type: ignore[attr-defined]


def test_lngd_with_large_factors_is_lngd_of_their_diagonals(small: None) -> None:
    instance, probe = instance_of("nasty_cnn"), cb.probe("lngd", layer_rate="none")
    state = probe.update(None, instance)
    assert all(phi.ndim == 2 for phi in state.phis)
    dense = state._replace(phis=[phi.diag_embed() for phi in state.phis])
    gradient = instance.gradient()
    found, expected = (probe.precondition(probe.refresh(s), gradient) for s in (state, dense))
    assert near(found, expected)
    assert near(probe.operator(state).to_dense(), probe.operator(dense).to_dense())
