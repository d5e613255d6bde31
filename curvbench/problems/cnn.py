"""A small convolutional network: CW-NGD's experiment. Source: CW-NGD, section IV and figure 4."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import nn

from curvbench import data
from curvbench.spec import Dataset, Problem, Recipe

KERNEL, WINDOW = 3, 2


@dataclass(frozen=True)
class CNN(Problem):
    """Convolution, maximum over 2 x 2 pixels and two dense layers: the order of CW-NGD's network on MNIST.

    The paper gives the sizes of its network in a picture alone; the sizes here are others. The 3 x 3 convolution has no
    padding. ``channels``: channels of the convolution. ``hidden``: units of the first dense layer. ``dataset``: name of
    the data set of images.
    """

    recipe: ClassVar[Recipe] = Recipe(learning_rate=0.05, batch=16)

    dataset: str = "digits"
    channels: int = 8
    hidden: int = 32
    samples: int = 128
    epochs: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        data.info(self.dataset)
        if min(self.channels, self.hidden) < 1:
            came = f"channels={self.channels}, hidden={self.hidden}"
            raise ValueError(f"cnn: channels >= 1 and hidden >= 1 expected, got {came}")

    def model(self) -> nn.Module:
        """(N, channels, size, size) -> (N, C); weights drawn from He's normal distribution, biases 0."""
        info = data.info(self.dataset)
        pixels = ((info.size - KERNEL + 1) // WINDOW) ** 2
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv=nn.Conv2d(info.channels, self.channels, KERNEL),
            act1=nn.ReLU(),
            pool=nn.MaxPool2d(WINDOW),
            flatten=nn.Flatten(),
            fc1=nn.Linear(self.channels * pixels, self.hidden),
            act2=nn.ReLU(),
            fc2=nn.Linear(self.hidden, info.classes),
        )
        for layer in (layers["conv"], layers["fc1"], layers["fc2"]):
            nn.init.kaiming_normal_(layer.get_parameter("weight"), nonlinearity="relu")
            nn.init.zeros_(layer.get_parameter("bias"))
        return nn.Sequential(layers)

    def data(self, root: Path | None) -> Dataset:
        """The data set, see ``curvbench.data.load``."""
        return data.load(self.dataset, root)
