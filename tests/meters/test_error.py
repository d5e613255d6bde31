"""The error meter against dense matrices."""

from __future__ import annotations

import math

import oracles
import pytest
import torch
from cases import Case, Truth, fisher_of, instance_of, truth
from torch import Tensor

import curvbench as cb
from curvbench import operators

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
    found = cb.errors(operator, fisher_of(case.name, kind))
    expected = dense_errors(operator.to_dense(), judge.fisher(kind))
    assert KEYS <= found.keys()
    assert found["cosine"] == pytest.approx(expected["cosine"], abs=1e-10)
    assert found["trace_ratio"] == pytest.approx(expected["trace_ratio"], rel=1e-10)
    size = 1 + expected["relative"] ** 2
    assert abs(found["relative"] ** 2 - expected["relative"] ** 2) <= 1e-10 * size
    assert abs(found["scale_optimal"] ** 2 - expected["scale_optimal"] ** 2) <= 1e-10


def test_full_has_no_error(case: Case) -> None:
    found = cb.errors(cb.fit(cb.probe("full"), instance_of(case.name)), fisher_of(case.name))
    assert found["relative"] <= 1e-7
    assert found["scale_optimal"] <= 1e-7
    assert found["cosine"] == pytest.approx(1, abs=1e-12)
    assert found["trace_ratio"] == pytest.approx(1, rel=1e-12)


def test_each_layer(case: Case, judge: Truth) -> None:
    operator = cb.fit(cb.probe("kfac"), instance_of(case.name))
    for layer in instance_of(case.name).layers:
        block = operator.block(layer.start, layer.start + layer.size)
        exact = judge.fisher()[layer.slice, layer.slice]
        if float(exact.abs().max()) == 0:
            continue
        found = cb.errors(block, fisher_of(case.name).layer(layer.name))
        expected = dense_errors(block.to_dense(), exact)
        assert found["relative"] == pytest.approx(expected["relative"], abs=1e-7)
        assert found["cosine"] == pytest.approx(expected["cosine"], abs=1e-10)


def test_layer_probe_has_no_error_in_any_layer(case: Case) -> None:
    operator = cb.fit(cb.probe("layer"), instance_of(case.name))
    for layer in instance_of(case.name).layers:
        block = operator.block(layer.start, layer.start + layer.size)
        found = cb.errors(block, fisher_of(case.name).layer(layer.name))
        assert found["relative"] <= 1e-7


@pytest.mark.parametrize("factor", [1e-6, 0.5, 2.0, 1e6])
def test_a_multiple_of_the_fisher(factor: float) -> None:
    fisher, dense = fisher_of("mlp_tanh"), truth("mlp_tanh").fisher()
    found = cb.errors(operators.Dense(factor * dense), fisher)
    assert found["relative"] == pytest.approx(abs(factor - 1), rel=1e-9)
    assert found["scale_optimal"] <= 1e-7
    assert found["trace_ratio"] == pytest.approx(factor, rel=1e-10)


def test_what_has_nothing_in_common_with_the_fisher() -> None:
    """An operator on the complement of the range: cosine 0 and no scale that helps."""
    dense = truth("one_sample").fisher()
    values, vectors = torch.linalg.eigh(dense)
    outside = vectors[:, values < 1e-10 * values[-1]][:, :3]
    found = cb.errors(operators.LowRank(outside, torch.ones(3, dtype=torch.float64), 0.0), fisher_of("one_sample"))
    assert found["cosine"] == pytest.approx(0, abs=1e-12)
    assert found["scale_optimal"] == pytest.approx(1, abs=1e-12)


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
    found = cb.errors(zero, fisher_of("mlp_tanh"))
    assert found["relative"] == pytest.approx(1, rel=1e-12)
    assert found["trace_ratio"] == 0
    assert found["cosine"] is None or math.isnan(found["cosine"]) or found["cosine"] == 0
