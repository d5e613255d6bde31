"""SKFAC: K-FAC of the current batch whose factors are never formed (Tang et al. 2021).

A factor is U U^T with one column per sample, because inputs and gradients are reduced over the positions of a layer.
Its damped inverse is (I - U (s I + U^T U)^-1 U^T) / s with s = sqrt(damping), by Sherman-Morrison-Woodbury. Only the
paper's abstract is known here. It reduces a convolution by "Spatial Subsampling" or "Reduce Sum"; our reading is that
inputs are averaged and gradients summed, as in K-FAC's ``reduce``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.instance import Instance
from curvbench.operators import BlockDiagonal, Kronecker
from curvbench.parts.patch_sums import mean_patch
from curvbench.spec import About, FisherProbe


class Root(NamedTuple):
    """A factor U U^T: its root U (G, n, K), and the Cholesky factor of the damped Gram matrix of U (G, K, K)."""

    columns: Tensor
    gram_factor: Tensor | None = None

    def factor(self) -> Tensor:
        """U U^T, (G, n, n)."""
        return self.columns @ self.columns.mT

    def factorized(self, shift: float) -> Root:
        """The same root with the Cholesky factor of shift I + U^T U."""
        gram = self.columns.mT @ self.columns
        return self._replace(gram_factor=numerics.damped_cholesky(gram, shift))

    def solve(self, V: Tensor, shift: float) -> Tensor:
        """(U U^T + shift I)^-1 V for V of shape (G, n, K)."""
        assert self.gram_factor is not None, "refresh comes before precondition"
        small = numerics.cholesky_solve((self.columns.mT @ V).to(self.gram_factor.dtype), self.gram_factor)
        return (V - self.columns @ small.to(V.dtype)) / shift


class State(NamedTuple):
    """Per layer the roots of its output and input factors."""

    outputs: list[Root]
    inputs: list[Root]


@dataclass(frozen=True)
class Skfac(FisherProbe):
    """K-FAC with reduced positions and factored damping, inverted through the samples of the batch."""

    is_layerwise = True
    about = About(
        represents="B (x) A per layer as in K-FAC with reduced positions; the step never forms B and A",
        damping="sqrt(damping) I is added to both factors, each inverted by Woodbury; damping must be above zero",
        cost={
            "statistics": "G S (N D + N R M)",
            "invert": "G (N^2 D + (N R)^2 M + (N^3 + (N R)^3) / 6)",
            "precondition": "G (2 (N + N R) M D + N^2 M + (N R)^2 D)",
            "memory": "G (N D + N R M + N^2 + (N R)^2)",
        },
        source="Tang et al. 2021; the reduction of positions is how it is understood here, not read in the paper",
        family="smaller factors",
        color="sky",
    )

    def update(self, state: State | None, batch: Instance) -> State:
        tape = batch.tape()
        gradients: dict[str, list[Tensor]] = {layer.name: [] for layer in batch.layers}
        for slopes in batch.slopes(tape, self.fisher_type, self.mc_samples, self.seed):
            for name, B_NGMS in slopes.items():
                gradients[name].append(B_NGMS.sum(-1))
        outputs = [_root(torch.cat(gradients[layer.name]), batch.terms) for layer in batch.layers]
        means = (mean_patch(layer, tape.inputs[layer.name]) for layer in batch.layers)
        return State(outputs, [_root(mean_NGD, batch.samples) for mean_NGD in means])

    @property
    def _shift(self) -> float:
        if not self.damping > 0:
            raise ValueError("a factor with fewer samples than entries is singular: give a damping above zero")
        return self.damping**0.5

    def refresh(self, state: State) -> State:
        return State(*([root.factorized(self._shift) for root in roots] for roots in state))

    def precondition(self, state: State, gradient: Tensor) -> Tensor:
        shapes = [(len(g.columns), g.columns.shape[1], a.columns.shape[1]) for g, a in zip(*state, strict=True)]
        parts = gradient.split([G * M * D for G, M, D in shapes])
        solved = []
        for g, a, part, shape in zip(*state, parts, shapes, strict=True):
            left = g.solve(part.reshape(shape), self._shift)
            solved.append(a.solve(left.mT, self._shift).mT.flatten())
        return torch.cat(solved)

    def operator(self, state: State) -> BlockDiagonal:
        return BlockDiagonal(_products(state))

    def damped(self, state: State) -> BlockDiagonal:
        return BlockDiagonal([product.damped_factors(self._shift, self._shift) for product in _products(state)])


def _products(state: State) -> list[Kronecker]:
    return [Kronecker(g.factor(), a.factor()) for g, a in zip(*state, strict=True)]


def _root(rows: Tensor, count: int) -> Root:
    """The root of the sum of outer products of rows (rows, G, n), divided by ``count``."""
    return Root(rows.permute(1, 2, 0) / count**0.5)
