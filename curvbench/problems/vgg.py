"""Plain convolutional networks. Source: K. Simonyan, A. Zisserman, ICLR 2015 (arXiv:1409.1556), table 1."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from curvbench import data
from curvbench.spec import Dataset, Problem

# Convolutions per stage: columns A, B, D and E of the table.
STAGES: dict[int, tuple[int, ...]] = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


@dataclass(frozen=True)
class VGG(Problem):
    """VGG for small images: depth 11, 13, 16 or 19 of the paper, with one fully connected layer of its three.

    ``width``: channels of the first stage, doubled up to eightfold; 0 takes the paper's 64. ``batchnorm``: whether
    BatchNorm follows each convolution. ``depth``: layers with weights in the paper's network, which has three fully
    connected layers. ``dataset``: name of the data set of images.

    VGG-11 has 9,231,114 parameters on CIFAR-10 with BatchNorm, and 9,225,610 without. Each stage ends in a maximum over
    2 x 2 pixels, so that 32 x 32 pixels become one, as in the usual form for CIFAR. Smaller images skip the first of
    these maxima, because on a single pixel eight of nine weights of a convolution would read only padding.
    """

    depth: int = 11
    dataset: str = "digits"
    batchnorm: bool = True
    width: int = 0
    mc_samples: int = 0
    samples: int = 128
    epochs: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        data.info(self.dataset)
        if self.depth not in STAGES:
            raise ValueError(f"vgg: depth must be one of {', '.join(map(str, STAGES))}, got {self.depth}")
        if self.width < 0:
            raise ValueError(f"vgg: width must be positive, or 0 for the paper's, got {self.width}")

    def model(self) -> nn.Module:
        """(N, channels, size, size) -> (N, C); convolutions drawn from He's normal distribution, fan out."""
        info, width = data.info(self.dataset), self.width or 64
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        halvings = min(int(math.log2(info.size)), len(STAGES[self.depth]))
        inputs, count = info.channels, 0
        for stage, convolutions in enumerate(STAGES[self.depth]):
            outputs = width * min(2**stage, 8)
            for _ in range(convolutions):
                count += 1
                layers[f"conv{count}"] = _conv3x3(inputs, outputs)
                if self.batchnorm:
                    layers[f"bn{count}"] = nn.BatchNorm2d(outputs)
                layers[f"act{count}"] = nn.ReLU()
                inputs = outputs
            if stage >= len(STAGES[self.depth]) - halvings:
                layers[f"pool{stage + 1}"] = nn.MaxPool2d(2)
        layers["flatten"] = nn.Flatten()
        layers["fc"] = nn.Linear(inputs * (info.size // 2**halvings) ** 2, info.classes)
        return nn.Sequential(layers)

    def data(self, root: Path | None) -> Dataset:
        """The data set, see ``curvbench.data.load``."""
        return data.load(self.dataset, root)


def _conv3x3(inputs: int, outputs: int) -> nn.Conv2d:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    return convolution
