"""How good the step is that a probe makes of the gradient, against the exact damped natural gradient.

With C = F + damping I the ``quality`` of a step p is <g,p>^2 / (p^T C p . g^T C^-1 g) with the sign of <g,p>: the share
of the best decrease of the quadratic model that p reaches at its own best length, <g,p> / p^T C p. It does not depend
on the length that p has, which a learning rate sets. ``quality_rates`` is the same with a free rate per layer, and
``gap_closed`` the quality on the scale on which the gradient is 0 and the step by exact layer blocks is 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.fisher import ExactFisher, exact_fisher
from curvbench.instance import Instance
from curvbench.instance.passes import full_precision
from curvbench.meters.error import BLOCKS, NETWORK
from curvbench.spec import DAMPING, Probe, Row, Status, refuse_damping

LEAST_GAP = 1e-3  # of quality: a share of less is rounding
OF_LAYERS = ("quality", "length", "gap_closed", "gradient")
OF_BLOCKS = ("quality", "length", "gap_closed", "quality_rates", "cosine", "relative", "decrease")
OF_NETWORK = (*OF_BLOCKS, "gradient")


@dataclass(frozen=True)
class Target:
    """The exact natural gradient of one Fisher matrix, or of its layer blocks, and that matrix's quadratic form."""

    step: Tensor
    gradient: Tensor
    fishers: tuple[ExactFisher, ...]
    damping: float

    def quadratic(self, v: Tensor) -> float:
        """v^T (F + damping I) v."""
        parts = v.split([f.size for f in self.fishers])
        curved = sum(f.quadratic(part) for f, part in zip(self.fishers, parts, strict=True))
        return curved + self.damping * numerics.sum_squares(v)


def network_target(fisher: ExactFisher, gradient: Tensor, damping: float) -> Target:
    """Against the whole Fisher."""
    return Target(fisher.natural_gradient(gradient, damping), gradient, (fisher,), damping)


def compare(step: Tensor, target: Target, curvature: float | None = None) -> dict[str, float]:
    """Cosine and relative distance to the exact step, and the share of the optimal decrease at the length it has.

    The decrease is <g, p> - 1/2 p^T (F + damping I) p; it is negative for a step that is too long. ``curvature``: that
    quadratic form, where it is known already.
    """
    step, exact = step.to(target.step.dtype), target.step
    wanted = numerics.sum_squares(exact) ** 0.5
    best = numerics.inner(target.gradient, exact) / 2
    reached = numerics.inner(target.gradient, step) - (target.quadratic(step) if curvature is None else curvature) / 2
    return {
        "cosine": _cosine(step, exact),
        "relative": numerics.sum_squares(step - exact) ** 0.5 / wanted if wanted else math.nan,
        "decrease": reached / best if best else math.nan,
    }


class Profile(NamedTuple):
    """A step p layer by layer: <g, p>, (L,); responses V^T p / sqrt(terms), (R N, L); damping |p|^2, (L,). float64."""

    along: Tensor
    responses: Tensor
    damped: Tensor

    @property
    def alongs(self) -> Tensor:
        """<g, p> of the network, of its layer blocks and of each layer, (2 + L,)."""
        return _with_wholes(self.along)

    @property
    def curvatures(self) -> Tensor:
        """p^T (F + damping I) p in the same scopes, (2 + L,)."""
        network = self.responses.sum(1).square().sum() + self.damped.sum()
        return _with_wholes(self.responses.square().sum(0) + self.damped, network)

    @property
    def rated(self) -> tuple[float, float]:
        """b^T H^-1 b for the network and its layer blocks: <g, p> with the best rate, of either sign, of every layer.

        b is <g, p> per layer, H = Z^T Z + damping diag |p|^2 with the responses Z, of blocks its diagonal alone.
        """
        moving = self.damped > 0
        scale = self.damped[moving].rsqrt()
        Z, b = self.responses[:, moving] * scale, (self.along[moving] * scale)[:, None]
        solved = numerics.cholesky_solve(b, numerics.damped_cholesky(Z.T @ Z, 1.0))
        return numerics.inner(b, solved), float((b[:, 0].square() / (Z.square().sum(0) + 1)).sum())


def qualities(profile: Profile, best: Tensor) -> Tensor:
    """Quality in every scope, with its g^T C^-1 g, (2 + L,); NaN where the gradient or the step is zero."""
    along, curvature = profile.alongs, profile.curvatures
    share = (along / curvature) * (along / best)
    share = share.clamp_max(1.0) * along.sign()  # above 1 by rounding alone
    return torch.where((curvature > 0) & (best > 0), share, math.nan)


