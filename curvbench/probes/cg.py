"""Conjugate gradients on (F + lambda I) x = g: Hessian-free optimization (Martens 2010) with the exact Fisher.

Iteration k minimises the damped quadratic model over k directions, so that a step's best length is 1 and its quality
never falls. With a preconditioner C^ the first step is a multiple of C^^-1 g, that probe's own step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from curvbench.fisher import ExactFisher, collect
from curvbench.instance import Instance
from curvbench.parts.conjugate import conjugate_gradients
from curvbench.parts.ranges import at_least_one, finite
from curvbench.spec import About, FisherProbe, Probe, Unsupported

_KEPT = 0.95  # of the last solution, with which a warm start begins (Martens 2010)


class State(NamedTuple):
    """The batch's Fisher, and the state of the preconditioner; with ``warm`` also the batch's gradient (P,).

    ``start``: where the iterations begin, (P,). None means zero.
    """

    fisher: ExactFisher
    inner: Any
    gradient: Tensor | None
    start: Tensor | None


@dataclass(frozen=True)
class Cg(FisherProbe):
    """Some iterations of conjugate gradients on the damped Fisher: a step instead of a matrix.

    ``iterations``: the largest number of iterations; they end earlier if the residual has fallen to rounding.
    ``preconditioner``: a probe whose damped matrix preconditions the system, with its own damping. None means the
    identity. ``warm``: whether the iterations for a batch begin at 0.95 times the last batch's solution; for the first
    batch they begin at zero.
    """

    iterations: int = 10
    preconditioner: Probe | None = None
    warm: bool = False

    is_ranked_by_error: ClassVar[bool] = False

    about = About(
        represents="F itself, so that its error is 0 and ranks nothing: what is measured is the step",
        damping="F + damping I in every product; the step after a given number of iterations is not linear in g",
        cost={
            "statistics": "N R^2",
            "invert": "0",
            "precondition": "2 iterations N S G M (D + R) + 5 iterations P",
            "memory": "N S G (D + R M)",
        },
        source="Martens 2010; Hestenes and Stiefel 1952; cost as here: gradients at the outputs, and columns "
        "in factored form, kept for the products",
        notes=(
            "A preconditioner adds its own cost, with iterations of its solves per step. It must be the inverse of one "
            "symmetric matrix: a step with momentum or a rate of its own cannot be one.",
            "Public code adapts the damping (Levenberg and Marquardt), searches along the step and ends by the "
            "progress of the model; here damping and iterations are given.",
        ),
        family="solvers",
        color="blue",
        formulas=(
            r"\hat F = F",
            r"p_k = \mathrm{arg}\,\min_{p \in \mathcal{K}_k} \frac{1}{2}\, p^\top (F + \lambda I)\, p - \bar g^\top p",
            r"\mathcal{K}_k = \mathrm{span}\{\bar g, \ldots, (F + \lambda I)^{k-1} \bar g\}",
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "iterations")
        finite(self, "damping", zero=False)
        if self.preconditioner is not None and self.preconditioner.has_own_momentum:
            raise ValueError(f"preconditioner must be symmetric and linear: {_refusal(self.preconditioner)}")

    @property
    def inner_solves(self) -> int:
        return self.iterations

    @property
    def reads_output_gradients(self) -> bool:
        return super().reads_output_gradients or any(probe.reads_output_gradients for probe in self.inner.values())

    def unsupported(self, instance: Instance) -> str | None:
        reason = self.preconditioner and self.preconditioner.unsupported(instance)
        return f"preconditioner={self.preconditioner.label}: {reason}" if self.preconditioner and reason else None

    def update(self, state: State | None, batch: Instance) -> State:
        """Take in a batch; the preconditioner is fitted to the first one as its own hyperparameters say.

        Raises:
            Unsupported: the preconditioner's step is not the inverse of one symmetric matrix applied to a gradient.
        """
        probe = self.preconditioner
        if probe is None:
            return self._taken_in(state, batch, None)
        if state is not None:
            return self._taken_in(state, batch, probe.update(state.inner, batch))
        inner = probe.fit(batch)
        if probe.damped(probe.refresh(inner)) is None:
            raise Unsupported(f"preconditioner must be symmetric and linear: {_refusal(probe)}")
        return self._taken_in(None, batch, inner)

    def _taken_in(self, state: State | None, batch: Instance, inner: Any) -> State:
        columns = collect(batch, self.fisher_type, self.mc_samples, self.seed)
        fisher = ExactFisher(columns, batch.terms, extent=batch.extent)
        if not self.warm:
            return State(fisher, inner, None, None)
        start = None
        if state is not None and state.gradient is not None:
            start = _KEPT * self.precondition(self.refresh(state), state.gradient)
        return State(fisher, inner, batch.gradient(), start)

    def refresh(self, state: State) -> State:
        return state._replace(inner=self.preconditioner.refresh(state.inner)) if self.preconditioner else state

    def precondition(self, state: State, gradient: Tensor) -> Tensor:
        probe, system = self.preconditioner, state.fisher.damped(self.damping)
        inverse = None if probe is None else lambda residual: probe.precondition(state.inner, residual)
        return conjugate_gradients(system.matvec, gradient, self.iterations, inverse, state.start)

    def operator(self, state: State) -> ExactFisher:
        return state.fisher

    def damped(self, state: State) -> None:
        """None, because the step is not linear in the gradient."""
        return None


def _refusal(probe: Probe) -> str:
    return f"the step of {probe.label} is not the inverse of one symmetric matrix applied to a gradient"
