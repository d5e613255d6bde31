"""Factorizations repeated in float64 are counted; sums keep their digits; symmetric products are computed by half."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from waits import waits

from curvbench import numerics
from curvbench.meters.flops import FlopMeter


def almost_singular() -> torch.Tensor:
    """Float32 and just positive definite: the rounding of a float32 factorization exceeds its smallest eigenvalue."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(200, 200, generator=generator, dtype=torch.float64)).Q
    matrix = ((basis * torch.logspace(0, -12, 200, dtype=torch.float64)) @ basis.T).float()
    matrix = (matrix + matrix.T) / 2
    shifts = (k * 2e-9 for k in range(1000))
    shifted = (matrix + shift * torch.eye(200) for shift in shifts)
    return next(m for m in shifted if int(torch.linalg.cholesky_ex(m.double()).info) == 0)


def test_healthy_matrices_are_not_retried() -> None:
    with numerics.count_retries() as retries:
        numerics.cholesky(torch.eye(3))
        numerics.eigh(torch.eye(3))
    assert retries.count == 0


def test_retry_is_counted_and_comes_in_float64() -> None:
    matrix = almost_singular()
    with numerics.count_retries() as retries:
        factor = numerics.cholesky(matrix)
    assert retries.count == 1
    assert factor.dtype == torch.float64
    assert torch.allclose(factor @ factor.T, matrix.double(), atol=1e-12)


def mostly_zero() -> torch.Tensor:
    """A factor of a layer with a thousand dead inputs, of which float32 finds no eigenvalues."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(50, 1200, generator=generator)
    rows[:, torch.randperm(1200, generator=generator)[:1000]] = 0
    return rows.T @ rows / 50


def decomposed(matrix: torch.Tensor) -> tuple[int, float]:
    """Retries, and the largest error of V diag(w) V^T and of V^T V."""
    with numerics.count_retries() as retries:
        values, vectors = numerics.eigh(matrix)
    restored = (vectors * values[..., None, :]) @ vectors.mT
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype)
    return retries.count, max(float((restored - matrix).abs().max()), float((vectors.mT @ vectors - eye).abs().max()))


def fail_in(monkeypatch: pytest.MonkeyPatch, *hopeless: tuple[torch.dtype, str]) -> list[tuple[torch.dtype, str]]:
    """Let LAPACK fail in some precisions and triangles; the calls as they come."""
    calls, eigh = [], torch.linalg.eigh

    def failing(matrix: torch.Tensor, UPLO: str = "L") -> object:
        calls.append((matrix.dtype, UPLO))
        if calls[-1] in hopeless:
            raise torch.linalg.LinAlgError("the algorithm failed to converge")
        return eigh(matrix, UPLO=UPLO)

    monkeypatch.setattr(torch.linalg, "eigh", failing)
    return calls


def asymmetric() -> torch.Tensor:
    """Only the lower triangle counts: the upper one is wrong."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    return (root @ root.T).tril() + torch.full((5, 5), 9.0, dtype=torch.float64).triu(1)


def test_a_factor_of_zeros_is_decomposed_somehow() -> None:
    retries, error = decomposed(mostly_zero())
    assert retries <= 2
    assert error <= 1e-5


def test_eigenvalues_that_divide_and_conquer_misses_come_from_the_other_triangle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    upper = (torch.float64, "U")
    calls = fail_in(monkeypatch, (torch.float32, "U"), upper)
    matrix = asymmetric()
    symmetric = matrix.tril() + matrix.tril(-1).T
    with numerics.count_retries() as retries:
        values, vectors = numerics.eigh(matrix)
    assert calls == [upper, (torch.float64, "L")]
    assert retries.count == 1
    assert torch.allclose((vectors * values) @ vectors.T, symmetric, atol=1e-13)
    with numerics.count_retries() as retries:
        values, vectors = numerics.eigh(matrix.float())
    assert retries.count == 2
    assert values.dtype == vectors.dtype == torch.float32


def test_eigenvalues_that_nothing_finds_are_refused() -> None:
    with pytest.raises(ValueError, match="no eigenvalues of a matrix"):
        numerics.eigh(torch.full((3, 3), float("nan")))


def test_retries_outside_the_block_are_not_counted() -> None:
    with numerics.count_retries() as outer:
        with numerics.count_retries() as inner:
            numerics.cholesky(almost_singular())
        assert inner.count == 1
    assert outer.count == 0


def test_singular_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="damping"):
        numerics.cholesky(torch.zeros(2, 2))


def test_eigenvalues_are_clamped() -> None:
    values, _ = numerics.eigh(torch.diag(torch.tensor([1.0, -1e-8])))
    assert values.tolist() == [0.0, 1.0]
    assert numerics.eigvalsh(torch.diag(torch.tensor([1.0, -1e-8]))).tolist() == [0.0, 1.0]


def test_damped_inverse_of_a_batch_with_its_own_dampings() -> None:
    torch.manual_seed(0)
    root = torch.randn(2, 4, 4, dtype=torch.float64)
    matrix, dampings = root @ root.mT, torch.tensor([0.1, 2.0], dtype=torch.float64)
    inverses = numerics.damped_inverse(matrix, dampings)
    for inverse, m, damping in zip(inverses, matrix, dampings, strict=True):
        assert torch.allclose(inverse, torch.linalg.inv(m + damping * torch.eye(4)), atol=1e-12)


def test_sums_keep_their_digits() -> None:
    """A float32 sum of 2^25 equal terms would stop growing at 2^24."""
    ones = torch.ones(2**25)
    assert numerics.sum_squares(ones) == pytest.approx(2.0**25, rel=1e-14)
    assert numerics.inner(ones, ones) == 2.0**25


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan")])
def test_positive_refuses(bad: float) -> None:
    with pytest.raises(ValueError, match="damping"):
        numerics.positive(torch.tensor([1.0, bad]))


