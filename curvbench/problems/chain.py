"""A chain of equal layers on random data, for sweeps: every layer grows alike with the width."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from curvbench.spec import Dataset, Problem


@dataclass(frozen=True)
class Chain(Problem):
    """Equal hidden layers with ReLU, then a linear head of four classes.

    ``width``: inputs and outputs of a hidden layer. ``depth``: number of hidden layers. ``layer``: ``linear``, or a
    3 x 3 ``conv2d`` on planes, whose mean the head reads. ``size``: pixels along each side of a plane.

    Inputs are drawn from the normal distribution and labels uniformly, so that a training learns nothing.
    """

    width: int = 32
    depth: int = 2
    layer: Literal["linear", "conv2d"] = "linear"
    size: int = 3
    samples: int = 32
    epochs: int = 0

    CLASSES: ClassVar[int] = 4
    measured: ClassVar[frozenset[str]] = frozenset({"mc_samples"})  # the training part consists of the measured samples

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.width, self.size) < 1 or self.depth < 0:
            came = f"width={self.width}, size={self.size}, depth={self.depth}"
            raise ValueError(f"chain: width >= 1, size >= 1 and depth >= 0 expected, got {came}")

    def model(self) -> nn.Module:
        """(N, width), or (N, width, size, size), -> (N, 4)."""
        hidden = [part for _ in range(self.depth) for part in (self._layer(), nn.ReLU())]
        pooling = [nn.AdaptiveAvgPool2d(1), nn.Flatten()] if self.layer == "conv2d" else []
        return nn.Sequential(*hidden, *pooling, nn.Linear(self.width, self.CLASSES))

    def _layer(self) -> nn.Module:
        if self.layer == "linear":
            return nn.Linear(self.width, self.width)
        return nn.Conv2d(self.width, self.width, 3, padding=1)

    def data(self, root: Path | None) -> Dataset:
        """A training and a test part of ``samples`` samples each."""
        generator = torch.Generator().manual_seed(0)
        planes = (self.size, self.size) if self.layer == "conv2d" else ()

        def inputs() -> Tensor:
            return torch.randn(self.samples, self.width, *planes, generator=generator)

        def labels() -> Tensor:
            return torch.randint(self.CLASSES, (self.samples,), generator=generator)

        return Dataset(inputs(), labels(), inputs(), labels())
