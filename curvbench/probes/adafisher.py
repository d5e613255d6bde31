"""AdaFisher (Gomes, Zhang, Belilovsky, Wolf, Hosseini 2024, arXiv 2405.16397): the diagonal of K-FAC.

The mean squares of inputs and of output gradients are the diagonals of K-FAC's factors, and their product is that of
K-FAC. The method maps the numbers of each factor to [0, 1] before the product, and divides by it without a root.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from curvbench.instance import Instance
from curvbench.operators import BlockDiagonal, Diagonal, Kronecker
from curvbench.parts.others import OtherMoment
from curvbench.parts.patch_sums import patch_squares
from curvbench.parts.roles import of_roles, represented
from curvbench.spec import About, FisherProbe, Layer, StepRule


@dataclass(frozen=True)
class Adafisher(FisherProbe):
    """A product of two diagonals per layer: mean squares of inputs and of output gradients, each mapped to [0, 1].

    ``norm``: what the diagonals are divided by. ``minmax`` maps the smallest number of each to 0 and the largest to 1,
    as in the paper; ``none`` keeps them, which gives the diagonal of K-FAC.
    """

    norm: Literal["minmax", "none"] = "minmax"

    supports_ema: ClassVar[bool] = True
    combines_by = "mean"
    is_layerwise = True
    rule = StepRule(momentum="average")

    about = About(
        represents="diag(B) (x) diag(A) of K-FAC's factors per layer (and group), each diagonal mapped to [0, 1]",
        damping="(F^ + damping I)^-1, entry by entry; F^ has no unit, and its largest entry is 1, unless norm=none",
        cost={"statistics": "G S N (D + R M)", "invert": "0", "precondition": "5 P / 2", "memory": "G (M + D)"},
        source="Gomes, Zhang, Belilovsky, Wolf and Hosseini 2024 (arXiv 2405.16397), and its public code",
        notes=(
            "norm=minmax gives the smallest number of each diagonal exact zeros in the product, with a whole row or "
            "column of them. Only errors at the best scale compare such a matrix with F.",
            "The public code averages normalized diagonals as 0.08 old + 0.008 new, which tends to 0.0087 of each, and "
            "to 7.6e-5 of the product; beside it stands a damping of 1e-3. Up to the length of the step this is "
            "damping=13 here, with which no entry of a step differs by more than 8 % from momentum. It also adds 1e-6 "
            "to the range that divides, which is more than the squares of gradients of a mean loss often are.",
            "The public code takes the data's labels, fisher_type=empirical, and the average of the optimizer as its "
            "momentum. A running average (ema) is one of diagonals before the map here, and after it there.",
            "A vector, as a norm's scale and shift, has its exact diagonal, mapped to [0, 1]. A weight that is tied in "
            "two orientations has the product nearest to the sum of both.",
        ),
        family="smaller factors",
        color="orange",
        formulas=(
            r"\hat F_\ell = \mathrm{diag}(\nu(\beta)) \otimes \mathrm{diag}(\nu(\alpha))",
            r"\nu(x) = \frac{x - \min x}{\max x - \min x}",
            r"\alpha_j = \frac{1}{N} \sum_{n,s} a_{nsj}^2",
            r"\beta_i = \frac{1}{N S} \sum_{n,s,r} g_{nsri}^2",
        ),
    )

    def update(self, state: list[Any] | None, batch: Instance) -> list[Any]:
        tape = batch.tape()
        sums: dict[str, Any] = {
            name: OtherMoment(role, "diagonal") if role.kind == "vector" else Squares()
            for name, role in tape.roles.items()
        }
        for slopes in batch.slopes(tape, self.fisher_type, self.mc_samples, self.seed):
            for name, B_NGMS in slopes.items():
                sums[name].add(B_NGMS)
        made = {name: total.mean(batch.terms) for name, total in sums.items()}
        for name, role in tape.roles.items():
            if role.kind != "vector":
                made[name] = _product(role, made[name], tape.inputs[name])
        return [of_roles(layer, made) for layer in batch.layers]

    def precondition(self, state: list[Any], gradient: Tensor) -> Tensor:
        return self.operator(state).solve(gradient, self.damping)

    def operator(self, state: list[Any]) -> BlockDiagonal:
        blocks = represented(state)
        return BlockDiagonal(blocks if self.norm == "none" else [_normalized(block) for block in blocks])


class Squares:
    """The mean over terms and positions of squared slopes, (G, M), from the slopes of one cotangent after the other."""

    def __init__(self) -> None:
        self._sum, self._positions = torch.zeros((), device="cpu"), 1

    def add(self, B_NGMS: Tensor) -> None:
        """Add the slopes of one more cotangent."""
        self._sum, self._positions = B_NGMS.square().sum((0, 3)) + self._sum.to(B_NGMS), B_NGMS.shape[3]

    def mean(self, terms: int) -> Tensor:
        """The mean for a batch of ``terms`` loss terms."""
        return self._sum / (terms * self._positions)


def _product(role: Layer, outputs: Tensor, inputs: Tensor) -> Kronecker:
    return Kronecker.batched(outputs, (patch_squares(role, inputs) / len(inputs)).to(outputs.dtype))


def _normalized(block: Any) -> Kronecker | Diagonal:
    if isinstance(block, Diagonal):
        return Diagonal(_between_0_and_1(block.entries))
    return Kronecker.batched(_between_0_and_1(block.left), _between_0_and_1(block.right))


def _between_0_and_1(values: Tensor) -> Tensor:
    """The values mapped so that the smallest is 0 and the largest 1; zeros if they are equal up to rounding."""
    above, rounding = values - values.min(), 10 * torch.finfo(values.dtype).eps * values.max()
    return torch.where(above.max() > rounding, above / above.max(), torch.zeros_like(above))
