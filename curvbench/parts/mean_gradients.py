"""Probes that take exact statistics of score columns, or statistics of mean gradients alone, as optimizers do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from curvbench.fisher.stochastic import Statistic
from curvbench.instance import Instance
from curvbench.parts.factors import own_matrix
from curvbench.parts.ranges import at_least_one
from curvbench.spec import FisherProbe, Layer, Probe

Source = Literal["columns", "gradients"]


def matrices(batch: Instance, vector: Tensor) -> list[Tensor]:
    """The parts of a vector (P,) as the matrices of the blocks, (G, M, D) each; see ``matrix_shape``."""
    return [vector[layer.slice].reshape(matrix_shape(layer, batch)) for layer in batch.layers]


def matrix_shape(layer: Layer, batch: Instance) -> tuple[int, int, int]:
    """The shape (G, M, D) of a block for a method of matrices; a norm or a bias is a column, as it has no matrix."""
    shape = own_matrix(layer, batch)
    return (1, layer.size, 1) if layer.kind == "vector" and shape == layer.shape else shape


@dataclass(frozen=True)
class GradientsProbe(Probe, ABC):
    """A probe that reads mean gradients alone, and whose step does not depend on the number N of loss terms.

    ``statistic``: the labels of the gradients. ``bg_data`` takes the data's labels, ``bg`` draws labels from the model.
    """

    is_mean_over_samples: ClassVar[bool] = False

    @property
    def combines_by(self) -> Literal["gradient"] | None:  # type: ignore[override]
        """The parts of a batch combine in their summed gradient, unless labels are drawn."""
        return "gradient" if self.statistic == "bg_data" else None


@dataclass(frozen=True)
class SourcedProbe(FisherProbe, ABC):
    """A damped probe with statistics of score columns, or of the mean gradients that an optimizer has.

    ``statistic``: the labels of mean gradients. ``bg_data`` takes the data's labels, ``bg`` draws labels from the
    model.
    """

    statistic: Statistic = "bg_data"
    updates: int = 1
    batch_size: int | None = None

    is_layerwise: ClassVar[bool] = True

    @property
    @abstractmethod
    def reads_columns(self) -> bool:
        """Whether the statistics are those of score columns; a field decides it."""

    @property
    def is_mean_over_samples(self) -> bool:  # type: ignore[override]
        """Times N, the statistics of mean gradients grow with the batch."""
        return self.reads_columns

    @property
    def combines_by(self) -> Literal["mean", "gradient"] | None:  # type: ignore[override]
        """Means of columns are averaged. The unit of mean gradients is the size of the whole batch."""
        return "mean" if self.reads_columns else None

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "updates", "batch_size")
