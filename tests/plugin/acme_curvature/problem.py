from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import nn

from curvbench import data
from curvbench.spec import Dataset, Problem, Recipe


@dataclass(frozen=True)
class Line(Problem):
    """One linear layer on digits."""

    recipe: ClassVar[Recipe] = Recipe(learning_rate=0.1)
    samples: int = 16
    epochs: int = 0

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def data(self, root: Path | None) -> Dataset:
        return data.load("digits", root)
