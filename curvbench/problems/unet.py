"""Segmentation of images. Source: O. Ronneberger, P. Fischer, T. Brox, "U-Net", MICCAI 2015 (arXiv:1505.04597)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from curvbench import data
from curvbench.data.photos import Photos
from curvbench.spec import Dataset, Problem, Recipe

GROUPS = 2  # of channels in each GroupNorm
CLASSES = 2


@dataclass(frozen=True)
class UNet(Problem):
    """U-Net: which pixels of an image, seen through noise, are brighter than the mean.

    ``dataset``: name of the data set of images. ``width``: channels of the first level, twice as many in each level
    below. ``depth``: number of halvings of an image.

    The noise has standard deviation 1, as the pixels have. Every pixel is a loss term with two classes, so that the
    exact Fisher has a column per pixel. Convolutions are padded and normalised by GroupNorm; the paper's are not.
    """

    recipe: ClassVar[Recipe] = Recipe(learning_rate=0.05, batch=32)

    dataset: str = "digits"
    width: int = 4
    depth: int = 2
    mc_samples: int = 0
    samples: int = 8
    epochs: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        size = data.info(self.dataset).size
        if self.width < 1 or self.width % GROUPS:
            raise ValueError(f"unet: width must be a positive multiple of {GROUPS}, got {self.width}")
        if self.depth < 1 or size % 2**self.depth:
            raise ValueError(f"unet: depth >= 1 with {size} pixels of a side a multiple of 2^depth, got {self.depth}")
        if self.dataset == "imagenet":
            raise ValueError("unet: dataset must be one that is held in memory, got imagenet")

    def model(self) -> nn.Module:
        """(N, channels, size, size) -> logits of the pixels row by row, (N, size^2, C)."""
        info = data.info(self.dataset)
        return Network(info.channels, [self.width * 2**k for k in range(self.depth + 1)])

    def data(self, root: Path | None) -> Dataset:
        """Noisy images (N, channels, size, size) of the data set and a class for each pixel, (N, size^2) int64."""
        images = data.load(self.dataset, root)
        generator = torch.Generator().manual_seed(0)
        return Dataset(*_noisy(images.train_inputs, generator), *_noisy(images.test_inputs, generator))


def _noisy(images: Tensor | Photos, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images with noise, and whether each pixel was brighter than 0, which is the mean of the data set."""
    assert isinstance(images, Tensor)
    return images + torch.randn(images.shape, generator=generator), (images.mean(1).flatten(1) > 0).long()


class Network(nn.Module):
    """Levels of two convolutions on the way down and on the way up, which sees those on the way down."""

    def __init__(self, channels: int, widths: list[int]) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(widths))
        self.first = _convolutions(channels, widths[0])
        self.down = nn.ModuleList(nn.Sequential(nn.MaxPool2d(2), _convolutions(a, b)) for a, b in pairs)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in reversed(pairs))
        self.merge = nn.ModuleList(_convolutions(2 * a, a) for a, _ in reversed(pairs))
        self.head = nn.Conv2d(widths[0], CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, size, size) -> (N, size^2, C)."""
        levels = [self.first(x)]
        for down in self.down:
            levels.append(down(levels[-1]))
        y = levels.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            y = merge(torch.cat([levels.pop(), up(y)], dim=1))
        outputs: Tensor = self.head(y).flatten(2).mT
        return outputs


def _convolutions(inputs: int, outputs: int) -> nn.Module:
    """Two 3 x 3 convolutions with GroupNorm and ReLU, whose shift stands for a bias."""
    layers = [_convolution(inputs, outputs), _convolution(outputs, outputs)]
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.GroupNorm(GROUPS, outputs), nn.ReLU())))


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
