"""Conditioning and asymmetry of operators with known spectra."""

from __future__ import annotations

import pytest
import torch

from curvbench.meters import health
from curvbench.operators import Dense, Diagonal, Identity
from curvbench.spec import Status


def test_condition_is_that_of_the_damped_operator() -> None:
    operator = Diagonal(torch.tensor([4.0, 1.0, 0.0], dtype=torch.float64))
    assert health.condition(operator, 0.5) == pytest.approx(4.5 / 0.5, rel=1e-14)
    assert health.condition(operator, 0.0) == float("inf")
    assert health.condition(Identity(5), 0.1) == pytest.approx(1.0, rel=1e-14)


def test_asymmetry_sees_an_asymmetric_matrix() -> None:
    matrix = torch.eye(20, dtype=torch.float64)
    assert health.asymmetry(Dense(matrix)) <= 1e-15
    matrix[0, 1] = 5.0
    assert health.asymmetry(Dense(matrix)) > 1e-3


def test_zero_operator_is_symmetric() -> None:
    assert health.asymmetry(Diagonal(torch.zeros(4))) == 0.0


def test_rows() -> None:
    rows = {row.metric: row for row in health.health_rows(Identity(3), 1e-3, retries=2)}
    assert rows["health.retries"].value == 2.0
    assert rows["health.condition"].method == "damping 0.001"
    assert set(rows) == {"health.condition", "health.retries", "health.asymmetry"}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_operator_that_is_not_finite_is_an_error_that_says_so(value: float) -> None:
    for operator in (Diagonal(torch.tensor([1.0, value])), Dense(torch.full((3, 3), value))):
        rows = {row.metric: row for row in health.health_rows(operator, 1e-3, retries=1)}
        assert set(rows) == {"health.retries", "health.condition"}
        assert rows["health.condition"].status is Status.ERROR
        assert rows["health.condition"].reason.startswith("the trace of the operator is ")


@pytest.mark.parametrize("entries", [[4.0, 0.0], [4.0, -1.0]])
def test_what_is_singular_or_indefinite_has_no_condition_number(entries: list[float]) -> None:
    rows = {row.metric: row for row in health.health_rows(Diagonal(torch.tensor(entries)), 0.0, retries=0)}
    row = rows["health.condition"]
    assert (row.status, row.value) == (Status.SKIPPED, None)
    assert "not positive definite" in row.reason
    assert rows["health.asymmetry"].status is Status.OK
