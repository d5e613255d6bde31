"""The factor of the output curvature, its stability at saturated probabilities, and the gradient's coefficients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from curvbench.instance.likelihood import cotangents, gradient_coefficients, likelihood

CROSS = likelihood("cross_entropy")


def logits(scale: float, seed: int = 0, shape: tuple[int, ...] = (6, 5)) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def curvature(outputs: Tensor) -> Tensor:
    """diag(p) - p p^T from products of pairs: -p_i p_j, and on the diagonal p_i times the sum of the others."""
    p = torch.softmax(outputs, -1)
    outer = -p[..., :, None] * p[..., None, :]
    off = outer - torch.diag_embed(outer.diagonal(dim1=-2, dim2=-1))
    return off + torch.diag_embed(-off.sum(-1))


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0, 300.0])
def test_factor_squares_to_the_curvature(scale: float) -> None:
    outputs = logits(scale)
    columns = CROSS.factor(outputs)
    assert columns.shape == (4, 6, 5)
    curvatures, expected = torch.einsum("rni,rnj->nij", columns, columns), curvature(outputs)
    for f, e in zip(curvatures, expected, strict=True):
        assert float((f - e).norm()) <= 1e-13 * float(e.norm())


def test_factor_is_finite_where_probabilities_underflow() -> None:
    outputs = torch.tensor([[0.0, -2000.0, -1000.0, -1500.0], [-1000.0, 0.0, -2000.0, -2000.0]])
    for tensor in (outputs, outputs.double()):
        assert torch.isfinite(CROSS.factor(tensor)).all()
        for target in range(4):
            assert torch.isfinite(CROSS.coefficients(tensor, torch.full((2,), target))).all()


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("target", range(5))
def test_coefficients_give_the_residual(scale: float, target: int) -> None:
    outputs, targets = logits(scale), torch.full((6,), target)
    combined = (CROSS.coefficients(outputs, targets)[..., None] * CROSS.factor(outputs)).sum(0)
    residual = torch.softmax(outputs, -1) - torch.eye(5, dtype=torch.float64)[target]
    assert float((combined - residual).abs().max()) <= 1e-14
    assert float((CROSS.residual(outputs, targets) - residual).abs().max()) <= 1e-15


def test_residual_of_a_saturated_target_keeps_its_digits() -> None:
    """p_y - 1 = -exp(-40): the subtraction from 1 would give 0."""
    score = CROSS.residual(torch.tensor([[40.0, 0.0]], dtype=torch.float64), torch.tensor([0]))
    assert score[0, 0].item() == pytest.approx(-torch.exp(torch.tensor(-40.0, dtype=torch.float64)).item(), rel=1e-12)


def test_gradient_coefficients_of_sequences_leave_ignored_tokens_out() -> None:
    outputs = logits(1.0, shape=(2, 3, 4))
    targets = torch.tensor([[0, 1, -100], [3, -100, -100]])
    a = gradient_coefficients(CROSS, outputs, targets)
    columns = torch.stack(list(cotangents(CROSS, outputs, targets, "type-2")))
    assert a.shape == (9, 2)
    expected = CROSS.residual(outputs, targets) * (targets != -100)[..., None] / 3
    assert torch.allclose((a[..., None, None] * columns).sum(0), expected, atol=1e-14)


def test_sampled_scores_have_mean_zero_and_the_curvature_as_covariance() -> None:
    """Within five standard errors; the same seed draws the same."""
    outputs, targets, draws = logits(1.0, shape=(1, 3)), torch.zeros(1, dtype=torch.int64), 20_000
    scores = torch.stack(list(cotangents(CROSS, outputs, targets, "mc", draws, seed=3)))[:, 0] * draws**0.5
    assert float(scores.mean(0).abs().max()) <= 5 * draws**-0.5
    assert float((scores.T @ scores / draws - curvature(outputs)[0]).abs().max()) <= 5 * draws**-0.5
    again = torch.stack(list(cotangents(CROSS, outputs, targets, "mc", draws, seed=3)))[:, 0] * draws**0.5
    assert torch.equal(again, scores)
    other = torch.stack(list(cotangents(CROSS, outputs, targets, "mc", draws, seed=4)))[:, 0] * draws**0.5
    assert not torch.equal(other, scores)


def test_gaussian_loss_is_half_the_squared_distance() -> None:
    gaussian = likelihood("gaussian")
    outputs, targets = logits(1.0, 1), logits(1.0, 2)
    expected = sum(0.5 * float(((f - y) ** 2).sum()) for f, y in zip(outputs, targets, strict=True)) / 6
    assert float(gaussian.loss(outputs, targets)) == pytest.approx(expected, rel=1e-14)
    columns = gaussian.factor(outputs)
    assert torch.equal(torch.einsum("rni,rnj->nij", columns, columns), torch.eye(5).double().expand(6, 5, 5))
