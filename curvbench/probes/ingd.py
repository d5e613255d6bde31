"""INGD and SINGD: K-FAC without inverses (Lin, Dangel, Eschenhagen et al. 2023, arXiv 2312.05705).

Factors K (D, D) and C (M, M) follow a gradient flow to K K^T = A^-1 and C C^T = B^-1. With K-FAC's factors A_0, B_0

    m_K = ((tr C^T B_0 C / M) K^T A_0 K + damping (tr C^T C / M) K^T K - I) / 2 + factor_momentum m_K
    K <- K - rate K m_K

and likewise C. The flow ends where B (x) A is the KL-optimal product of B_0 (x) A_0 + damping I.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from curvbench.fisher import collect
from curvbench.instance import Instance
from curvbench.operators import BlockDiagonal, Diagonal, Kronecker, sides
from curvbench.parts import latest
from curvbench.parts.inverse_free import Flow, Roots, pull, start
from curvbench.parts.others import Other, other_block
from curvbench.parts.ranges import at_least_one, finite, fraction
from curvbench.parts.roles import kfac_products, nearest_of
from curvbench.spec import About, FisherProbe

Structure = Literal["dense", "diagonal"]


Block = Roots | Diagonal


@dataclass(frozen=True)
class Ingd(FisherProbe):
    """K-FAC's damped inverse as a product of factors that small multiplicative steps improve.

    ``rate``: the length of a step of the factors. ``factor_momentum``: the weight of the old step of the factors.
    ``inputs``: the structure of the factor of the inputs, ``dense`` or ``diagonal``. ``outputs``: the structure of the
    factor of the outputs. ``kfac_like``: whether each factor follows its own K-FAC factor plus damping I alone, without
    momentum. ``normalized``: whether a step of the factors is divided by its largest row sum if that is above 1.
    """

    rate: float = 0.3
    factor_momentum: float = 0.5
    inputs: Structure = "dense"
    outputs: Structure = "dense"
    kfac_like: bool = False
    normalized: bool = True
    updates: int = 32
    batch_size: int | None = None

    is_layerwise: ClassVar[bool] = True
    represents_damped = True
    about = About(
        represents="(C C^T)^-1 (x) (K K^T)^-1 per layer (and group), which estimates K-FAC's B (x) A + damping I",
        damping="inside the flow: the step is C C^T V K K^T; kfac_like adds damping, not its root, to both factors",
        cost={
            "statistics": "G S (N D^2 + N R M^2) + 3 G (D^3 + M^3)",
            "invert": "0",
            "precondition": "2 G M D (M + D)",
            "memory": "2 G (M^2 + D^2)",
        },
        source="Lin, Dangel, Eschenhagen, Neklyudov, Kristiadi, Turner and Makhzani 2023, and its public code",
        notes=(
            "The factors begin at I; in one update an eigenvalue of K K^T grows at most about "
            "e^(rate / (1 - factor_momentum)) times, and without normalized it may diverge where F has eigenvalues "
            "above 1 / rate. A fit makes the statistics of one batch once, and its 32 updates "
            "end within 2 % of the fixed point on small networks.",
            "The public code has rate=0.01 and normalized=false, and divides by the largest entry of a step if it is "
            "told to normalize, which bounds no eigenvalue of a large factor.",
            "The fixed point is the KL-optimal product of the damped K-FAC, not (B (x) A + damping I)^-1; with "
            "kfac_like it is (B + damping I) (x) (A + damping I). B is K-FAC's factor for all positions averaged.",
            "Structures are dense and diagonal; the public code also has block, triangular and Toeplitz factors. It "
            "takes the data's labels, fisher_type=empirical, updates every tenth step, and leaves out norms, "
            "embeddings and other vectors; here a vector has its exact diagonal plus the damping.",
            "A factor of one-hot inputs, and with more than 8,192 rows, is diagonal. A weight that is tied in two "
            "orientations follows the product nearest to K-FAC's sum.",
        ),
        family="Kronecker",
        color="sky",
        formulas=(
            r"\hat F_\ell = (C C^\top)^{-1} \otimes (K K^\top)^{-1}",
            r"K \leftarrow K - \eta K m_K",
            r"C \leftarrow C - \eta C m_C",
            r"m_K \leftarrow \frac{1}{2} (\kappa_C\, K^\top A K + \lambda \gamma_C\, K^\top K - I) + \mu\, m_K",
            r"\kappa_C = \frac{1}{M}\, \mathrm{tr}(C^\top B C)",
            r"\gamma_C = \frac{1}{M}\, \mathrm{tr}(C^\top C)",
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        finite(self, "rate", zero=False)
        fraction(self, "factor_momentum", zero=True)
        at_least_one(self, "updates", "batch_size")

    def fit(self, instance: Instance) -> Any:
        with latest.kept():
            return super().fit(instance)

    def update(self, state: list[Block] | None, batch: Instance) -> list[Block]:
        statistics = latest.of(batch, self._products)
        olds: Sequence[Block | None] = state or [None] * len(statistics)
        return [self._next(old, made) for old, made in zip(olds, statistics, strict=True)]

    def _products(self, batch: Instance) -> list[Kronecker | Other]:
        """K-FAC's product of each layer in the structure of the factors, or a vector's exact diagonal."""
        columns = collect(batch, self.fisher_type, self.mc_samples, self.seed)
        return [
            other_block(c.layer, c.slopes, batch.terms, "diagonal")
            if c.layer.kind == "vector"
            else self._structured(nearest_of(kfac_products(c, batch.terms)))
            for c in columns
        ]

    def _structured(self, product: Kronecker) -> Kronecker:
        left = product.left if self.outputs == "dense" else sides.main_diagonal(product.left)
        right = product.right if self.inputs == "dense" else sides.main_diagonal(product.right)
        return Kronecker.batched(left, right)

    def _next(self, old: Block | None, made: Kronecker | Other) -> Block:
        if isinstance(made, Diagonal):
            return Diagonal(made.entries + self.damping)
        assert isinstance(made, Kronecker) and not isinstance(old, Diagonal), "the kind of a layer stays"
        C, K = old or Roots(start(made.left), start(made.right))
        of_C, of_K = pull(C, made.left), pull(K, made.right)
        if self.kfac_like:
            flow = Flow(self.rate, 0.0, self.normalized)
            return Roots(flow.follow(C, of_C, 1.0, self.damping), flow.follow(K, of_K, 1.0, self.damping))
        flow = Flow(self.rate, self.factor_momentum, self.normalized)
        return Roots(
            flow.follow(C, of_C, of_K.mean, self.damping * of_K.mean_square),
            flow.follow(K, of_K, of_C.mean, self.damping * of_C.mean_square),
        )

    def precondition(self, state: list[Block], gradient: Tensor) -> Tensor:
        pairs = zip(state, gradient.split([block.size for block in state]), strict=True)
        return torch.cat([b.solve(part, 0.0) if isinstance(b, Diagonal) else b.step(part) for b, part in pairs])

    def operator(self, state: list[Block]) -> BlockDiagonal:
        return BlockDiagonal([block if isinstance(block, Diagonal) else block.inverted() for block in state])