class Judged(NamedTuple):
    """What is known of a step in one scope, whose entries are ``part``; NaN where a number is not defined."""

    scope: str
    part: slice
    values: dict[str, float]


def judge(step: Tensor, fisher: ExactFisher, gradient: Tensor, damping: float) -> list[Judged]:
    """Every direction metric of a step (P,): of the network, of its layer blocks and of each layer.

    Of a streamed Fisher one pass serves the layer blocks and all that is asked of the step.

    Raises:
        ValueError: a step or the gradient is not finite, the step has another shape, or the damping is none.
    """
    refuse_damping(damping)
    if step.shape != gradient.shape:
        raise ValueError(f"the step has shape {tuple(step.shape)}, the gradient {tuple(gradient.shape)}")
    _refuse_flaws({"step": step, "gradient": gradient})
    unit, size = _unit(step)
    whole = network_target(fisher, gradient, damping)
    blocks, (mine, plain, layerwise) = _profiles(unit, fisher, gradient, damping)
    _refuse_flaws({f"exact step at damping {damping:g}": torch.cat([whole.step, blocks.step])})
    numbers = _numbers(mine, plain, layerwise, numerics.inner(gradient, whole.step))
    numbers["length"] /= size
    rows = zip(*(column.tolist() for column in numbers.values()), strict=True)
    places = [(NETWORK, slice(None)), (BLOCKS, slice(None)), *((la.name, la.slice) for la in fisher.layers)]
    found = [Judged(*place, dict(zip(numbers, row, strict=True))) for place, row in zip(places, rows, strict=True)]
    for one, target, curvature in zip(found, (whole, blocks), mine.curvatures.tolist(), strict=False):
        one.values.update(compare(step, target, size * (size * curvature)))
    for one in found:
        one.values["gradient"] = _cosine(step[one.part], gradient[one.part])
    return found


def _numbers(mine: Profile, plain: Profile, layerwise: Profile, best: float) -> dict[str, Tensor]:
    """What does not depend on the step's length, and its best multiple, in every scope, (2 + L,).

    ``plain`` and ``layerwise`` are the gradient and the step by exact layer blocks; ``best`` is the network's
    g^T C^-1 g, which for the others follows from them.
    """
    bests = _with_wholes(layerwise.along, layerwise.along.new_tensor(best))
    quality, least = qualities(mine, bests), qualities(plain, bests)
    most = torch.ones_like(least)
    most[0] = qualities(layerwise, bests)[0]
    rated = torch.cat([bests.new_tensor(mine.rated), (quality * bests).abs()[2:]])
    return {
        "quality": quality,
        "length": torch.where(quality.isnan(), math.nan, mine.alongs / mine.curvatures),
        "gap_closed": torch.where(most - least < LEAST_GAP, math.nan, (quality - least) / (most - least)),
        "quality_rates": torch.where(quality.isnan(), math.nan, (rated / bests).clamp_max(1.0)),
    }


def _profiles(step: Tensor, fisher: ExactFisher, gradient: Tensor, damping: float) -> tuple[Target, list[Profile]]:
    """The target of the layer blocks, and what the Fisher makes of the step, of the gradient and of that target."""
    layers, exact, responses = [], [], []
    for layer in fisher.layers:
        block, mine = fisher.layer(layer.name), gradient[layer.slice]
        solved = block.natural_gradient(mine, damping)
        vectors = torch.stack([v.to(solved.dtype) for v in (step[layer.slice], mine, solved)], dim=1)
        responses.append(block.project(vectors).double().flatten(0, 1) / block.terms**0.5)
        layers.append(block)
        exact.append(solved)
    target = Target(torch.cat(exact), gradient, tuple(layers), damping)
    seen = torch.stack(responses, dim=1)
    steps = (step, gradient, target.step)
    return target, [_profile(p, gradient, fisher, damping, seen[..., k]) for k, p in enumerate(steps)]


def _profile(step: Tensor, gradient: Tensor, fisher: ExactFisher, damping: float, responses: Tensor) -> Profile:
    parts = [layer.slice for layer in fisher.layers]
    along = [numerics.inner(gradient[part], step[part]) for part in parts]
    squares = [damping * numerics.sum_squares(step[part]) for part in parts]
    return Profile(responses.new_tensor(along), responses, responses.new_tensor(squares))


def _with_wholes(each: Tensor, network: Tensor | None = None) -> Tensor:
    """Numbers of layers (L,) with the network's, by default their sum, and that of the blocks, which is."""
    blocks = each.sum()
    return torch.cat([torch.stack([blocks if network is None else network, blocks]), each])


