"""The contract of a problem: a model, its data and its loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from curvbench.data.photos import Photos
from curvbench.spec.components import Component
from curvbench.spec.metrics import PER_EPOCH


@dataclass(frozen=True)
class Dataset:
    """A data set: inputs (N, ...), float or tokens, targets (N,) or (N, T) int64 or (N, C) float."""

    train_inputs: Tensor | Photos
    train_targets: Tensor
    test_inputs: Tensor | Photos
    test_targets: Tensor


@dataclass(frozen=True)
class Recipe:
    """How a snapshot is trained before it is measured: plain SGD with momentum, cosine schedule."""

    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch: int = 128


@dataclass(frozen=True)
class AdamRecipe(Recipe):
    """How a snapshot is trained by AdamW; ``momentum`` and ``second`` are the weights of its old moments."""

    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    second: float = 0.999


Trainer = Literal["sgd", "adam"]
"""What trains a snapshot: SGD by a ``Recipe``, or AdamW by an ``AdamRecipe``."""


class Problem(Component, ABC):
    """A model, its data and its loss, with at least two fields.

    ``samples``: the number of samples that are measured, N. ``epochs``: the number of epochs of training before the
    measurement. ``mc_samples``: the number of label draws per sample of the Monte-Carlo Fisher that probes are held
    against; 0 means the exact type-2 Fisher.
    """

    loss: ClassVar[Any] = "cross_entropy"
    """What ``Instance`` takes: a name, a loss module of torch, a ``Likelihood``, or a function of one term."""

    measured: ClassVar[frozenset[str]] = frozenset({"samples", "mc_samples"})
    """Fields that decide no weight of a snapshot, because they only say what is measured."""

    samples: int
    epochs: int
    mc_samples: int = 0
    """A field of problems with many outputs: the exact Fisher has R = C - 1 columns per loss term."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 1:
            raise ValueError(f"{self.name}: samples must be at least 1, got {self.samples}")
        if self.epochs < 0:
            raise ValueError(f"{self.name}: epochs must not be negative, got {self.epochs}")
        if self.mc_samples < 0:
            raise ValueError(f"{self.name}: mc_samples must not be negative, got {self.mc_samples}")

    @property
    def recipe(self) -> Recipe:
        """How a snapshot of ``epochs`` epochs is trained."""
        return Recipe()

    @abstractmethod
    def model(self) -> nn.Module:
        """A fresh model in the default dtype, drawn from torch's global generator (seeded by the caller)."""

    @abstractmethod
    def data(self, root: Path | None) -> Dataset:
        """The data, read from ``root`` where it is not embedded; raises Skip with the command that gets it."""

    @property
    def scores(self) -> tuple[str, ...]:
        """The metrics that ``score`` gives, by their names in METRICS."""
        return ()

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics of a training after each epoch; each of them may have a target."""
        has_classes = self.loss == "cross_entropy" or type(self.loss).__name__ in ("CrossEntropyLoss", "NLLLoss")
        kinds = ("loss", "accuracy") if has_classes else ("loss",)
        return tuple(name for name in PER_EPOCH if name.endswith(kinds) or name in self.scores)

    def score(self, model: nn.Module, dataset: Dataset) -> Mapping[str, float]:
        """Values of ``scores`` on the test part; raises Skip if a library that they need is absent."""
        return {}
