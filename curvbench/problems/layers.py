"""Tiny classifiers of digits, one per kind of layer, which show the kinds that a probe covers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvbench import data
from curvbench.spec import Dataset, Problem, Recipe

Network = Literal[
    "linear",
    "conv1d",
    "conv1d-stride",
    "conv1d-dilation",
    "conv1d-groups",
    "conv1d-depthwise",
    "conv2d",
    "conv2d-stride",
    "conv2d-dilation",
    "conv2d-groups",
    "conv2d-depthwise",
    "batchnorm",
    "layernorm",
    "embedding",
    "attention",
    "sequence",
]
CLASSES, WIDTH, QUARTERS = 10, 8, 4
GREYS = (-0.5, 0.0, 0.5)  # limits of four grey levels; pixels have mean 0 and standard deviation 1


@dataclass(frozen=True)
class Layers(Problem):
    """A tiny network with one kind of layer, and Linear layers around it.

    ``network``: kind of layer. One-dimensional convolutions take the rows of an image as channels, two-dimensional ones
    the four pixels of each 2 x 2 block. ``embedding`` takes the grey levels of these blocks as 16 tokens. ``attention``
    and ``sequence`` take the four quarters of an image; in ``sequence`` every quarter has a label.
    """

    recipe: ClassVar[Recipe] = Recipe(learning_rate=0.05, batch=16)

    network: Network = "linear"
    samples: int = 8
    epochs: int = 0

    def model(self) -> nn.Module:
        """(N, 1, 8, 8) -> (N, C), for ``sequence`` (N, 4, C)."""
        return NETWORKS[self.network]()

    def data(self, root: Path | None) -> Dataset:
        """The digits; in ``sequence`` every quarter has the label of its image."""
        digits = data.load("digits", root)
        if self.network != "sequence":
            return digits
        train, test = (t[:, None].repeat(1, QUARTERS) for t in (digits.train_targets, digits.test_targets))
        return Dataset(digits.train_inputs, train, digits.test_inputs, test)


class Quarters(nn.Module):
    """(N, 1, 8, 8) to the four quarters of each image as vectors, (N, 4, 16)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(x, QUARTERS).flatten(2).mT


class Greys(nn.Module):
    """(N, 1, 8, 8) to the grey level of each 2 x 2 block, int64 (N, 16)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.bucketize(F.avg_pool2d(x, 2).flatten(1), x.new_tensor(GREYS))


class Attention(nn.Module):
    """Self-attention with two heads over vectors (N, S, 16), and the mean of its outputs, (N, WIDTH)."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(16, WIDTH) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        heads = (layer(x).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        outputs: Tensor = self.out(mixed)
        return outputs.mean(1)


def _dense(*between: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, WIDTH), *between, nn.ReLU(), nn.Linear(WIDTH, CLASSES))


def _conv1d(outputs: int = 4, stride: int = 1, dilation: int = 1, groups: int = 1) -> nn.Module:
    convolution = nn.Conv1d(8, outputs, 3, stride, padding=dilation, dilation=dilation, groups=groups)
    pool = nn.AdaptiveAvgPool1d(2)
    return nn.Sequential(nn.Flatten(1, 2), convolution, nn.ReLU(), pool, nn.Flatten(), nn.Linear(2 * outputs, CLASSES))


def _conv2d(*between: nn.Module, stride: int = 1, dilation: int = 1, groups: int = 1) -> nn.Module:
    convolution = nn.Conv2d(4, 4, 3, stride, padding=dilation, dilation=dilation, groups=groups)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, CLASSES))
    return nn.Sequential(nn.PixelUnshuffle(2), convolution, *between, nn.ReLU(), head)


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "linear": _dense,
    "conv1d": _conv1d,
    "conv1d-stride": lambda: _conv1d(stride=2),
    "conv1d-dilation": lambda: _conv1d(dilation=2),
    "conv1d-groups": lambda: _conv1d(groups=2),
    "conv1d-depthwise": lambda: _conv1d(8, groups=8),
    "conv2d": _conv2d,
    "conv2d-stride": lambda: _conv2d(stride=2),
    "conv2d-dilation": lambda: _conv2d(dilation=2),
    "conv2d-groups": lambda: _conv2d(groups=2),
    "conv2d-depthwise": lambda: _conv2d(groups=4),
    "batchnorm": lambda: _conv2d(nn.BatchNorm2d(4)),
    "layernorm": lambda: _dense(nn.LayerNorm(WIDTH)),
    "embedding": lambda: nn.Sequential(Greys(), nn.Embedding(4, 2), nn.Flatten(), nn.Linear(32, CLASSES)),
    "attention": lambda: nn.Sequential(Quarters(), Attention(), nn.Linear(WIDTH, CLASSES)),
    "sequence": lambda: nn.Sequential(Quarters(), nn.Linear(16, WIDTH), nn.Tanh(), nn.Linear(WIDTH, CLASSES)),
}