def with_damping(probe: Probe, damping: float, terms: int = 1) -> Probe:
    """The probe damped by ``damping`` of the mean Fisher of so many loss terms, or itself where it has no damping."""
    unit = probe.damping_unit(terms)
    return probe if unit is None else replace(probe, damping=damping * unit)  # type: ignore[type-var]


def how_damped(probe: Probe, damping: float, terms: int) -> str:
    """What ``with_damping`` does to the probe, as a row's method says it; empty where its unit is the mean Fisher's."""
    unit = probe.damping_unit(terms)
    if unit is None:
        return f"own damping ({probe.about.damping})" if probe.about.damping else "own damping"
    return "" if unit == 1 else f"as the probe's damping={damping * unit:g}"


def step_of(probe: Probe, instance: Instance, gradient: Tensor) -> Tensor:
    """The probe's preconditioned gradient, statistics from the whole batch."""
    state = probe.refresh(probe.fit(instance))
    return probe.precondition(state, gradient.clone())


@full_precision()
def direction_errors(probe: Probe, instance: Instance, damping: float = DAMPING) -> dict[str, float]:
    """How good the probe's step on the instance's gradient is against (F + damping I)^-1 g, solved exactly.

    The probe is damped by ``damping`` of the mean Fisher too, in its own unit, if it has such a damping.

    Returns:
        ``quality``, ``quality_rates``, ``gap_closed`` and ``length``; ``cosine``, ``relative`` and ``decrease``;
        ``gradient``; see ``METRICS``. NaN where the gradient or the step has no direction, or there is no gap.

    Raises:
        ValueError: the damping is none, or the step is not finite.
    """
    refuse_damping(damping)
    gradient = instance.gradient()
    step = step_of(with_damping(probe, damping, instance.terms), instance, gradient)
    return judge(step, exact_fisher(instance), gradient, damping)[0].values


def direction_rows(step: Tensor, fisher: ExactFisher, gradient: Tensor, damping: float, how: str = "") -> Iterator[Row]:
    """Every direction metric in every scope where it has a meaning; ``how`` says how the probe was damped.

    What is not finite makes all of them errors that say what it is.
    """
    method = ", ".join(filter(None, [f"damping {damping:g}", how]))
    scopes = [(NETWORK, OF_NETWORK), (BLOCKS, OF_BLOCKS), *((la.name, OF_LAYERS) for la in fisher.layers)]
    try:
        found = judge(step, fisher, gradient, damping)
    except ValueError as error:
        for scope, names in scopes:
            for name in names:
                yield Row(f"direction.{name}", scope=scope, method=method, status=Status.ERROR, reason=str(error))
        return
    for one, (scope, names) in zip(found, scopes, strict=True):
        for name in names:
            why = _why(name, step[one.part], gradient[one.part]) if math.isnan(one.values[name]) else ""
            yield _row(f"direction.{name}", one.values[name], scope, method, why)


def _row(metric: str, value: float, scope: str, method: str, why: str) -> Row:
    if not why:
        return Row(metric, value, scope, method=method)
    return Row(metric, scope=scope, method=method, status=Status.SKIPPED, reason=why)


def _why(name: str, step: Tensor, gradient: Tensor) -> str:
    """Why a number is not defined for a step and a gradient that are finite; empty where there is no reason."""
    if not gradient.any():
        return "the gradient is zero here: no step along it is better than another"
    if not step.any():
        return "the step is zero here: it has no direction"
    return (
        f"there is no gap of {LEAST_GAP:g} from the gradient to what it is held against" if name == "gap_closed" else ""
    )


def _refuse_flaws(vectors: dict[str, Tensor]) -> None:
    for name, vector in vectors.items():
        if flaw := numerics.flaw(vector):
            raise ValueError(f"the {name} is {flaw}")


def _unit(vector: Tensor) -> tuple[Tensor, float]:
    """The vector over a power of two, so that its largest entry is in [1, 2), and that power; exact, zero as it is.

    Squares of what is left neither overflow nor vanish.
    """
    largest = float(vector.abs().max()) if vector.numel() else 0.0
    size = 2.0 ** (math.frexp(largest)[1] - 1) if largest else 1.0
    return (vector.double() / size).to(vector.dtype), size


def _cosine(a: Tensor, b: Tensor) -> float:
    a, b = _unit(a)[0], _unit(b)[0]
    lengths = (numerics.sum_squares(a) * numerics.sum_squares(b)) ** 0.5
    return numerics.inner(a, b) / lengths if lengths else math.nan
