"""Residual networks. Source: K. He, X. Zhang, S. Ren, J. Sun, CVPR 2016 (arXiv:1512.03385)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from curvbench import data
from curvbench.spec import AdamRecipe, Dataset, Problem, Recipe, Trainer

# Blocks per stage. Three stages: section 4.2 of the paper (6n + 2 layers); four: table 1.
# A block has two 3 x 3 convolutions; at depth 50 it is a bottleneck of three convolutions.
STAGES: dict[int, tuple[int, ...]] = {
    8: (1, 1, 1),
    20: (3, 3, 3),
    32: (5, 5, 5),
    44: (7, 7, 7),
    56: (9, 9, 9),
    110: (18, 18, 18),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
}
EXPANSION = 4
SMALL = 64  # pixels along each side: images up to this size have a 3 x 3 stem


@dataclass(frozen=True)
class ResNet(Problem):
    """Residual network: depth 8, 20, 32, 44, 56, 110 (three stages) or 18, 34, 50 (four stages).

    Three stages have ``width`` 16 and shortcuts without parameters. Four stages have ``width`` 64 and 1 x 1
    projections. On CIFAR-10 depth 18 has 11,173,962 parameters. Depth 50 has bottlenecks with the stride in the 3 x 3
    convolution, and 23,520,842 parameters. Small images have a 3 x 3 stem; ImageNet's images have the paper's stem, a
    7 x 7 convolution with stride 2 and a maximum over 3 x 3. State dicts have torchvision's names, and with the paper's
    stem torchvision's shapes.

    ``depth``: layers with weights. ``dataset``: name of the data set of images. ``width``: channels of the first stage;
    0 takes the paper's width.

    ``optimizer``: what trains the network before it is measured, ``sgd`` or ``adam`` (AdamW).

    ``outputs``: width C of the last layer; 0 takes the classes of the data set. With more outputs, labels stay those of
    the data set and the other classes never occur: the Fisher matrix is that of a network with C outputs on real
    images, not of a task with C classes.
    """

    depth: int = 20
    dataset: str = "digits"
    width: int = 0
    outputs: int = 0
    optimizer: Trainer = "sgd"
    mc_samples: int = 0
    samples: int = 128
    epochs: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        classes = data.info(self.dataset).classes
        if self.depth not in STAGES:
            raise ValueError(f"resnet: depth must be one of {', '.join(map(str, STAGES))}, got {self.depth}")
        if self.width < 0:
            raise ValueError(f"resnet: width must be positive, or 0 for the paper's, got {self.width}")
        if self.outputs and self.outputs < classes:
            raise ValueError(f"resnet: outputs must be at least the {classes} classes, or 0, got {self.outputs}")

    @property
    def recipe(self) -> Recipe:
        """The defaults of either optimizer."""
        return AdamRecipe() if self.optimizer == "adam" else Recipe()

    def model(self) -> nn.Module:
        """(N, channels, size, size) -> (N, C); convolutions drawn from He's normal distribution, fan out."""
        info, stages = data.info(self.dataset), STAGES[self.depth]
        published = 64 if len(stages) == 4 else 16
        block = Bottleneck if self.depth == 50 else partial(BasicBlock, projection=len(stages) == 4)
        small = info.size <= SMALL
        return Network(info.channels, self.outputs or info.classes, stages, self.width or published, block, small)

    def data(self, root: Path | None) -> Dataset:
        """The data set, see ``curvbench.data.load``."""
        return data.load(self.dataset, root)


class Network(nn.Module):
    """Stem, stages of blocks (width doubled and size halved from one to the next), mean over pixels, fc."""

    def __init__(
        self,
        channels: int,
        classes: int,
        stages: tuple[int, ...],
        width: int,
        block: Callable[[int, int, int], BasicBlock | Bottleneck],
        small: bool,
    ) -> None:
        super().__init__()
        self.conv1 = _conv(channels, width, 3) if small else _conv(channels, width, 7, 2)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        self.stages = [f"layer{k}" for k in range(1, len(stages) + 1)]
        inputs = width
        for k, (name, blocks) in enumerate(zip(self.stages, stages, strict=True)):
            stage = nn.Sequential()
            for i in range(blocks):
                added = block(inputs, width * 2**k, 2 if k > 0 and i == 0 else 1)
                stage.append(added)
                inputs = added.outputs
            self.add_module(name, stage)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, size, size) -> (N, classes)."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        outputs: Tensor = self.fc(x.mean((2, 3)))
        return outputs


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with BatchNorm and a shortcut around them."""

    def __init__(self, inputs: int, width: int, stride: int, projection: bool) -> None:
        super().__init__()
        self.outputs = width
        self.conv1 = _conv(inputs, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(inputs, width, stride, projection)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions with BatchNorm and a shortcut; the last is four times as wide."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.outputs = EXPANSION * width
        self.conv1 = _conv(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, self.outputs, 1)
        self.bn3 = nn.BatchNorm2d(self.outputs)
        self.downsample = _shortcut(inputs, self.outputs, stride, projection=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class PaddedShortcut(nn.Module):
    """Option A of the paper: every ``stride``-th pixel, with equally many zero channels before and after."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.channels, self.stride = channels, stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C + channels, H / stride, W / stride)."""
        before = self.channels // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.channels - before))


def _shortcut(inputs: int, outputs: int, stride: int, projection: bool) -> nn.Module:
    if inputs == outputs and stride == 1:
        return nn.Identity()
    if not projection:
        return PaddedShortcut(outputs - inputs, stride)
    return nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution
