"""Eva: one rank-one matrix per layer from mean inputs and mean gradients (Zhang, Shi and Li 2023).

The matrix is (g (x) a) (g (x) a)^T with means a, g over the batch; its damped inverse is a Sherman-Morrison formula.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from curvbench.instance import Instance
from curvbench.instance import layers as geometry
from curvbench.operators import BlockDiagonal, Diagonal, LowRank, Operator
from curvbench.parts.patch_sums import mean_patch
from curvbench.parts.silence import damped, is_product, silent, steps
from curvbench.spec import About, FisherProbe, FisherType, Layer

Positions = Literal["mean", "sum"]


class Vectors(NamedTuple):
    """Mean gradients g (G, M) and mean inputs a (G, D) of one layer."""

    outputs: Tensor
    inputs: Tensor


Entry = Vectors | Diagonal
"""What the state holds of a layer: its means, or zero where the paper is silent."""


@dataclass(frozen=True)
class Eva(FisherProbe):
    """A rank-one matrix per layer (and group) from the means of inputs and output gradients, with data labels.

    ``positions``: how gradients combine over the positions of a shared layer. ``mean`` averages them, as the method's
    code does; ``sum`` adds them, so that the matrix has the scale of the Fisher (inputs are averaged either way).
    """

    fisher_type: FisherType = "empirical"
    positions: Positions = "mean"

    fisher_types: ClassVar[tuple[FisherType, ...]] = ("empirical",)
    supports_ema: ClassVar[bool] = True
    combines_by = "mean"
    is_layerwise = True

    about = About(
        represents="(g (x) a) (g (x) a)^T per layer (and group): means g of output gradients, a of inputs",
        damping="(F^ + damping I)^-1 by Sherman-Morrison; damping must be above zero",
        cost={"statistics": "G S N (M + D)", "invert": "0", "precondition": "2 P", "memory": "G (M + D)"},
        source="Zhang, Shi and Li 2023, and its public code",
        notes=(
            "The public code knows Linear and Conv2d alone. A lookup is the Linear of one-hot inputs here; a norm's "
            "scale and shift, any other vector, and a weight that is tied in two orientations take the plain gradient, "
            "and the represented matrix is zero there.",
        ),
        family="smaller factors",
        color="green",
        formulas=(
            r"\hat F_\ell = (\bar g \otimes \bar a)(\bar g \otimes \bar a)^\top",
            r"\bar g = \frac{1}{N S} \sum_{n,s} g_{ns}",
            r"\bar a = \frac{1}{N S} \sum_{n,s} a_{ns}",
        ),
    )

    def __post_init__(self) -> None:
        if self.fisher_type in get_args(FisherType) and self.fisher_type != "empirical":
            raise ValueError(
                f"eva needs fisher_type=empirical, got {self.fisher_type!r}: with labels of the model the mean "
                "gradient is zero in expectation, and so is the matrix"
            )
        super().__post_init__()

    def update(self, state: list[Entry] | None, batch: Instance) -> list[Entry]:
        tape = batch.tape()
        scores = torch.stack(list(batch.cotangents(tape.outputs, self.fisher_type))).sum(0)
        gradients = tape.pull(scores, layers=[layer.name for layer in batch.layers if is_product(layer)])
        return [
            self._vectors(layer, tape.inputs[layer.name], gradients[layer.name], batch.terms)
            if is_product(layer)
            else silent(layer, tape.outputs)
            for layer in batch.layers
        ]

    def _vectors(self, layer: Layer, inputs: Tensor, gradient: Tensor, terms: int) -> Vectors:
        B_NGMS = geometry.slopes(layer, gradient)
        outputs = B_NGMS.sum((0, 3)) / (terms * (B_NGMS.shape[-1] if self.positions == "mean" else 1))
        if layer.kind == "lookup":
            return Vectors(outputs, mean_patch(layer, inputs).mean(0).to(outputs.dtype))
        patch = geometry.patches(layer, inputs.mean(0, keepdim=True))  # patches are linear in the inputs
        return Vectors(outputs, patch.mean((0, 3)))

    def precondition(self, state: list[Entry], gradient: Tensor) -> Tensor:
        if not self.damping > 0:
            raise ValueError("a rank-one matrix is singular: give a damping above zero")
        return steps(state, list(map(_size, state)), gradient, self._solved)

    def _solved(self, vectors: Vectors, gradient: Tensor) -> Tensor:
        g, a = vectors
        V = gradient.reshape(*g.shape, a.shape[1])
        along = torch.einsum("gm,gmd,gd->g", g, V, a)
        share = along / (g.square().sum(1) * a.square().sum(1) + self.damping)
        return ((V - (share[:, None] * g)[:, :, None] * a[:, None, :]) / self.damping).flatten()

    def operator(self, state: list[Entry]) -> BlockDiagonal:
        return BlockDiagonal([entry if isinstance(entry, Diagonal) else _rank_one(entry) for entry in state])

    def damped(self, state: list[Entry]) -> Operator:
        return damped(self.operator(state), self.damping)


def _size(entry: Entry) -> int:
    return entry.size if isinstance(entry, Diagonal) else entry.outputs.numel() * entry.inputs.shape[1]


def _rank_one(vectors: Vectors) -> LowRank:
    """One column per group, which is zero outside the group's rows."""
    g, a = vectors
    scores = (g[:, :, None] * a[:, None, :]).flatten(1)
    columns = torch.diag_embed(scores.T).transpose(0, 1).reshape(scores.numel(), len(scores))
    return LowRank(columns, torch.ones_like(columns[0]))
