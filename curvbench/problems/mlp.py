"""Fully connected classifiers; the defaults are the 64-20-20-20-20-10 network on digits."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from torch import nn

from curvbench import data
from curvbench.spec import Dataset, Problem, Recipe

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


@dataclass(frozen=True)
class MLP(Problem):
    """Fully connected classifier of flattened images: ``depth`` hidden layers of ``hidden`` units each.

    Weights have PyTorch's initialisation of ``nn.Linear``. Layers are called ``fc1``, ``fc2``, ...

    ``hidden``: units per hidden layer. ``depth``: number of hidden layers. ``dataset``: name of the data set of images.
    ``activation``: function between layers. ``bias``: whether layers have a bias.
    """

    recipe: ClassVar[Recipe] = Recipe(learning_rate=0.05, batch=16)

    hidden: int = 20
    depth: int = 4
    dataset: str = "digits"
    activation: Literal["relu", "tanh"] = "relu"
    bias: bool = True
    samples: int = 128
    epochs: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        data.info(self.dataset)
        if self.hidden < 1 or self.depth < 0:
            raise ValueError(f"mlp: hidden >= 1 and depth >= 0 expected, got hidden={self.hidden}, depth={self.depth}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"mlp: activation must be one of {', '.join(ACTIVATIONS)}, got {self.activation!r}")

    def model(self) -> nn.Module:
        """Flatten, then ``depth`` times Linear and activation, then Linear: (N, channels, size, size) -> (N, C)."""
        info = data.info(self.dataset)
        widths = [math.prod(info.shape), *[self.hidden] * self.depth, info.classes]
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        for k in range(1, len(widths)):
            layers[f"fc{k}"] = nn.Linear(widths[k - 1], widths[k], bias=self.bias)
            layers[f"act{k}"] = ACTIVATIONS[self.activation]()
        layers.popitem()  # the outputs are logits
        return nn.Sequential(layers)

    def data(self, root: Path | None) -> Dataset:
        """The data set, see ``curvbench.data.load``."""
        return data.load(self.dataset, root)
