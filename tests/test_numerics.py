"""Factorizations that are repeated in float64 are counted; sums keep their digits."""

from __future__ import annotations

import pytest
import torch

from curvbench import numerics


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
    found = numerics.damped_inverse(matrix, dampings)
    for inverse, m, damping in zip(found, matrix, dampings, strict=True):
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
    found = numerics.cholesky_solve(right, factor)
    assert torch.allclose(found, torch.cholesky_solve(right, factor), rtol=1e-12, atol=1e-13)
    assert (matrix @ found - right).abs().max() <= 1e-11
