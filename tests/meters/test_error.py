"""The error meter against dense matrices."""

from __future__ import annotations

import math

import oracles
import pytest
import torch
from cases import Case, Truth, fisher_of, instance_of, truth
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import curvbench as cb
from curvbench import operators
from curvbench.meters.error import error_rows
from curvbench.spec import Status

PROBES = ("identity", "diag", "unit", "layer", "full", "kfac")
KEYS = {"relative", "scale_optimal", "cosine", "trace_ratio"}


def dense_errors(approximation: Tensor, exact: Tensor) -> dict[str, float]:
    """All four numbers from two dense matrices, each brought to scale 1 before squares are taken."""
    factor = float(approximation.abs().max()) / float(exact.abs().max())
    a, e = approximation / approximation.abs().max(), exact / exact.abs().max()
    cosine = float((a * e).sum() / (a.norm() * e.norm()))
    best = (a * e).sum() / a.square().sum()
    return {
        "relative": float((factor * a - e).norm() / e.norm()),
        "scale_optimal": float((best * a - e).norm() / e.norm()),
        "cosine": cosine,
        "trace_ratio": factor * float(a.trace() / e.trace()),
    }


@pytest.mark.parametrize("kind", ["type-2", "empirical"])
@pytest.mark.parametrize("name", PROBES)
def test_errors_against_dense_matrices(case: Case, judge: Truth, name: str, kind: str) -> None:
    """Squares of the two small errors are compared: a difference of squares is all a closed form can give."""
    operator = cb.fit(cb.probe(name), instance_of(case.name))
    errors = cb.errors(operator, fisher_of(case.name, kind))
    expected = dense_errors(operator.to_dense(), judge.fisher(kind))
    assert KEYS <= errors.keys()
    assert errors["cosine"] == pytest.approx(expected["cosine"], abs=1e-10)
    assert errors["trace_ratio"] == pytest.approx(expected["trace_ratio"], rel=1e-10)
    size = 1 + expected["relative"] ** 2
    assert abs(errors["relative"] ** 2 - expected["relative"] ** 2) <= 1e-10 * size
    assert abs(errors["scale_optimal"] ** 2 - expected["scale_optimal"] ** 2) <= 1e-10


def test_full_has_no_error(case: Case) -> None:
    errors = cb.errors(cb.fit(cb.probe("full"), instance_of(case.name)), fisher_of(case.name))
    assert errors["relative"] <= 1e-7
    assert errors["scale_optimal"] <= 1e-7
    assert errors["cosine"] == pytest.approx(1, abs=1e-12)
    assert errors["trace_ratio"] == pytest.approx(1, rel=1e-12)


def test_each_layer(case: Case, judge: Truth) -> None:
    operator = cb.fit(cb.probe("kfac"), instance_of(case.name))
    for layer in instance_of(case.name).layers:
        block = operator.block(layer.start, layer.start + layer.size)
        exact = judge.fisher()[layer.slice, layer.slice]
        if float(exact.abs().max()) == 0:
            continue
        errors = cb.errors(block, fisher_of(case.name).layer(layer.name))
        expected = dense_errors(block.to_dense(), exact)
        assert errors["relative"] == pytest.approx(expected["relative"], abs=1e-7)
        assert errors["cosine"] == pytest.approx(expected["cosine"], abs=1e-10)


@pytest.mark.parametrize("name", ["identity", "diag", "kfac"])
def test_shares_of_the_squared_error(case: Case, judge: Truth, name: str) -> None:
    """The share of every layer, against differences of dense blocks; shares of a whole sum to 1."""
    fisher = fisher_of(case.name)
    operator = cb.fit(cb.probe(name), instance_of(case.name))
    difference = operator.to_dense() - judge.fisher("type-2")
    squares = {la.name: float(difference[la.slice, la.slice].square().sum()) for la in fisher.layers}
    shares = {row.scope: row.value for row in error_rows(operator, fisher) if row.metric == "error.share"}
    total, whole = sum(squares.values()), float(judge.fisher("type-2").square().sum())
    if total < 1e-8 * whole:
        assert not shares, "a difference of rounding has no shares"
    else:
        assert shares == pytest.approx({layer: square / total for layer, square in squares.items()}, abs=1e-6)
        assert sum(filter(None, shares.values())) == pytest.approx(1)


def test_what_is_exact_has_no_shares(case: Case) -> None:
    fisher = fisher_of(case.name)
    rows = error_rows(cb.fit(cb.probe("layer"), instance_of(case.name)), fisher)
    assert "error.share" not in {row.metric for row in rows}


def test_layer_probe_has_no_error_in_any_layer(case: Case) -> None:
    operator = cb.fit(cb.probe("layer"), instance_of(case.name))
    for layer in instance_of(case.name).layers:
        block = operator.block(layer.start, layer.start + layer.size)
        errors = cb.errors(block, fisher_of(case.name).layer(layer.name))
        assert errors["relative"] <= 1e-7


@pytest.mark.parametrize("factor", [1e-6, 0.5, 2.0, 1e6])
def test_a_multiple_of_the_fisher(factor: float) -> None:
    fisher, dense = fisher_of("mlp_tanh"), truth("mlp_tanh").fisher()
    errors = cb.errors(operators.Dense(factor * dense), fisher)
    assert errors["relative"] == pytest.approx(abs(factor - 1), rel=1e-9)
    assert errors["scale_optimal"] <= 1e-7
    assert errors["trace_ratio"] == pytest.approx(factor, rel=1e-10)


