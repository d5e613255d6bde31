"""The accelerated fixed point of maps of positive definite matrices, where it is known."""

from __future__ import annotations

import pytest
import torch
from judging import near
from torch import Tensor

from curvbench.parts.fixed_point import fixed_point
from curvbench.parts.lanczos import NotReached


def spd(*shape: int) -> Tensor:
    root = torch.randn(*shape, shape[-1], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return root @ root.mT + 0.01 * torch.eye(shape[-1], dtype=torch.float64)


def power(matrix: Tensor, exponent: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values[:, None] ** exponent) @ vectors.mT


def geometric_mean(X: Tensor, target: Tensor) -> Tensor:
    """X #_t target: the map X -> this mean has the fixed point ``target``, at the linear rate 1 - t."""
    root, inverse = power(X, 0.5), power(X, -0.5)
    return root @ power(inverse @ target @ inverse, 0.1) @ root


def test_finds_the_fixed_point_of_every_group_in_few_images() -> None:
    """Plain images need 0.9^k <= 1e-10, so 200 and more."""
    target, images = spd(3, 4), []

    def image(X: Tensor) -> Tensor:
        images.append(X)
        return geometric_mean(X, target)

    found = fixed_point(image, torch.eye(4, dtype=torch.float64).expand(3, -1, -1), 60, 1e-10)
    assert near(found, target, 1e-8) and len(images) <= 60


def test_an_ill_conditioned_one_is_found_as_far_as_its_digits_go() -> None:
    scales = torch.tensor([1e-9, 1e-3, 1.0, 1e3], dtype=torch.float64)
    target = scales.sqrt()[:, None] * spd(1, 4) * scales.sqrt()
    found = fixed_point(lambda X: geometric_mean(X, target), torch.eye(4, dtype=torch.float64)[None], 200, 1e-12)
    whitened = power(target, -0.5) @ found @ power(target, -0.5)
    assert near(whitened, torch.eye(4, dtype=torch.float64)[None], 1e-2)


def test_a_constant_map_takes_two_images() -> None:
    target = spd(2, 3)
    assert near(fixed_point(lambda X: target, torch.eye(3).double().expand(2, -1, -1), 2, 1e-12), target, 1e-12)


def test_too_few_rounds_are_an_error() -> None:
    with pytest.raises(NotReached, match="3 rounds"):
        fixed_point(lambda X: geometric_mean(X, spd(1, 4)), torch.eye(4).double()[None], 3, 1e-10)


def test_what_has_no_fixed_point_is_an_error() -> None:
    with pytest.raises(NotReached):
        fixed_point(lambda X: 2 * X, torch.eye(2).double()[None], 20, 1e-6)