def test_what_only_rounding_keeps_from_singular_is_refused_without_damping() -> None:
    torch.manual_seed(0)
    root = torch.randn(6, 3, dtype=torch.float64)
    matrix = root @ root.T
    shifted = matrix + 1e-15 * torch.eye(6)  # on the scale of the rounding of a product
    with pytest.raises(ValueError, match="damping"):
        numerics.damped_cholesky(shifted, 0.0)
    factor = numerics.damped_cholesky(matrix, 1e-9)
    assert torch.allclose(factor @ factor.T, matrix + 1e-9 * torch.eye(6), atol=1e-14)
    regular = root.T @ root
    assert torch.equal(numerics.damped_cholesky(regular, 0.0), numerics.cholesky(regular))


@pytest.mark.parametrize("shape", [(7,), (3, 7)])
@pytest.mark.parametrize("columns", [1, 4])
def test_cholesky_solve_is_torchs(shape: tuple[int, ...], columns: int) -> None:
    """And solves: the residual is rounding."""
    root, right = torch.randn(*shape, 7).double(), torch.randn(*shape, columns).double()
    matrix = root @ root.mT + torch.eye(7).double()
    factor = torch.linalg.cholesky(matrix)
    solution = numerics.cholesky_solve(right, factor)
    assert torch.allclose(solution, torch.cholesky_solve(right, factor), rtol=1e-12, atol=1e-13)
    assert (matrix @ solution - right).abs().max() <= 1e-11


@pytest.mark.parametrize("order", [3, 1023, 1024, 2051])
def test_half_of_a_large_product_is_computed(order: int) -> None:
    rows = torch.randn(2, order, 3, dtype=torch.float64)
    with FlopMeter() as meter:
        product = numerics.self_product(rows)
    expected = torch.einsum("gis,gjs->gij", rows, rows)
    assert float((product - expected).norm()) <= 1e-13 * float(expected.norm())
    share = meter.total / (2 * 2 * 3 * order**2)
    assert share == 1 if order < 1024 else 0.5 < share <= 0.75 + 1e-3


@pytest.mark.parametrize("order", [1, 2, 3, 7, 30, 144])
@pytest.mark.parametrize("bands", [2, 3, 5])
def test_products_of_bands_serve_twice(order: int, bands: int) -> None:
    """A share of (bands + 1) / (2 bands) at every order that they divide, so that exponents stay what they are."""
    rows = torch.randn(2, order, 4, dtype=torch.float64)
    with FlopMeter() as meter:
        product = numerics.self_product(rows, bands)
    expected = torch.einsum("gis,gjs->gij", rows, rows)
    assert float((product - expected).norm()) <= 1e-13 * float(expected.norm())
    if order % bands == 0:
        assert meter.total == 2 * 2 * 4 * order**2 * (bands + 1) / (2 * bands)


def test_what_is_not_finite_is_named() -> None:
    assert numerics.flaw(torch.ones(3)) == "" == numerics.flaw(torch.ones(3, dtype=torch.int64))
    assert numerics.flaw(torch.tensor([1.0, math.nan, math.inf])) == "NaN in 1 of 3 entries"
    assert numerics.flaw(torch.tensor([[1.0, -math.inf], [math.inf, 0.0]])) == "infinite in 2 of 4 entries"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_factorizations_of_what_is_not_finite_say_so(value: float) -> None:
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[1, 1] = value
    word = "NaN" if math.isnan(value) else "infinite"
    with pytest.raises(ValueError, match=f"{word} in 1 of 9 entries"):
        numerics.eigh(matrix)
    if math.isnan(value):
        with pytest.raises(ValueError, match="NaN in 1 of 9 entries"):
            numerics.damped_cholesky(matrix, 1e-3)


def test_a_zero_a_negative_and_a_nan_are_three_reasons() -> None:
    for entries, words in (([1.0, 0.0], "singular"), ([1.0, -1.0], "indefinite"), ([1.0, math.nan], "NaN in 1 of 2")):
        with pytest.raises(ValueError, match=words):
            numerics.positive(torch.tensor(entries))
    with pytest.raises(ValueError, match="singular"):
        numerics.positive(torch.tensor([1.0, -1e-17], dtype=torch.float64))  # a zero but for rounding


def test_sums_of_squares_beyond_all_numbers_are_infinite() -> None:
    assert numerics.sum_squares(torch.tensor([1e200], dtype=torch.float64)) == math.inf


def test_checks_of_many_matrices_wait_once() -> None:
    with waits() as found:
        numerics.checked_together(lambda: [numerics.eigh(torch.eye(3)) for _ in range(5)])
    assert found.count == 1


def test_where_a_check_fails_all_is_done_anew_and_counted_once() -> None:
    matrices = [torch.eye(3), almost_singular(), torch.eye(3)]
    with numerics.count_retries() as retries:
        factors = numerics.checked_together(lambda: [numerics.cholesky(matrix) for matrix in matrices])
    assert retries.count == 1
    assert [factor.dtype for factor in factors] == [torch.float32, torch.float64, torch.float32]


@pytest.mark.parametrize("act", [numerics.cholesky, numerics.eigh, lambda m: numerics.damped_inverse(m, 0.0)])
def test_checks_together_say_what_each_would_say(act: Callable[[torch.Tensor], object]) -> None:
    bad = torch.full((2, 2), float("nan"))
    with pytest.raises(ValueError, match="NaN") as alone:
        act(bad)
    with pytest.raises(ValueError, match="NaN") as together:
        numerics.checked_together(lambda: numerics.checked_together(lambda: act(bad)))
    assert str(together.value) == str(alone.value)
