"""EKFAC: K-FAC's eigenbasis with the exact second moments in it (George et al. 2018, Algorithm 1).

The second moments are taken in the basis, so the eigendecompositions belong to the statistics here: updates 0,
``basis_every``, 2 ``basis_every`` and so on make a basis from their own batch, and all other updates keep the basis.
The factors treat every position of a shared layer as a sample (``expand``), because the reduced factors of a shared
layer have a null space in which scores still lie, and the basis of a null space is arbitrary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from curvbench import states
from curvbench.fisher.columns import Columns
from curvbench.fisher.head import HeadScores, LayerScores
from curvbench.fisher.stream import collect_closed
from curvbench.instance import Instance
from curvbench.numerics import checked_together
from curvbench.operators import BlockDiagonal, RotatedDiagonal
from curvbench.parts.eigenbasis import Followed, squared_means, squared_scores
from curvbench.parts.factors import Held
from curvbench.parts.others import NOTE, Others, other_block, rotated
from curvbench.parts.ranges import at_least_one, fraction
from curvbench.parts.roles import kfac_products, nearest_of
from curvbench.spec import About, FisherProbe

Scalings = Literal["exact", "running-average"]


class State(NamedTuple):
    """``layers``: the matrix of each layer. ``taken``: the number of updates so far."""

    layers: list[Followed]
    taken: int


@dataclass(frozen=True)
class Ekfac(FisherProbe):
    """K-FAC's eigenbasis with exact eigenvalues: the nearest matrix that is diagonal in that basis.

    ``scalings``: how the eigenvalues are formed. ``exact`` squares the score of each sample; ``running-average``
    squares the mean gradient of the batch and multiplies it by the number of loss terms, as public code does (one noisy
    draw, no projection). ``basis_every``: the number of updates from one basis to the next; every update makes new
    eigenvalues. ``ema``: the weight of the old factors and of the old matrix, whose diagonal in the present basis is
    averaged with the batch's. ``others``: what a vector has (a norm's scale and shift, positions, and any other
    parameter without a product). ``diagonal`` is its exact diagonal, ``unit`` an exact block per channel (of scale and
    shift), ``block`` its whole exact block.
    """

    scalings: Scalings = "exact"
    basis_every: int = 1
    ema: float = 0.0
    others: Others = "diagonal"

    is_layerwise = True
    about = About(
        represents="Q diag(s) Q^T per layer: Q = Q_B (x) Q_A of K-FAC's factors, s = (1/N) sum (Q_B^T W Q_A)^2",
        damping="(F^ + damping I)^-1 in the eigenbasis: damping is added to s",
        cost={
            "statistics": "G (S N D^2 + S N R M^2 + 9 (D^3 + M^3) / 2) / basis_every"
            " + [ema > 0] G (D^3 + M^3 + M D (M + D)) / basis_every"
            " + [scalings = exact] G (N D^2 min(S, R M) + N R M^2 min(S, D) + N S M D min(S, R))"
            " + [scalings != exact] G (M D (M + D) + N R S M D)",
            "invert": "0",
            "precondition": "2 G M D (M + D)",
            "memory": "G ((1 + [ema > 0]) (M^2 + D^2) + M D)",
        },
        source="George et al. 2018, Algorithm 1",
        notes=(
            NOTE,
            "With basis_every above 1 the step that is measured after one update keeps that update's basis; the "
            "published cost spreads a basis over its updates. In a training bases come every stat_every * "
            "basis_every steps, and refresh_every has no meaning: there is nothing else to factorize.",
        ),
        errata=("E-L13",),
        family="Kronecker",
        color="orange",
        formulas=(
            r"\hat F_\ell = (Q_B \otimes Q_A)\,\mathrm{diag}(s)\,(Q_B \otimes Q_A)^\top",
            r"s = \mathrm{E}[(Q_B^\top W Q_A)^{\circ 2}]",
            r"A = Q_A \Lambda_A Q_A^\top",
            r"B = Q_B \Lambda_B Q_B^\top",
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scalings == "running-average" and self.fisher_type == "type-2":
            raise ValueError(
                "scalings=running-average squares a mean gradient, and type-2 columns have none: "
                "give fisher_type=empirical or fisher_type=mc"
            )
        at_least_one(self, "basis_every")
        fraction(self, "ema", zero=True)

    def update(self, state: State | None, batch: Instance) -> State:
        columns = collect_closed(batch, self.fisher_type, self.mc_samples, self.seed)
        taken = state.taken if state else 0
        olds = state.layers if state else [None] * len(columns)
        is_new = taken % self.basis_every == 0
        pairs = [*zip(columns, olds, strict=True)]
        layers = checked_together(lambda: [self._update(is_new, c, batch.terms, old) for c, old in pairs])
        return State(layers, taken + 1)

    def _update(self, is_new: bool, columns: LayerScores, terms: int, old: Followed | None) -> Followed:
        """The next matrix of a layer; ``is_new``: in a new basis."""
        if columns.layer.kind == "vector" and isinstance(columns, Columns):
            return self._of_vector(columns, terms, old)
        return (self._with_new_basis if is_new else self._with_old_basis)(columns, terms, old)

    def _of_vector(self, columns: Columns, terms: int, old: Followed | None) -> Followed:
        """The exact block of a vector, or its running average, whose eigenbasis is always its own."""
        block = other_block(columns.layer, columns.slopes, terms, self.others)
        if not self.ema:
            return Followed(rotated(block, columns.layer), None)
        block = states.blend(old.factors, block, self.ema) if old else block
        return Followed(rotated(block, columns.layer), block)

    def _with_new_basis(self, columns: LayerScores, terms: int, old: Followed | None) -> Followed:
        """The layer in the basis of this batch's factors, or of their running average."""
        basis, factors = self._basis(columns, terms, old)
        left, right = basis.left_basis, basis.right_basis
        before = old.rotated.entries_in(left, right) if old and self.ema else None
        return Followed(self._scaled(columns, terms, left, right, before), factors)

    def _basis(self, columns: LayerScores, terms: int, old: Followed | None) -> tuple[RotatedDiagonal, Held | None]:
        factors = kfac_products(columns, terms)
        if self.ema and old:
            factors = states.blend(old.factors, factors, self.ema)
        return nearest_of(factors).rotated, factors if self.ema else None

    def _with_old_basis(self, columns: LayerScores, terms: int, old: Followed | None) -> Followed:
        """The layer in the basis of an earlier update."""
        assert old is not None, "the first update makes a basis"
        rotated = old.rotated
        before = rotated.entries if self.ema else None
        return Followed(self._scaled(columns, terms, rotated.left_basis, rotated.right_basis, before), old.factors)

    def _scaled(
        self, columns: LayerScores, terms: int, left: Tensor | None, right: Tensor | None, before: Tensor | None
    ) -> RotatedDiagonal:
        """The batch's eigenvalues in a basis, averaged with the eigenvalues ``before``. None means no average."""
        if self.scalings == "exact" or isinstance(columns, HeadScores):  # which type-2 alone has
            entries = squared_scores(columns, left, right, terms)
        else:
            entries = squared_means(columns, left, right, terms, drawn=self.fisher_type == "mc")
        return RotatedDiagonal(left, right, entries if before is None else states.blend(before, entries, self.ema))

    def precondition(self, state: State, gradient: Tensor) -> Tensor:
        return self.operator(state).solve(gradient, self.damping)

    def operator(self, state: State) -> BlockDiagonal:
        return BlockDiagonal([layer.rotated for layer in state.layers])
