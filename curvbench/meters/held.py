"""Statistics held against a Fisher that they were not fitted to: the Fisher of other samples, or of later weights.

The numbers that take that Fisher's Gram matrices are the same for every probe. They are computed once
(``yardstick``), and each probe then needs the score columns alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from curvbench import numerics
from curvbench.fisher import ExactFisher
from curvbench.instance import Instance
from curvbench.meters.direction import best_products, how_damped, step_qualities, with_damping
from curvbench.meters.error import BLOCKS, NETWORK, Compared, compared, from_products
from curvbench.operators import Operator
from curvbench.spec import Probe, Row, Status
from curvbench.spec.probe import Follows, Weighs

SCOPES = (NETWORK, BLOCKS)
_ZERO = "the Fisher is zero in this scope: nothing to compare with"
_NO_STEP = "the gradient or the step is zero here: no step is better than another"
_NOISE = "the Fisher of the population is hidden: the samples are too few, too noisy, or depend on each other"


class Yardstick(NamedTuple):
    """The numbers of a Fisher F that take its Gram matrices.

    ``norms`` and ``traces``: |F| and tr F of the network and of each layer. ``bests``: g^T (F + damping I)^-1 g of the
    network, of its layer blocks and of each layer. ``floors``: the relative error of the exact Fisher of the fitted
    samples at the fitted weights, of the network and of its layer blocks. ``squares``: unbiased estimates of the
    squared norm of the population's Fisher in the same two scopes; NaN means that the samples give none.
    """

    norms: list[float]
    traces: list[float]
    bests: list[float]
    floors: list[float]
    squares: list[float]


class Held(NamedTuple):
    """An instance and its Fisher, against which statistics of another instance are held."""

    instance: Instance
    fisher: ExactFisher
    yardstick: Yardstick


def yardstick(instance: Instance, fisher: ExactFisher, fitted: ExactFisher, damping: float) -> Yardstick:
    """The yardstick of an instance's Fisher; ``fitted``: the exact Fisher of the samples and weights of the statistics.

    Raises:
        ValueError: a number is not finite, or the two Fishers have different parameters.
    """
    layers = [fisher.layer(layer.name) for layer in fisher.layers]
    floor = compared(fitted, fisher)
    samples = 1 if instance.coupled else instance.samples  # of which the scores are independent
    squares = [unbiased_square(f, samples) for f in (fisher, *layers)]
    return Yardstick(
        [f.frobenius_norm() for f in (fisher, *layers)],
        [f.trace() for f in (fisher, *layers)],
        best_products(fisher, instance.gradient(), damping).tolist(),
        [from_products(floor.network)["relative"], from_products(floor.blocks)["relative"]],
        [squares[0], sum(squares[1:])],
    )


def unbiased_square(fisher: ExactFisher, samples: int) -> float:
    """An estimate of |F_pop|^2 whose mean is that, from the Fisher of independent samples; NaN for a single one.

    With F the mean of f_n over N samples it is (N^2 |F|^2 - sum of |f_n|^2) / (N (N - 1)): |F|^2 without the products
    of a sample with itself. May be negative.
    """
    if samples < 2:
        return math.nan
    gram = fisher.gram()
    R = len(gram) // samples
    own = gram.reshape(R, samples, R, samples).diagonal(dim1=1, dim2=3)
    between = numerics.sum_squares(gram) - numerics.sum_squares(own)
    return between / fisher.terms**2 * samples / (samples - 1)


def restored(fisher: ExactFisher, numbers: Yardstick) -> ExactFisher:
    """The Fisher, which takes over norms and traces so that it makes no Gram matrix for them."""
    parts = (fisher, *(fisher.layer(layer.name) for layer in fisher.layers))
    for part, norm, trace in zip(parts, numbers.norms, numbers.traces, strict=True):
        part.restore({"_norm": norm, "_trace": trace})
    return fisher


class Frozen(NamedTuple):
    """Statistics of one batch: the operator, and the probe that steps with the table's damping with its state.

    ``why_not``: why the probe preconditions no gradient but its own batch's; empty if it does.
    """

    operator: Operator
    probe: Probe
    state: Any
    how: str
    why_not: str

    @classmethod
    def of(cls, probe: Probe, instance: Instance, state: Any, damping: float) -> Frozen:
        """Take over the state that ``probe`` was fitted to; with another damping of its own it is fitted again."""
        judged = with_damping(probe, damping, instance.terms)
        refreshed = probe.refresh(state)
        operator = probe.operator(refreshed)
        if judged != probe:
            refreshed = judged.refresh(judged.fit(instance))
        method = ", ".join(filter(None, [f"damping {damping:g}", how_damped(probe, damping, instance.terms)]))
        return cls(operator, judged, refreshed, method, _why_not(probe))

    def step(self, held: Held) -> Tensor:
        """The step for the gradient of the held instance, (P,)."""
        state = self.state
        if isinstance(self.probe, Follows) and self.probe.needs_every_batch:
            state = self.probe.follow(state, held.instance)
        return self.probe.precondition(state, held.instance.gradient().clone())  # a probe may write to its gradient


def _why_not(probe: Probe) -> str:
    if probe.has_own_momentum:
        return "its step is made of the gradients of its statistics: it preconditions no other gradient"
    if isinstance(probe, Weighs) and probe.needs_targets:
        return "its step weighs the samples of its statistics: it preconditions no other gradient"
    return ""


def error_rows(metric: str, frozen: Frozen, held: Held, unbiased: str = "") -> Iterator[Row]:
    """The relative error of network and layer blocks; ``unbiased``: the metric of the same against the population."""
    try:
        products = compared(frozen.operator, held.fisher)
    except ValueError as reason:
        yield Row(metric, scope=NETWORK, status=Status.ERROR, reason=str(reason))
        return
    for place, (scope, of_scope) in enumerate(_scopes(products)):
        yield _row(metric, from_products(of_scope)["relative"], scope, _ZERO)
        if unbiased:
            square = held.yardstick.squares[place]
            difference = of_scope.operator - 2 * of_scope.mixed + square
            yield _row(unbiased, _signed_root(difference / square) if square > 0 else math.nan, scope, _NOISE)
    if products.reason:
        yield Row(metric, scope=BLOCKS, status=Status.UNSUPPORTED, reason=products.reason)


def _scopes(products: Compared) -> list[tuple[str, Any]]:
    return [(NETWORK, products.network), *([] if products.reason else [(BLOCKS, products.blocks)])]


def floor_rows(metric: str, held: Held) -> Iterator[Row]:
    """The relative error of the exact Fisher of the fitted samples and weights."""
    for scope, value in zip(SCOPES, held.yardstick.floors, strict=True):
        yield _row(metric, value, scope, _ZERO)


def quality_rows(metric: str, frozen: Frozen, held: Held, damping: float) -> Iterator[Row]:
    """The quality of the step for the held gradient against the held Fisher, of network and layer blocks."""
    if frozen.why_not:
        yield Row(metric, scope=NETWORK, status=Status.UNSUPPORTED, reason=frozen.why_not)
        return
    gradient, bests = held.instance.gradient(), held.yardstick.bests
    try:
        qualities = step_qualities(frozen.step(held), held.fisher, gradient, damping, bests)
    except ValueError as reason:
        yield Row(metric, scope=NETWORK, status=Status.ERROR, reason=str(reason), method=frozen.how)
        return
    for scope, value in zip(SCOPES, qualities, strict=False):
        yield replace(_row(metric, value, scope, _NO_STEP), method=frozen.how)


def _row(metric: str, value: float, scope: str, why: str) -> Row:
    if math.isnan(value):
        return Row(metric, scope=scope, status=Status.SKIPPED, reason=why)
    return Row(metric, value, scope)


def _signed_root(value: float) -> float:
    return math.copysign(abs(value) ** 0.5, value)
