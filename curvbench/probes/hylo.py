"""HyLo: a layer's empirical Fisher from a few of its samples (Mu, Soori, Dehnavi 2022), drawn or interpolated.

The positions of a layer are reduced, inputs to their mean and gradients to their sum, so that a score is one outer
product u = g (x) a; the groups of a convolution are stacked. ``kis`` draws scores with probability p in proportion to
|u|^2 and weighs them by 1 / (N r p), unbiased for the reduced block. ``kid`` takes r pivots of a QR decomposition of
the kernel K = U^T U and interpolates, U ~ U_S T: U_S T T^T U_S^T / N is the reduced block if every score is kept.
``kid_public`` takes the r largest scores and the symmetric part of T (I + E / damping)^-1 T^T / r, E = K - K[:, S] T.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.fisher import collect
from curvbench.instance import Instance
from curvbench.operators import BlockDiagonal, Diagonal, Operator
from curvbench.parts.interpolation import draw, interpolate, outer_kernel, residual_weighted
from curvbench.parts.kept_scores import Kept, reduced
from curvbench.parts.silence import damped, silent, steps
from curvbench.parts.storage import too_large
from curvbench.spec import About, FisherProbe, FisherType


class State(NamedTuple):
    """Per layer the kept scores, and the Cholesky factor of the damped kernel (r, r).

    A block on which the paper is silent has the zero matrix in place of both.
    """

    layers: list[Kept | Diagonal]
    factors: Sequence[Tensor | Diagonal] = ()


@dataclass(frozen=True)
class Hylo(FisherProbe):
    """A low-rank block per layer from a tenth of its scores, chosen by pivots (``kid``) or drawn (``kis``).

    ``variant``: how scores are chosen. ``kid`` takes pivots, ``kid_public`` takes what the public code makes of pivots,
    and ``kis`` draws them. ``rank``: the share of the scores that is kept; at least one score is. ``weights``: how
    ``kis`` weighs its draws. ``none`` draws without replacement and gives each score 1/r, as the public code does.
    """

    fisher_type: FisherType = "empirical"
    variant: Literal["kid", "kid_public", "kis"] = "kid"
    rank: float = 0.1
    weights: Literal["importance", "none"] = "importance"

    is_layerwise = True
    is_mean_over_samples: ClassVar[bool] = False  # more samples, more kept scores: rank is a share

    about = About(
        represents="per layer U_S T T^T U_S^T / N from K = max(1, floor(rank N R)) scores g (x) a, positions reduced",
        damping="(F^ + damping I)^-1 by Woodbury on the kernel of the kept scores; damping must be above zero",
        cost={
            "statistics": "[variant != kis] ((N R)^2 G (M + D)) + [variant != kis] L N R K (4 N R + 3 K)"
            " + [variant = kis] N R G (M + D) + K^2 G (M + D)",
            "invert": "L K^3 / 6",
            "precondition": "2 K P + 3 L K^2",
            "memory": "K G (M + D) + 3 L K^2",
        },
        where={"K": "max(1, floor(rank N R))"},
        source="Mu, Soori and Dehnavi 2022, known from its public code and usual definitions, not from its text; "
        "cost as here: scores in factored form, G (M + D) numbers each instead of G M D, and a pivoted QR",
        notes=(
            "F is U U^T, but what is kept are columns of U: with fisher_type=type-2 the matrix depends on the root of "
            "the likelihood's Hessian Lambda that makes them (here its C - 1 columns of instance/likelihood.py), as "
            "with mc on the draws. Another root, turned by an orthogonal matrix, gives another choice and another "
            "matrix unless every score is kept. The method's own Fisher is the empirical one, with one score per loss "
            "term.",
            "A lookup is the Linear of one-hot inputs here, and the score of a norm's scale and shift, or of any other "
            "vector, is one gradient with the input 1. A weight that is tied in two orientations has scores that are "
            "no single product: it takes the plain gradient, and the represented matrix is zero there.",
        ),
        family="low rank",
        color="brown",
        formulas=(
            r"\hat F_\ell = \frac{1}{N}\, U_{\mathcal{K}}\, T\, T^\top U_{\mathcal{K}}^\top",
            r"U \approx U_{\mathcal{K}} T",
            r"U = [u_1 \ldots u_{NR}]",
            r"u = \left(\sum_s g_s\right) \otimes \left(\frac{1}{S} \sum_s a_s\right)",
            r"|\mathcal{K}| = \max(1, \lfloor \rho N R \rfloor)",
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.rank <= 1:
            raise ValueError(f"rank must be a share of the scores in (0, 1], got {self.rank}")
        if self.damping == 0:
            raise ValueError("a low-rank matrix is singular: damping must be above zero, got 0")

    def unsupported(self, instance: Instance) -> str | None:
        count = self._count(instance.columns_per_sample(self.fisher_type, self.mc_samples) * instance.samples)
        return too_large("kept scores", count * instance.size, instance.dtype)

    def _count(self, scores: int) -> int:
        """How many of the scores are kept."""
        return max(1, int(self.rank * scores))

    def update(self, state: State | None, batch: Instance) -> State:
        generator = torch.Generator().manual_seed(self.seed)
        columns = collect(batch, self.fisher_type, self.mc_samples, self.seed)
        return State(
            [
                silent(c.layer, c.slopes)
                if c.layer.kind == "tied"
                else self._chosen(*reduced(c), batch.terms, generator)
                for c in columns
            ]
        )

    def _chosen(self, a: Tensor, g: Tensor, terms: int, generator: torch.Generator) -> Kept:
        count = self._count(len(a))
        even = len(a) / (count * terms)  # 1/r for data labels
        if self.variant == "kid":
            chosen, T = interpolate(outer_kernel(a, g), count)
            mixing = numerics.cholesky(T @ T.T) / terms**0.5
        elif self.variant == "kid_public":
            chosen, root = residual_weighted(outer_kernel(a, g), count, self.damping)
            mixing = root * even**0.5
        else:
            lengths = (a.square().sum(2) * g.square().sum(2)).sum(1)
            chosen, p = draw(lengths, count, self.weights == "importance", generator)
            weights = 1 / (count * p * terms) if self.weights == "importance" else torch.full_like(p, even)
            mixing = torch.diag(weights.sqrt())
        return Kept(a[chosen], g[chosen], mixing.to(a.dtype), mixing.T @ outer_kernel(a[chosen], g[chosen]) @ mixing)

    def refresh(self, state: State) -> State:
        return state._replace(factors=[self._factor(kept) for kept in state.layers])

    def _factor(self, kept: Kept | Diagonal) -> Tensor | Diagonal:
        return kept if isinstance(kept, Diagonal) else numerics.damped_cholesky(kept.kernel, self.damping)

    def precondition(self, state: State, gradient: Tensor) -> Tensor:
        pairs = zip(state.layers, state.factors, strict=True)
        entries: list[tuple[Kept, Any] | Diagonal]
        entries = [kept if isinstance(kept, Diagonal) else (kept, factor) for kept, factor in pairs]
        return steps(entries, [kept.size for kept in state.layers], gradient, self._solve)

    def _solve(self, entry: tuple[Kept, Tensor | Diagonal], part: Tensor) -> Tensor:
        kept, factor = entry
        assert isinstance(factor, Tensor), "a kept block has a factor"
        return kept.solve(part, self.damping, factor)

    def operator(self, state: State) -> BlockDiagonal:
        return BlockDiagonal([kept if isinstance(kept, Diagonal) else kept.operator() for kept in state.layers])

    def damped(self, state: State) -> Operator:
        return damped(self.operator(state), self.damping)
