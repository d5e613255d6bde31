"""The damping of a probe over a grid: the quality of its step, and the decrease of the loss that the step makes.

The target's damping stays where the table has it, while the probe's own takes the values of ``GRID``, all in units of
the mean Fisher. What judges a step does not depend on the probe, so that ``targets_of`` computes it once for all probes
of a reference; the responses of all steps to the score columns are then one product per layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.fisher import ExactFisher
from curvbench.meters.descent import ZERO, Point, best_length
from curvbench.meters.direction import LEAST_GAP, _unit
from curvbench.meters.error import NETWORK
from curvbench.meters.grid import Step
from curvbench.spec import Layer, Row, Status

GRID = tuple(float(f"1e{exponent}") for exponent in range(-8, 3))
TARGETS = (1e-2, 1.0, 1e2)  # multiples of the table's damping, at which the quality of a step is measured
TABLE = 1  # the place of the table's damping in them
PLATEAU = 0.95  # of the best value, above which a damping belongs to the plateau
_ROUNDINGS = 16  # of the loss, below which a decrease is no decrease


class Targets(NamedTuple):
    """What judges a step, at each of the ``dampings`` of the target (T,) in float64.

    ``best``: g^T C^-1 g of the network and of each layer, (T, 1 + L). ``least``: the quality of the gradient there.
    ``most``: that of the step by exact layer blocks, which is 1 in a layer.
    """

    dampings: Tensor
    best: Tensor
    least: Tensor
    most: Tensor


class Profiles(NamedTuple):
    """K steps p: <g, p>, p^T F p and |p|^2 of the network and of each layer, (K, 1 + L) in float64."""

    along: Tensor
    curved: Tensor
    squares: Tensor

    def damped(self, damping: float | Tensor) -> Tensor:
        """p^T (F + damping I) p, (..., K, 1 + L) for dampings of shape (..., 1, 1)."""
        return self.curved + damping * self.squares


def targets_of(fisher: ExactFisher, gradient: Tensor, damping: float) -> Targets:
    """What judges the steps of all probes on a gradient (P,), where the table has the damping ``damping``."""
    dampings = [factor * damping for factor in TARGETS]
    network = fisher.natural_gradients(gradient, dampings)
    best = [numerics.inner(gradient, step) for step in network.unbind(1)]

    def own(layer: Layer) -> Tensor:
        part = gradient[layer.slice]
        solved = fisher.layer(layer.name).natural_gradients(part, dampings)
        return torch.cat([part[:, None].to(solved.dtype), solved], dim=1)

    profiles = profiles_of(own, fisher, gradient)
    bests = torch.stack([profiles.along[1 + t] for t in range(len(dampings))])
    bests[:, 0] = bests.new_tensor(best)
    targets = Targets(bests.new_tensor(dampings), bests, torch.ones_like(bests), torch.ones_like(bests))
    qualities = qualities_of(profiles, targets)
    targets.least[:] = qualities[:, 0]
    targets.most[:, 0] = torch.stack([qualities[t, 1 + t, 0] for t in range(len(dampings))])
    return targets


def profiles_of(steps: Callable[[Layer], Tensor], fisher: ExactFisher, gradient: Tensor) -> Profiles:
    """The profiles of K steps, whose parts (P_l, K) ``steps`` gives layer by layer in the layers' order."""
    along, curved, squares, total = [], [], [], None
    for layer in fisher.layers:
        parts, block = steps(layer), fisher.layer(layer.name)
        responses = block.project(parts).double().flatten(0, 1) / block.terms**0.5
        total = responses if total is None else total.add_(responses)
        own, part = parts.double(), gradient[layer.slice].double()
        along.append(part @ own)
        curved.append(responses.square().sum(0))
        squares.append(own.square().sum(0))
    assert total is not None, "a Fisher has a layer"
    return Profiles(_with_network(along), _with_network(curved, total.square().sum(0)), _with_network(squares))


def _with_network(layers: Sequence[Tensor], network: Tensor | None = None) -> Tensor:
    """The numbers (K,) of the network, by default the sums, and of each layer, (K, 1 + L)."""
    each = torch.stack(list(layers), dim=1)
    return torch.cat([(each.sum(1) if network is None else network)[:, None], each], dim=1)


