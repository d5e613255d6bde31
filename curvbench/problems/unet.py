"""Segmentation of images. Source: O. Ronneberger, P. Fischer, T. Brox, "U-Net", MICCAI 2015 (arXiv:1505.04597)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from curvbench import data
from curvbench.spec import Dataset, Problem, Recipe

GROUPS = 2  # of channels in each GroupNorm
BACKGROUND = 0


@dataclass(frozen=True)
class UNet(Problem):
    """U-Net: every pixel brighter than the mean has the class of its image, and every other one is background.

    ``dataset``: name of the data set of images. ``width``: channels of the first level, twice as many in each level
    below. ``depth``: number of halvings of an image.

    Every pixel is a loss term, so that the exact Fisher has as many columns per sample as pixels times the classes of
    the data set. Convolutions are padded and normalised by GroupNorm; the paper's are not.
    """

    recipe: ClassVar[Recipe] = Recipe(learning_rate=0.05, batch=32)

    dataset: str = "digits"
    width: int = 4
    depth: int = 2
    mc_samples: int = 0
    samples: int = 4
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
        return Network(info.channels, info.classes + 1, [self.width * 2**k for k in range(self.depth + 1)])

    def data(self, root: Path | None) -> Dataset:
        """Images (N, channels, size, size) of the data set and a class for each pixel, (N, size^2) int64."""
        images = data.load(self.dataset, root)
        assert isinstance(images.train_inputs, Tensor) and isinstance(images.test_inputs, Tensor)
        train, test = images.train_inputs, images.test_inputs
        return Dataset(train, _segments(train, images.train_targets), test, _segments(test, images.test_targets))


def _segments(images: Tensor, labels: Tensor) -> Tensor:
    """Classes of pixels (N, size^2); pixels are normalised, so that their mean is 0."""
    return torch.where(images.mean(1).flatten(1) > 0, labels[:, None] + 1, BACKGROUND)


class Network(nn.Module):
    """Levels of two convolutions on the way down and on the way up, which sees those on the way down."""

    def __init__(self, channels: int, classes: int, widths: list[int]) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(widths))
        self.first = _convolutions(channels, widths[0])
        self.down = nn.ModuleList(nn.Sequential(nn.MaxPool2d(2), _convolutions(a, b)) for a, b in pairs)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in reversed(pairs))
        self.merge = nn.ModuleList(_convolutions(2 * a, a) for a, _ in reversed(pairs))
        self.head = nn.Conv2d(widths[0], classes, 1)

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
