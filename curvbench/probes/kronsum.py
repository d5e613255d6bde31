"""Kronecker sum: the sum of K Kronecker products nearest to every block in Frobenius norm (Van Loan, Pitsianis 1993).

Its products are the leading singular pairs of the map A -> E[W A W^T] of score matrices W. The map takes symmetric
matrices to symmetric ones and skew ones to skew ones, so that each pair is of one kind: one Lanczos iteration from a
symmetric start and one from a skew start find them, and the larger singular values are taken. A layer without weight
sharing has no skew pair, because its W are of rank one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from curvbench.fisher import collect
from curvbench.fisher.columns import Columns
from curvbench.fisher.formed import for_repeated_contractions
from curvbench.instance import Instance
from curvbench.operators import BlockDiagonal, KroneckerSum
from curvbench.parts.factors import factor_entries
from curvbench.parts.lanczos import Map, NotReached, Search
from curvbench.parts.others import LARGEST_BLOCK, Other, other_block
from curvbench.parts.ranges import at_least_one, fraction
from curvbench.parts.storage import too_large
from curvbench.spec import About, FisherProbe


class State(NamedTuple):
    """Per layer the sum of products, or a vector's block, and after ``refresh`` the damping that its step takes."""

    blocks: list[KroneckerSum | Other]
    dampings: Sequence[float] = ()


@dataclass(frozen=True)
class Kronsum(FisherProbe):
    """The best sum of Kronecker products per layer: no sum of as many products is nearer to the exact block.

    ``rank``: the number K of products. ``iterations``: the largest number of rounds for one pair, each one product with
    the map and one with its adjoint. ``tolerance``: the residual of a pair, relative to the square of its singular
    value (Frobenius), at which the rounds stop.
    """

    rank: int = 2
    iterations: int = 200
    tolerance: float = 1e-6

    is_layerwise = True
    role = "bound"
    about = About(
        represents="the sum of rank products B (x) A nearest to each block of F (Frobenius); a vector's exact block",
        notes=(
            "The bound of every sum of rank products, as B (x) I + I (x) A for two. With one product it is `kpsvd`; "
            "with more the matrix may be indefinite, and its trace is not exact.",
            "A vector, as a norm's scale and shift, has its exact block; with more than "
            f"{LARGEST_BLOCK} entries it has its exact diagonal.",
        ),
        damping="(F^ + damping I)^-1 by conjugate gradients; of an indefinite block the damping is at least twice the "
        "size of its most negative eigenvalue",
        source="Van Loan and Pitsianis 1993: the leading singular pairs of the rearranged block, skew ones included",
        family="Kronecker bounds",
        color="orange",
        formulas=(
            r"\hat F_\ell = \sum_{k=1}^{K} B_k \otimes A_k",
            r"(B_k, A_k)_{k \le K} = \mathrm{arg}\,\min \left\|F_\ell - \sum_{k=1}^{K} B_k \otimes A_k\right\|_F",
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "rank", "iterations")
        fraction(self, "tolerance")

    def unsupported(self, instance: Instance) -> str | None:
        return too_large("factors of all candidates", 2 * self.rank * factor_entries(instance), instance.dtype)

    def update(self, state: State | None, batch: Instance) -> State:
        columns = collect(batch, self.fisher_type, self.mc_samples, self.seed)
        return State([self._block(c, batch.terms) for c in columns])

    def _block(self, columns: Columns, terms: int) -> KroneckerSum | Other:
        if columns.layer.kind == "vector":
            return other_block(columns.layer, columns.slopes, terms, "block")
        try:
            return self._nearest(columns, terms)
        except NotReached as error:
            name = columns.layer.name
            raise ValueError(f"kronsum of layer {name!r}: {error}: raise iterations or tolerance") from None

    def _nearest(self, columns: Columns, terms: int) -> KroneckerSum:
        """The pairs of both kinds with the largest singular values, group by group."""
        G, M, D = columns.layer.shape
        has_skew = min(M, D) > 1 and (columns.slopes.shape[-1] > 1 or bool(columns.layer.roles))
        columns = for_repeated_contractions(columns)
        maps: tuple[Map, Map] = columns.contract_outputs, columns.contract_inputs
        if M <= D:
            start = columns.contract_inputs(columns.slopes.new_ones(G, D))
        else:  # because the basis of the iteration has a factor per round, and smaller factors cost less
            maps, start = (maps[1], maps[0]), columns.contract_outputs()
        search = Search(*maps, self.iterations, self.tolerance)
        vectors, images = search.symmetric(start, self.rank)
        if has_skew:
            others = search.skew(torch.linalg.matrix_norm(images), start)
            vectors, images = torch.cat([vectors, others[0]]), torch.cat([images, others[1]])
        order = torch.linalg.matrix_norm(images).topk(self.rank, dim=0).indices
        groups = torch.arange(G, device=order.device)
        small, large = vectors[order, groups], images[order, groups] / terms
        return KroneckerSum(small, large) if M <= D else KroneckerSum(large, small)

    def refresh(self, state: State) -> State:
        return state._replace(dampings=[self._damping(block) for block in state.blocks])

    def _damping(self, block: KroneckerSum | Other) -> float:
        """The damping of a block, which is larger than the probe's if its smallest eigenvalue asks for that."""
        if not self.damping or self.rank == 1 or not isinstance(block, KroneckerSum):
            return self.damping
        return max(self.damping, -2 * block.smallest_eigenvalue())

    def precondition(self, state: State, gradient: Tensor) -> Tensor:
        return self.damped(state).solve(gradient, 0.0)

    def operator(self, state: State) -> BlockDiagonal:
        return BlockDiagonal(state.blocks)

    def damped(self, state: State) -> BlockDiagonal:
        pairs = zip(state.blocks, state.dampings, strict=True)
        return BlockDiagonal([block.damped(damping) for block, damping in pairs])
