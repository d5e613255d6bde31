"""FNGD: natural gradient as a weighted sum of per-sample gradients (Ou, Zhu, Huang, Liu 2024, arXiv 2403.03473v2).

Per layer (F + lambda I)^-1 g = U v with the empirical Fisher F = U U^T / n of n loss terms (the paper's M); Eq. 9 is v
= (n lambda I + U^T U)^-1 1, and c = lambda n v are the normalised coefficients, 1 for plain gradient descent. In the
first epoch they are exact for every batch; their average weighs the samples afterwards (``stage=shared``). The step of
a layer without scores is its gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.fisher import ExactFisher, collect
from curvbench.instance import Instance
from curvbench.operators import BlockDiagonal
from curvbench.parts.ranges import at_least_one, finite
from curvbench.parts.sharing import Key, Shared, sample_names, share, shared_steps
from curvbench.parts.weighted import ScaleMode, damped_blocks, first_steps
from curvbench.spec import About, Probe, Weighs


class State(NamedTuple):
    """The batch's exact blocks and the dampings, per layer; then what the step of a stage needs, per layer too.

    First epoch: ``factors``, Cholesky factors (R N, R N) of the damped Gram matrices; None means no scores. Later:
    ``shared``, the averages of the first epoch; ``weights`` (R, N) of the batch's scores; ``own``, its gradient (P_l,).
    """

    blocks: list[ExactFisher]
    dampings: list[float]
    factors: Sequence[Tensor | None] = ()
    shared: Shared | None = None
    weights: Sequence[Tensor] = ()
    own: Sequence[Tensor] = ()


@dataclass(frozen=True)
class Fngd(Weighs, Probe):
    """Exact empirical layer blocks as weights of samples, which later epochs share (``stage=shared``).

    ``alpha``: the share of the norm of U^T U that is the damping under ``damping_rule=norm``. ``damping_rule``: how
    lambda is chosen. ``norm`` is lambda = alpha |U^T U|_F; ``constant`` is the field of that name. ``constant``: the
    damping under ``damping_rule=constant``. ``gram``: the matrix in that norm. ``raw`` is U^T U, as in Eq. 14; ``mean``
    divides it by n, the loss terms. ``formula``: the solve of Eq. 9. ``printed`` leaves out its 1/n. ``scale_mode``:
    the length of the step. ``normalized`` leaves the factor 1/lambda to the learning rate. ``stage``: the epoch that is
    measured. ``first`` solves for every batch; ``shared`` weighs samples by the averages of the first epoch. ``key``:
    what shares a coefficient; ``layer`` gives all samples one, as a control. ``batches``: the number of batches in the
    first epoch. ``accelerated``: whether the weighted gradient is made without forming each sample's gradient.
    """

    fisher_type = "empirical"
    alpha: float = 0.005
    damping_rule: Literal["norm", "constant"] = "norm"
    constant: float = 0.3
    gram: Literal["mean", "raw"] = "mean"
    formula: Literal["corrected", "printed"] = "corrected"
    scale_mode: ScaleMode = "normalized"
    stage: Literal["first", "shared"] = "first"
    key: Key = "position"
    batches: int = 1
    updates: int = 1
    batch_size: int | None = None
    accelerated: bool = True

    about = About(
        represents="stage=first: every layer's empirical block; shared: the multiple of I of its mean coefficient",
        damping="per layer (F + lambda I)^-1 with lambda = alpha |U^T U|_F / N, times lambda if scale_mode=normalized",
        cost={
            "statistics": "[stage = first] [S = 1] (N R)^2 G (M + D)"
            " + [stage = first] [S > 1] G N min(R M D (N R + 2 S), (N + 1) S (S (D + R M) + R^2 M)) / 2",
            "invert": "[stage = first] L (N R)^3 / 6",
            "precondition": "(1 + [stage = first]) N S G M (D + R) + [stage = first] L (N R)^2",
            "memory": "N S G (D + R M) + [stage = first] 2 L (N R)^2",
        },
        source="Ou, Zhu, Huang, Liu 2024: Eqs. 3, 5, 7 to 9; products Eqs. 10 to 13; damping Eq. 14; Algorithm 1; "
        "cost as here: columns in factored form, where the paper stores N R P numbers and publishes N R P a step",
        errata=("E-F",),
        family="low rank",
        color="orange",
        formulas=(
            r"\hat F_\ell = \frac{1}{N}\, U_\ell U_\ell^\top",
            r"p_\ell = \lambda_\ell (\hat F_\ell + \lambda_\ell I)^{-1} \bar g_\ell = \frac{1}{N}\, U_\ell c_\ell",
            r"c_\ell = \lambda_\ell \left(\lambda_\ell I + \frac{1}{N}\, U_\ell^\top U_\ell\right)^{-1} \mathbf{1}",
            r"\lambda_\ell = \frac{\alpha}{N} \|U_\ell^\top U_\ell\|_F",
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        finite(self, "alpha", "constant", zero=False)
        at_least_one(self, "batches", "updates", "batch_size")

    def unsupported(self, instance: Instance) -> str | None:
        is_known = self.key != "sample" or isinstance(instance.inputs, Tensor)
        return None if is_known else "key=sample knows a sample by its input, which must be a single tensor"

    def update(self, state: State | None, batch: Instance) -> State:
        shared = state.shared if state else None
        terms = batch.terms if self.formula == "corrected" else 1
        of_layers = (ExactFisher((c,), terms, by_columns=True) for c in collect(batch, "empirical"))
        blocks = [b if self.accelerated else replace(b, order="direct") for b in of_layers]
        exact = self.stage == "first" or shared is None or shared.seen < self.batches
        dampings = [self._damping(block, batch.terms) for block in blocks] if exact else []
        if self.stage == "first":
            return State(blocks, dampings)
        names, natural = sample_names(batch, self.key), self.scale_mode == "natural"
        coefficients, shared = share(shared, blocks, dampings, batch, names, natural)
        weights, sizes = [w.to(batch.dtype) / batch.terms for w in coefficients], [block.size for block in blocks]
        return State(blocks, shared.dampings.tolist(), (), shared, weights, batch.gradient().split(sizes))

    @property
    def needs_targets(self) -> bool:
        return self.stage == "shared" and self.accelerated

    def weigh(self, state: State | None, batch: Instance) -> tuple[Tensor, State] | None:
        shared = state.shared if state else None
        if shared is None or shared.seen < self.batches or not self.accelerated:
            return None
        return shared.pass_weights(batch, self.key), State([], [], shared=shared)

    def _damping(self, block: ExactFisher, terms: int) -> float:
        """The damping of a layer; 0 means that the layer has no scores."""
        by_norm = self.alpha * numerics.sum_squares(block.gram()) ** 0.5 / (terms if self.gram == "mean" else 1)
        damping = by_norm if self.damping_rule == "norm" else self.constant
        return 0.0 if by_norm < torch.finfo(block.dtype).tiny else damping

    def refresh(self, state: State) -> State:
        pairs = zip(state.blocks, state.dampings, strict=True) if self.stage == "first" else ()
        return state._replace(factors=[block.factorize(damping) if damping else None for block, damping in pairs])

    def precondition(self, state: State, gradient: Tensor) -> Tensor:
        if not state.blocks:  # ``weigh`` made this state: the backward pass has given the step already
            raise ValueError("call the model as optimizer.forward: fngd weighs the samples in its backward pass")
        parts = gradient.split([block.size for block in state.blocks])
        if state.shared is None:
            return torch.cat(first_steps(state.blocks, state.dampings, state.factors, parts, self.scale_mode))
        means = state.shared.means.tolist()
        return torch.cat(shared_steps(state.blocks, state.weights, means, state.own, parts, self.accelerated))

    def operator(self, state: State) -> BlockDiagonal:
        return BlockDiagonal(state.shared.surrogates(state.blocks) if state.shared else state.blocks)

    def damped(self, state: State) -> BlockDiagonal | None:
        if state.shared:  # the step's part along the batch's own gradient is no product with a symmetric matrix
            return None
        return BlockDiagonal(damped_blocks(state.blocks, state.dampings, self.scale_mode))
