"""Random crops and mirror images on the images' own device; torch's CPU generator draws them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from curvbench.spec.training import Augmentation

_SHARE = 8  # the largest offset is an eighth of the size: 4 of CIFAR's 32 pixels, 1 of the digits' 8


def augmented(images: Tensor, kind: Augmentation) -> Tensor:
    """Images (N, channels, H, W), each moved by its own offset up to an eighth of its size.

    ``crop-flip`` also mirrors each image with probability 1/2. Pixels from outside the image are zero. ``none`` accepts
    inputs of any shape.

    Raises:
        ValueError: the inputs are no images.
    """
    if kind == "none":
        return images
    if images.ndim != 4:
        raise ValueError(f"augment={kind} needs images (N, channels, H, W), got inputs {tuple(images.shape)}")
    moved = _moved(images, max(images.shape[-2:]) // _SHARE)
    if kind == "crop":
        return moved
    mirrored = torch.rand(len(images)) < 0.5
    return torch.where(mirrored.to(images.device)[:, None, None, None], moved.flip(-1), moved)


def _moved(images: Tensor, most: int) -> Tensor:
    N, C, H, W = images.shape
    offsets = torch.randint(2 * most + 1, (2, N)).to(images.device)
    down = offsets[0][:, None] + torch.arange(H, device=images.device)
    right = offsets[1][:, None] + torch.arange(W, device=images.device)
    padded = F.pad(images, (most, most, most, most))
    samples = torch.arange(N, device=images.device)[:, None, None, None]
    channels = torch.arange(C, device=images.device)[:, None, None]
    return padded[samples, channels, down[:, None, :, None], right[:, None, None, :]]
