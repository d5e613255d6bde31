"""How good the step is that a probe makes of the gradient, against the exact damped natural gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.fisher import ExactFisher, exact_fisher
from curvbench.instance import Instance
from curvbench.meters.error import BLOCKS
from curvbench.passes import full_precision
from curvbench.spec import Layer, Probe, Row, Status


@dataclass(frozen=True)
class Target:
    """The exact natural gradient of one Fisher matrix, and that matrix's quadratic form."""

    step: Tensor
    gradient: Tensor
    fisher: ExactFisher | None
    layers: tuple[ExactFisher, ...]
    damping: float

    def quadratic(self, v: Tensor) -> float:
        """v^T (F + damping I) v."""
        parts = v.split([f.size for f in self.layers])
        if self.fisher is not None:
            curved = self.fisher.quadratic(v)
        else:
            curved = sum(f.quadratic(part) for f, part in zip(self.layers, parts, strict=True))
        return curved + self.damping * numerics.sum_squares(v)


def network_target(fisher: ExactFisher, gradient: Tensor, damping: float) -> Target:
    """Against the whole Fisher."""
    return Target(fisher.natural_gradient(gradient, damping), gradient, fisher, (fisher,), damping)


def block_target(fisher: ExactFisher, gradient: Tensor, damping: float) -> Target:
    """Against the exact layer blocks: what a block-diagonal method can reach."""
    layers = tuple(fisher.layer(layer.name) for layer in fisher.layers)
    parts = gradient.split([f.size for f in layers])
    step = torch.cat([f.natural_gradient(part, damping) for f, part in zip(layers, parts, strict=True)])
    return Target(step, gradient, None, layers, damping)


def compare(step: Tensor, target: Target) -> dict[str, float]:
    """Cosine and relative distance to the exact step, and the share of the optimal decrease that the step reaches.

    The decrease is <g, p> - 1/2 p^T (F + damping I) p; it is negative for a step that is too long.
    """
    step, exact = step.to(target.step.dtype), target.step
    wanted = numerics.sum_squares(exact) ** 0.5
    best = numerics.inner(target.gradient, exact) / 2
    reached = numerics.inner(target.gradient, step) - target.quadratic(step) / 2
    return {
        "cosine": _cosine(step, exact),
        "relative": numerics.sum_squares(step - exact) ** 0.5 / wanted if wanted else float("nan"),
        "decrease": reached / best if best else float("nan"),
    }


def with_damping(probe: Probe, damping: float) -> Probe:
    """The probe with another damping, or itself where it has none."""
    has = any(f.name == "damping" for f in fields(probe))  # type: ignore[arg-type]
    return replace(probe, damping=damping) if has else probe  # type: ignore[type-var]


def step_of(probe: Probe, instance: Instance, gradient: Tensor) -> Tensor:
    """The probe's preconditioned gradient, statistics from the whole batch."""
    state = probe.refresh(probe.fit(instance))
    return probe.precondition(state, gradient)


@full_precision()
def direction_errors(probe: Probe, instance: Instance, damping: float = 1e-3) -> dict[str, float]:
    """Errors of the probe's step on the instance's gradient against (F + damping I)^-1 g, solved exactly.

    Returns:
        ``cosine``, ``relative`` and ``decrease`` (see ``compare``); NaN where the gradient is zero.
    """
    gradient = instance.gradient()
    target = network_target(exact_fisher(instance), gradient, damping)
    return compare(step_of(with_damping(probe, damping), instance, gradient), target)


def gradient_cosines(step: Tensor, gradient: Tensor, layers: Sequence[Layer]) -> dict[str, float]:
    """The cosine of the step with the gradient, of the network and of each layer; NaN where one of them is zero."""
    parts = {"network": slice(None), **{layer.name: layer.slice for layer in layers}}
    return {scope: _cosine(step[part], gradient[part]) for scope, part in parts.items()}


def direction_rows(step: Tensor, fisher: ExactFisher, gradient: Tensor, damping: float) -> Iterator[Row]:
    """Every direction metric, against the network's Fisher and its layer blocks and against the plain gradient."""
    method = f"damping {damping:g}"
    for scope, make in (("network", network_target), (BLOCKS, block_target)):
        for name, value in compare(step, make(fisher, gradient, damping)).items():
            yield _row(f"direction.{name}", value, scope, method)
    for scope, value in gradient_cosines(step, gradient, [c.layer for c in fisher.columns]).items():
        yield _row("direction.gradient", value, scope, method)


def _cosine(a: Tensor, b: Tensor) -> float:
    lengths = (numerics.sum_squares(a) * numerics.sum_squares(b)) ** 0.5
    return numerics.inner(a, b) / lengths if lengths else float("nan")


def _row(metric: str, value: float, scope: str, method: str) -> Row:
    if value == value:
        return Row(metric, value, scope, method=method)
    reason = "the gradient or the step is zero: it has no direction"
    return Row(metric, scope=scope, status=Status.SKIPPED, reason=reason)
