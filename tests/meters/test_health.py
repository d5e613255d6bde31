"""Conditioning and asymmetry of operators with known spectra."""

from __future__ import annotations

import pytest
import torch

import curvbench as cb
from curvbench.cells.measure import Fitted, accuracy_rows
from curvbench.meters import health
from curvbench.operators import Dense, Diagonal, Identity
from curvbench.spec import Row, Status


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


def row_of(probe: cb.Probe, dtype: torch.dtype) -> tuple[Row | None, float]:
    """The residual's row, and the residual by a dense float64 product of the represented matrix."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(6, 7), torch.nn.Tanh(), torch.nn.Linear(7, 4)).to(dtype)
        instance = cb.Instance(model, torch.randn(12, 6).to(dtype), torch.arange(12) % 4)
    fitted = Fitted.of(probe, instance)
    rows = accuracy_rows(fitted, cb.exact_fisher(instance), meters=("health",))
    row = next((row for row in rows if row.metric == "health.residual"), None)
    state, gradient = probe.refresh(fitted.state), instance.gradient()
    matrix = probe.operator(state).to_dense().double()
    step = probe.precondition(state, gradient).double()
    shift = probe.damping or 0.0
    return row, float((matrix @ step + shift * step - gradient.double()).norm() / gradient.double().norm())


SOLVERS = (
    "cwngd",
    "diag",
    "diagpair",
    "eigen",
    "ekfac",
    "eva",
    "full",
    "ginger",
    "hylo",
    "identity",
    "kfac",
    "kpsvd",
    "layer",
    "lbfgs",
)


@pytest.mark.parametrize("name", [*SOLVERS, "mbf", "qng", "unit"])
def test_residual_of_a_solve_is_rounding(name: str) -> None:
    probe = cb.probe(name)
    row, expected = row_of(probe, torch.float64)
    assert row is not None and row.value is not None and row.value <= 1e-11 and expected <= 1e-11
    assert row.method == f"damping {probe.damping or 0.0:g}"
    row, expected = row_of(probe, torch.float32)
    assert row is not None and row.value is not None
    assert row.value == pytest.approx(expected, abs=1e-5) and row.value <= 1e-3


def test_residual_shows_lost_digits() -> None:
    """Below the rounding of the Gram matrix float32 has none left."""
    row, expected = row_of(cb.probe("full", damping=1e-6), torch.float32)
    assert row is not None and row.value is not None
    assert row.value == pytest.approx(expected, rel=0.5) and row.value >= 1e-5


@pytest.mark.parametrize(
    "probe",
    [
        *(cb.probe(name) for name in ("adam", "adamw", "fngd", "lngd", "sgdm", "shampoo", "skfac", "thor", "tkfac")),
        cb.probe("kfac", damping_rule="pi"),
        cb.probe("qng", floor=False),
    ],
    ids=lambda probe: probe.label,
)
def test_a_step_that_is_no_such_solve_has_no_residual(probe: cb.Probe) -> None:
    assert row_of(probe, torch.float64)[0] is None


def test_residual_without_a_gradient_is_skipped() -> None:
    (row,) = health.residual_rows(Identity(3).damped(0.0), torch.zeros(3), torch.zeros(3))
    assert row.status == Status.SKIPPED and "gradient is zero" in row.reason
