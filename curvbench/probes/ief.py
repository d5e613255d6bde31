"""iEF, the improved empirical Fisher (Wu, Yu, Zhang and Woodland 2024): scores of the data labels, each over its |r|.

With the score u of a loss term, its gradient r at the outputs and s = |r|^2, F^ is the mean of u u^T / s: the output
gradients are normalised before they are pulled back. A term's weight is then the curvature along its own residual, not
the residual, so that a term that is fitted well still counts. For one Gaussian output F^ is the Fisher itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.fisher import ExactFisher
from curvbench.fisher.columns import Columns
from curvbench.fisher.exact import coefficients
from curvbench.fisher.stream import with_outputs
from curvbench.fisher.tied import from_pairs, pairs_of
from curvbench.instance import Instance
from curvbench.operators import Operator
from curvbench.parts.ranges import finite
from curvbench.spec import About, Probe


class State(NamedTuple):
    """F^ of the batch, the norms |r| of its terms (R, N), and the Cholesky factor of a Gram matrix (R N, R N)."""

    fisher: ExactFisher
    norms: Tensor
    factor: Tensor | None


@dataclass(frozen=True)
class Ief(Probe):
    """The empirical Fisher with every score divided by the norm of its term's gradient at the outputs.

    ``damping_rule``: the matrix to which the damping is added. ``exact`` is F^; ``gram`` is the Gram matrix of the
    scores as they are, as in the public code, which is another step. ``damping``: the damping.
    """

    damping_rule: Literal["exact", "gram"] = "exact"
    damping: float = 1e-3

    fisher_type = "empirical"
    about = About(
        represents="the mean of u u^T / |r|^2: scores u of the data labels, r the loss's gradient at the outputs",
        damping="exact: (F^ + damping I)^-1 by a Cholesky factor of the Gram matrix; gram: U (U^T U / N + damping I)^-1"
        " s / N for the batch's own gradient, U the scores, s = |r|^2",
        cost={
            "statistics": "[S = 1] (N R)^2 G (M + D)"
            " + [S > 1] G N min(R M D (N R + 2 S), (N + 1) S (S (D + R M) + R^2 M)) / 2",
            "invert": "(N R)^3 / 6",
            "precondition": "4 N S G M (D + R) + 2 (N R)^2",
            "memory": "N S G (D + R M) + 2 (N R)^2",
        },
        source="Wu, Yu, Zhang and Woodland 2024 (arXiv 2406.06420), and its public code; cost as here: columns in "
        "factored form",
        notes=(
            "A multiple of the loss leaves F^ as it is, and changes F by the same multiple: the error at the best "
            "scale is the one to read. A term with r = 0 is dropped.",
            "The public code adds damping I to the Gram matrix of the scores where (F^ + damping I)^-1 g adds damping "
            "diag(s). It also drops one of two samples whose gradients have a cosine above 0.99, and can set the "
            "step's length.",
        ),
        family="solvers",
        color="orange",
        formulas=(
            r"\hat F = \frac{1}{N} \sum_n \frac{u_n u_n^\top}{\|r_n\|^2}",
            r"u_n = J_n^\top r_n",
            r"r_n = \frac{\partial \ell_n}{\partial f_n}",
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        finite(self, "damping", zero=False)

    def update(self, state: State | None, batch: Instance) -> State:
        columns, outputs = with_outputs(batch, "empirical", 1, 0, batch.dtype)
        norms = residual_norms(batch, outputs)
        # Below the smallest normal number a residual is no direction, and its inverse would be infinite.
        scales = torch.where(norms >= torch.finfo(batch.dtype).tiny, 1 / norms, 0.0).to(batch.dtype)
        share = coefficients(batch, "empirical")
        assert share is not None, "data labels"
        scaled = [_scaled(c, scales) for c in columns]
        weights = share * norms.to(batch.dtype)
        fisher = ExactFisher(scaled, batch.terms, weights, extent=batch.extent, by_columns=True)
        fisher.gram()  # cached: the Gram matrix belongs to the statistics
        return State(fisher, norms, None)

    def refresh(self, state: State) -> State:
        if self.damping_rule == "exact":
            return state._replace(factor=state.fisher.factorize(self.damping))
        norms = state.norms.flatten()
        gram = norms[:, None] * (state.fisher.gram() / state.fisher.terms) * norms
        return state._replace(factor=numerics.damped_cholesky(gram, self.damping))

    def precondition(self, state: State, gradient: Tensor) -> Tensor:
        assert state.factor is not None, "refresh comes before precondition"
        if self.damping_rule == "exact":
            return state.fisher.natural_gradient(gradient, self.damping, state.factor)
        return self._public_step(state, gradient, state.factor)

    def _public_step(self, state: State, gradient: Tensor, factor: Tensor) -> Tensor:
        """The public code's step for the part along the batch's gradient; (U U^T / N + damping I)^-1 for the rest."""
        fisher, norms = state.fisher, state.norms
        assert fisher.coefficients is not None, "data labels"
        own = fisher.combine(fisher.coefficients[..., None])[:, 0]
        share = numerics.inner(gradient, own) / max(numerics.inner(own, own), torch.finfo(torch.float64).tiny)
        rest = gradient - share * own
        along = norms * fisher.project(rest[:, None])[..., 0] / self.damping
        right = (share * norms**2 - along).flatten()[:, None] / fisher.terms
        solved = numerics.cholesky_solve(right, factor).reshape(norms.shape)
        return fisher.combine((norms * solved)[..., None])[:, 0] + rest / self.damping

    def operator(self, state: State) -> ExactFisher:
        return state.fisher

    def damped(self, state: State) -> Operator | None:
        """None with ``gram``: the step is no product of a symmetric matrix with the gradient."""
        return super().damped(state) if self.damping_rule == "exact" else None


def residual_norms(batch: Instance, outputs: Tensor) -> Tensor:
    """|r| of every loss term, r the gradient of its loss at the outputs (N, ..., C); (R, N) in float64."""
    residuals = batch.likelihood.residual(numerics.widened(outputs), batch.targets)
    norms = torch.linalg.vector_norm(residuals, dim=-1, dtype=torch.float64) * batch.likelihood.valid(batch.targets)
    return norms[None] if norms.ndim == 1 else norms.T


def _scaled(columns: Columns, scales: Tensor) -> Columns:
    """The columns times ``scales`` (R, N)."""
    pairs = [(inputs, slopes * scales[..., None, None, None]) for inputs, slopes in pairs_of(columns)]
    return from_pairs(columns.layer, pairs)