def qualities_of(profiles: Profiles, targets: Targets) -> Tensor:
    """The quality of every step at every damping of the target, (T, K, 1 + L); NaN if gradient or step is zero."""
    curvature = profiles.damped(targets.dampings[:, None, None])
    best = targets.best[:, None]
    share = (profiles.along / curvature) * (profiles.along / best)
    share = share.clamp_max(1.0) * profiles.along.sign()  # only rounding takes a share above 1
    return torch.where((curvature > 0) & (best > 0), share, math.nan)


class Descent(NamedTuple):
    """The batch on which steps are taken: the ``loss`` along a step (P,) as a function of the step's length.

    ``where``: the batch in words. ``rounding``: the relative rounding of the loss.
    """

    loss: Callable[[Tensor], Callable[[float], float]]
    where: str
    rounding: float


class Curve(NamedTuple):
    """What the grid shows: ``decreases`` (K,), ``qualities`` (T, K, 1 + L), NaN where there is no step."""

    decreases: Tensor
    qualities: Tensor


def damping_rows(
    steps: Sequence[Step], fisher: ExactFisher, gradient: Tensor, targets: Targets, descent: Descent
) -> Iterator[Row]:
    """The rows of a probe with a damping: of the best damping, in every layer too, and of every damping of the grid.

    ``steps``: the probe's step at every damping of ``GRID``, or why there is none.
    """
    made = [step for step in steps if isinstance(step, Tensor)]
    before = descent.loss(gradient)(0.0)
    why = f"no damping of the grid gives a step: {steps[0]}" if not made else ""
    why = why if math.isfinite(before) else f"the loss on {descent.where} is not finite"
    why = why if gradient.any() else "the gradient is zero: no damping is better than another"
    if why:
        yield Row("damping.best", status=Status.SKIPPED, reason=why)
        return
    given = {k: step for k, step in enumerate(steps) if isinstance(step, Tensor)}
    found = curve(given, fisher, gradient, targets, descent, before)
    yield from _best_of_network(found, targets, descent)
    for place, layer in enumerate(fisher.layers, start=1):
        yield from _best_of_layer(layer.name, place, found, targets)
    for k, step in enumerate(steps):
        yield from _at(k, step if isinstance(step, str) else "", found, targets, descent)


def curve(
    steps: Mapping[int, Tensor],
    fisher: ExactFisher,
    gradient: Tensor,
    targets: Targets,
    descent: Descent,
    before: float,
) -> Curve:
    """Qualities and decreases of steps (P,) by their places in the grid; ``before``: the loss without a step."""
    units = [_unit(step)[0] for step in steps.values()]
    profiles = profiles_of(lambda layer: torch.stack([u[layer.slice] for u in units], dim=1), fisher, gradient)
    qualities = torch.full(
        (len(TARGETS), len(GRID), 1 + len(fisher.layers)), math.nan, dtype=torch.float64, device="cpu"
    )
    qualities[:, list(steps)] = qualities_of(profiles, targets).cpu()
    lengths = profiles.along[:, 0].abs() / profiles.damped(targets.dampings[TABLE])[:, 0]
    decreases = torch.full((len(GRID),), math.nan, dtype=torch.float64, device="cpu")
    ratio = 1.0  # of the best length to the quadratic model's, with which the next damping begins
    for k, unit, length in zip(steps, units, lengths.tolist(), strict=True):
        best = _best(unit, ratio * length, before, descent)
        decreases[k], ratio = best.decrease, best.length / length if best.length else ratio
    return Curve(decreases, qualities)


def _best(step: Tensor, first: float, before: float, descent: Descent) -> Point:
    """The best length of a step and its decrease: 0 if rounding alone makes it, NaN for a step of zero."""
    if not 0 < first < math.inf:
        return Point(0.0, math.nan)
    loss = descent.loss(step)
    best = best_length(lambda length: before - loss(length), first)
    return best if best.decrease > _ROUNDINGS * descent.rounding * abs(before) else ZERO


def plateau(values: Sequence[float], best: int) -> float:
    """The width in decades of the values around the best that reach ``PLATEAU`` of it, for a grid in decades.

    Between two values of the grid the curve is a straight line over the logarithm. The plateau ends at a value that
    is missing (NaN), and at the ends of the grid.
    """
    level = PLATEAU * values[best]
    return _reach(values[best:], level) + _reach(values[best::-1], level)


