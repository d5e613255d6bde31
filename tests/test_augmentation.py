from __future__ import annotations

import pytest
import torch
from torch import Tensor

from curvbench.data.augmentation import augmented


def shifted(image: Tensor, down: int, right: int) -> Tensor:
    """What a window that has moved by so many pixels sees, zeros outside."""
    _, H, W = image.shape
    around = torch.nn.functional.pad(image, (W, W, H, H))
    return around[:, H + down : 2 * H + down, W + right : 2 * W + right]


@pytest.mark.parametrize(("size", "most"), [(8, 1), (16, 2)])
def test_every_image_is_moved_and_mirrored_in_its_own_way(size: int, most: int) -> None:
    images = torch.randn(200, 2, size, size)
    moves = {(d, r): 0 for d in range(-most, most + 1) for r in range(-most, most + 1)}
    mirrored = 0
    for image, found in zip(images, augmented(images, "crop-flip"), strict=True):
        same = {(d, r, m) for d, r in moves for m in (0, 1) if torch.equal(flip(shifted(image, d, r), m), found)}
        ((d, r, m),) = same
        moves[d, r] += 1
        mirrored += m
    assert min(moves.values()) > 0
    assert 70 <= mirrored <= 130, "half of them, within four standard errors"


def flip(image: Tensor, mirrored: int) -> Tensor:
    return image.flip(-1) if mirrored else image


def test_crops_alone_are_not_mirrored() -> None:
    images = torch.randn(50, 1, 8, 8)
    moves = [(d, r) for d in (-1, 0, 1) for r in (-1, 0, 1)]
    for image, found in zip(images, augmented(images, "crop"), strict=True):
        assert any(torch.equal(shifted(image, *move), found) for move in moves)


def test_oblong_images_and_any_inputs_without_augmentation() -> None:
    assert augmented(torch.randn(3, 1, 8, 16), "crop-flip").shape == (3, 1, 8, 16)
    vectors = torch.randn(4, 5)
    assert augmented(vectors, "none") is vectors


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"augment=crop needs images \(N, channels, H, W\), got inputs \(4, 5\)"):
        augmented(torch.randn(4, 5), "crop")


def test_the_generator_decides() -> None:
    images = torch.randn(20, 1, 8, 8)
    first, other, again = (augmented_with(images, seed) for seed in (1, 2, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def augmented_with(images: Tensor, seed: int) -> Tensor:
    torch.manual_seed(seed)
    return augmented(images, "crop-flip")
