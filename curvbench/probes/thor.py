"""THOR: K-FAC whose factors are cut to diagonal blocks (Chen et al. 2021).

Each block is damped by sqrt(damping) and inverted on its own. The 128 rows and the square root follow the public code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.instance import Instance
from curvbench.instance import layers as geometry
from curvbench.operators import BlockDiagonal, Kronecker
from curvbench.parts.factors import LARGEST_SIDE, MomentSum, is_cut, second_moment
from curvbench.spec import About, FisherProbe
from curvbench.states.ranks import shared_map


class Split(NamedTuple):
    """The diagonal blocks (G, s, s) of one factor; the last ones may be smaller."""

    blocks: list[Tensor]

    def apply(self, V: Tensor) -> Tensor:
        """The product with V (G, n, K)."""
        parts = V.split([block.shape[-1] for block in self.blocks], dim=1)
        return torch.cat([block @ part for block, part in zip(self.blocks, parts, strict=True)], dim=1)

    def inverse(self, shift: float) -> Split:
        """The inverses of all blocks with shift I added."""
        return Split([numerics.damped_inverse(block, shift) for block in self.blocks])

    def dense(self) -> Tensor:
        """The factor with zeros outside the blocks, (G, n, n)."""
        return torch.stack([torch.block_diag(*group) for group in zip(*self.blocks, strict=True)])

    @property
    def order(self) -> int:
        return sum(block.shape[-1] for block in self.blocks)


class State(NamedTuple):
    """Per layer the output and input factors, and their damped inverses."""

    factors: list[tuple[Split, Split]]
    inverses: list[tuple[Split, Split]]


@dataclass(frozen=True)
class Thor(FisherProbe):
    """K-FAC with factors cut to diagonal blocks.

    ``split``: the number of rows of a block. With one block the matrix is K-FAC's.
    """

    split: int = 128

    supports_ema: ClassVar[bool] = True
    combines_by = "mean"
    is_layerwise = True

    about = About(
        represents="B (x) A per layer with A and B of K-FAC (expand) cut to diagonal blocks of split rows",
        damping="sqrt(damping) I is added to both factors, each block inverted on its own",
        cost={
            "statistics": "G S (N D min(D, split) + N R M min(M, split))",
            "invert": "G (D min(D, split)^2 + M min(M, split)^2) / 2",
            "precondition": "G M D (min(M, split) + min(D, split))",
            "memory": "2 G (D min(D, split) + M min(M, split))",
        },
        source="Chen et al. 2021; block size and damping follow the public code",
        notes=(
            "The paper refreshes a layer where the trace of its damped matrix has changed by more than a share, and "
            "leaves it alone for good below another one; neither threshold is known here. THOR does not do so here: a "
            "training refreshes every layer each refresh_every steps, and its seconds are those of that.",
        ),
        family="smaller factors",
        color="red",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split < 1 or is_cut(self.split):
            raise ValueError(f"split must lie between 1 and {LARGEST_SIDE}, got {self.split}")

    def update(self, state: State | None, batch: Instance) -> State:
        tape = batch.tape()
        patches = (geometry.patches(layer, tape.inputs[layer.name]) for layer in batch.layers)
        inputs = [Split([block / batch.samples for block in self._moments(X_NGDS)]) for X_NGDS in patches]
        sums = {la.name: [MomentSum() for _ in range(0, la.outputs, self.split)] for la in batch.layers}
        for slopes in batch.slopes(tape, self.fisher_type, self.mc_samples, self.seed):
            for name, B_NGMS in slopes.items():
                for moment, part in zip(sums[name], B_NGMS.split(self.split, dim=2), strict=True):
                    moment.add(part)
        terms = [batch.terms * batch.sizes[name].positions for name in sums]
        pairs = zip(sums.values(), terms, strict=True)
        outputs = [Split([moment.total() / count for moment in moments]) for moments, count in pairs]
        return State(list(zip(outputs, inputs, strict=True)), [])

    def _moments(self, T: Tensor) -> list[Tensor]:
        """Diagonal blocks of the second moment of T (N, G, n, S)."""
        return [second_moment(part) for part in T.split(self.split, dim=2)]

    def refresh(self, state: State) -> State:
        return state._replace(inverses=shared_map(self._inverses, state.factors))

    def _inverses(self, pair: tuple[Split, Split]) -> tuple[Split, Split]:
        root = self.damping**0.5
        return pair[0].inverse(root), pair[1].inverse(root)

    def precondition(self, state: State, gradient: Tensor) -> Tensor:
        shapes = [(len(B.blocks[0]), B.order, A.order) for B, A in state.inverses]
        parts = gradient.split([G * M * D for G, M, D in shapes])
        triples = zip(state.inverses, parts, shapes, strict=True)
        solved = [A.apply(B.apply(part.reshape(shape)).mT).mT.flatten() for (B, A), part, shape in triples]
        return torch.cat(solved)

    def operator(self, state: State) -> BlockDiagonal:
        return BlockDiagonal(_products(state))

    def damped(self, state: State) -> BlockDiagonal:
        root = self.damping**0.5
        return BlockDiagonal([product.damped_factors(root, root) for product in _products(state)])


def _products(state: State) -> list[Kronecker]:
    return [Kronecker(B.dense(), A.dense()) for B, A in state.factors]