def _reach(values: Sequence[float], level: float) -> float:
    """How many steps of the grid a curve that begins above the level stays there."""
    for k in range(1, len(values)):
        if not values[k] >= level:
            inside = (values[k - 1] - level) / (values[k - 1] - values[k])
            return k - 1 + (0.0 if math.isnan(inside) else inside)
    return len(values) - 1.0


def _best_of_network(found: Curve, targets: Targets, descent: Descent) -> Iterator[Row]:
    method = f"{_target(targets)}, by the decrease of the loss on {descent.where}"
    values = found.decreases.nan_to_num(-math.inf)
    best = int(values.argmax())
    if not values[best] > 0:
        reason = f"no damping of the grid makes the loss on {descent.where} fall"
        yield Row("damping.best", method=method, status=Status.SKIPPED, reason=reason)
        return
    yield Row("damping.best", GRID[best], method=method)
    yield Row("damping.plateau", plateau(found.decreases.tolist(), best), method=method)
    yield Row("damping.decrease", float(values[best]), method=f"at its best length, on {descent.where}")
    judged = int(found.qualities[TABLE, :, 0].nan_to_num(-math.inf).argmax())  # by the scale on which methods compete
    yield from _judged(NETWORK, 0, judged, found, targets)


def _best_of_layer(scope: str, place: int, found: Curve, targets: Targets) -> Iterator[Row]:
    method = f"{_target(targets)}, by the quality of the layer's own step"
    curve = found.qualities[TABLE, :, place]
    values = curve.nan_to_num(-math.inf)
    best = int(values.argmax())
    if not values[best] > 0:
        zero = bool(curve.isnan().all())
        reason = "the gradient or the step is zero here" if zero else "no damping of the grid gives a step downhill"
        yield Row("damping.best", scope=scope, method=method, status=Status.SKIPPED, reason=reason)
        return
    yield Row("damping.best", GRID[best], scope, method=method)
    yield Row("damping.plateau", plateau(curve.tolist(), best), scope, method=method)
    yield from _judged(scope, place, best, found, targets)


def _judged(scope: str, place: int, best: int, found: Curve, targets: Targets) -> Iterator[Row]:
    """Quality and share of the gap closed at the place ``best`` of the grid."""
    method = f"{_target(targets)}, at damping {GRID[best]:g}"
    quality = float(found.qualities[TABLE, best, place])
    least, most = float(targets.least[TABLE, place]), float(targets.most[TABLE, place])
    yield Row("damping.quality", quality, scope, method=method)
    if most - least >= LEAST_GAP:
        yield Row("damping.gap_closed", (quality - least) / (most - least), scope, method=method)
    else:
        reason = f"there is no gap of {LEAST_GAP:g} between the gradient and the step by exact layer blocks"
        yield Row("damping.gap_closed", scope=scope, method=method, status=Status.SKIPPED, reason=reason)


def _at(k: int, why: str, found: Curve, targets: Targets, descent: Descent) -> Iterator[Row]:
    """The rows of one damping of the grid, or why there are none."""
    scope, decrease = scope_of(GRID[k]), float(found.decreases[k])
    why = why or ("the step is zero, or orthogonal to the gradient" if math.isnan(decrease) else "")
    if why:
        yield Row("damping.decrease", scope=scope, status=Status.SKIPPED, reason=why)
        return
    yield Row("damping.decrease", decrease, scope, method=f"at its best length, on {descent.where}")
    for t, factor in enumerate(TARGETS):
        own = "" if factor == 1 else f" target={short(float(targets.dampings[t]))}"
        yield Row("damping.quality", float(found.qualities[t, k, 0]), scope + own, method=_target(targets, t))


def _target(targets: Targets, t: int = TABLE) -> str:
    return f"target's damping {float(targets.dampings[t]):g}"


def scope_of(damping: float) -> str:
    """The scope of a damping of the grid, as ``damping=1e-03``."""
    return f"damping={short(damping)}"


def short(damping: float) -> str:
    """A damping as ``1e-03``, with more digits if it has them."""
    rounded = f"{damping:.0e}"
    return rounded if math.isclose(float(rounded), damping) else f"{damping:g}"