def test_what_has_nothing_in_common_with_the_fisher() -> None:
    """An operator on the complement of the range: cosine 0 and no scale that helps."""
    dense = truth("one_sample").fisher()
    values, vectors = torch.linalg.eigh(dense)
    outside = vectors[:, values < 1e-10 * values[-1]][:, :3]
    errors = cb.errors(operators.LowRank(outside, torch.ones(3, dtype=torch.float64), 0.0), fisher_of("one_sample"))
    assert errors["cosine"] == pytest.approx(0, abs=1e-12)
    assert errors["scale_optimal"] == pytest.approx(1, abs=1e-12)


def test_another_fisher_type_is_another_truth() -> None:
    operator = cb.fit(cb.probe("full", fisher_type="empirical"), instance_of("mlp_tanh"))
    expected = oracles.relative(truth("mlp_tanh").fisher("empirical"), truth("mlp_tanh").fisher())
    assert expected > 0.1
    assert cb.errors(operator, fisher_of("mlp_tanh"))["relative"] == pytest.approx(expected, rel=1e-10)


def test_an_operator_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError) as caught:
        cb.errors(operators.Identity(5), fisher_of("mlp_tanh"))
    assert "\n" not in str(caught.value)


def test_a_zero_operator_has_no_cosine_but_an_error_of_one() -> None:
    zero = operators.Diagonal(torch.zeros(truth("mlp_tanh").size, dtype=torch.float64))
    errors = cb.errors(zero, fisher_of("mlp_tanh"))
    assert errors["relative"] == pytest.approx(1, rel=1e-12)
    assert errors["trace_ratio"] == 0
    assert errors["cosine"] is None or math.isnan(errors["cosine"]) or errors["cosine"] == 0


def cut(name: str, ends: list[int]) -> operators.BlockDiagonal:
    """The dense Fisher of a case without what lies outside blocks that end there."""
    dense = truth(name).fisher()
    starts = [0, *ends]
    return operators.BlockDiagonal(
        [operators.Dense(dense[a:b, a:b]) for a, b in zip(starts, [*ends, len(dense)], strict=True)]
    )


def same_as_dense(operator: operators.Operator, name: str) -> None:
    expected = dense_errors(operator.to_dense(), truth(name).fisher())
    measured = {row.metric: row.value for row in error_rows(operator, fisher_of(name)) if row.scope == "network"}
    called = cb.errors(operator, fisher_of(name))
    for key in KEYS:
        assert measured[f"error.{key}"] == pytest.approx(called[key], abs=1e-9)
        assert called[key] == pytest.approx(expected[key], abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.sets(st.integers(1, truth("mlp_tanh").size - 1), max_size=5))
def test_rows_are_those_of_the_matrix_wherever_its_blocks_end(ends: set[int]) -> None:
    same_as_dense(cut("mlp_tanh", sorted(ends)), "mlp_tanh")


@pytest.mark.parametrize("name", ["mlp_tanh", "nasty_cnn"])
@pytest.mark.parametrize("width", [1, 2, 3])
def test_rows_of_blocks_that_span_layers(name: str, width: int) -> None:
    """Every ``width`` consecutive layers share a block: what lies between them is no error."""
    ends = [layer.start for layer in instance_of(name).layers][width::width]
    same_as_dense(cut(name, ends), name)
    inside = cut(name, ends)
    same_as_dense(operators.BlockDiagonal([operators.BlockDiagonal(inside.blocks)]), name)


@pytest.mark.parametrize(("value", "word"), [(math.nan, "NaN"), (math.inf, "infinite"), (-math.inf, "infinite")])
@pytest.mark.parametrize("place", [(0, 0), (1, 4)])
def test_an_operator_that_is_not_finite_is_an_error_that_says_so(
    value: float, word: str, place: tuple[int, int]
) -> None:
    """On the diagonal or beside it; never a cosine of zero, which a matrix may have."""
    matrix = truth("mlp_tanh").fisher().clone()
    matrix[place] = matrix[place[::-1]] = value
    for operator in (operators.Dense(matrix), operators.BlockDiagonal([operators.Dense(matrix)])):
        (row,) = error_rows(operator, fisher_of("mlp_tanh"))
        assert (row.metric, row.status, row.value) == ("error.relative", Status.ERROR, None)
        assert "operator" in row.reason and word in row.reason and "\n" not in row.reason
        with pytest.raises(ValueError, match=f"of the operator.* is (NaN|{word})"):
            cb.errors(operator, fisher_of("mlp_tanh"))


def test_a_nan_that_neither_trace_nor_norm_show() -> None:
    """A rotation does not change the norm, so one that is NaN is not seen there."""
    layer = instance_of("mlp_tanh").layers[0]
    basis = torch.full((1, layer.outputs, layer.outputs), math.nan, dtype=torch.float64)
    right = torch.eye(layer.inputs, dtype=torch.float64)[None]
    operator = operators.RotatedDiagonal(basis, right, torch.ones(layer.shape, dtype=torch.float64))
    with pytest.raises(ValueError, match="is NaN"):
        cb.errors(operator, fisher_of("mlp_tanh").layer(layer.name))


def test_numbers_too_large_to_square_are_no_crash() -> None:
    huge = operators.Diagonal(torch.full((truth("mlp_tanh").size,), 1e200, dtype=torch.float64))
    (row,) = error_rows(huge, fisher_of("mlp_tanh"))
    assert row.reason == "the squared norm of the operator is infinite"
