"""The diagonal of the Fisher: entry-wise natural gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from curvbench.instance import Instance
from curvbench.operators import Diagonal
from curvbench.parts.diagonals import exact_diagonal
from curvbench.spec import About, FisherProbe


@dataclass(frozen=True)
class Diag(FisherProbe):
    """The exact diagonal of the Fisher: its projection on diagonal matrices."""

    supports_ema: ClassVar[bool] = True
    combines_by = "mean"
    is_layerwise = True

    about = About(
        represents="diag(F), the mean over the batch of the squares of the score columns",
        damping="(F^ + damping I)^-1, entry by entry",
        cost={"statistics": "N R S G M D", "invert": "0", "precondition": "P", "memory": "P"},
        source="the projection of F on diagonal matrices; 'entry-wise' in Tran Van Sang et al. 2022, Sec. III-D",
        family="exact in part",
        color="red",
        formulas=(r"\hat F = \mathrm{diag}(\mathrm{E}[w \circ w])",),
    )

    def update(self, state: Diagonal | None, batch: Instance) -> Diagonal:
        return Diagonal(exact_diagonal(batch, self.fisher_type, self.mc_samples, self.seed).to(batch.dtype))

    def precondition(self, state: Diagonal, gradient: Tensor) -> Tensor:
        return state.solve(gradient, self.damping)

    def operator(self, state: Diagonal) -> Diagonal:
        return state
