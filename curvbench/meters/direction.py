"""The quality of a probe's step for the gradient, against the exact damped natural gradient.

With C = F + damping I the ``quality`` of a step p is <g,p>^2 / (p^T C p . g^T C^-1 g) with the sign of <g,p>: the share
of the best decrease of the quadratic model that p reaches at its own best length, <g,p> / p^T C p. The quality does not
depend on the length of p, because a learning rate sets the length. ``quality_rates`` is the quality with the best
learning rate for every layer. ``gap_closed`` is the quality on a scale on which the gradient has 0 and the step by
exact layer blocks has 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.fisher import ExactFisher, exact_fisher
from curvbench.instance import Instance
from curvbench.instance.passes import full_precision
from curvbench.meters.error import BLOCKS, NETWORK
from curvbench.spec import DAMPING, Probe, Row, Status, refuse_damping
from curvbench.words import refuse_type

LEAST_GAP = 1e-3  # of quality: shares of a smaller gap would be rounding
OF_LAYERS = ("quality", "length", "gap_closed", "gradient")
OF_BLOCKS = ("quality", "length", "gap_closed", "quality_rates", "cosine", "relative", "decrease")
OF_NETWORK = (*OF_BLOCKS, "gradient")


def compare(step: Tensor, exact: Tensor, gradient: Tensor, curvature: float) -> dict[str, float]:
    """Cosine and relative distance to the exact step, and the share of the optimal decrease at the step's own length.

    The decrease is <g, p> - 1/2 p^T C p, which is negative for a step that is too long; ``curvature`` is p^T C p.
    """
    step = step.to(exact.dtype)
    length = numerics.sum_squares(exact) ** 0.5
    best = numerics.inner(gradient, exact) / 2
    reached = numerics.inner(gradient, step) - curvature / 2
    return {
        "cosine": _cosine(step, exact),
        "relative": numerics.sum_squares(step - exact) ** 0.5 / length if length else math.nan,
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
        return _with_totals(self.along)

    @property
    def curvatures(self) -> Tensor:
        """p^T (F + damping I) p in the same scopes, (2 + L,)."""
        network = self.responses.sum(1).square().sum() + self.damped.sum()
        return _with_totals(self.responses.square().sum(0) + self.damped, network)

    @property
    def rated(self) -> tuple[float, float]:
        """b^T H^-1 b for the network and its layer blocks: <g, p> with the best rate, of either sign, for every layer.

        b is <g, p> per layer and H = Z^T Z + damping diag |p|^2 with the responses Z; layer blocks take H's diagonal.
        """
        nonzero = self.damped > 0
        scale = self.damped[nonzero].rsqrt()
        Z, b = self.responses[:, nonzero] * scale, (self.along[nonzero] * scale)[:, None]
        solved = numerics.cholesky_solve(b, numerics.damped_cholesky(Z.T @ Z, 1.0))
        return numerics.inner(b, solved), float((b[:, 0].square() / (Z.square().sum(0) + 1)).sum())


def qualities(profile: Profile, best: Tensor) -> Tensor:
    """Quality in every scope, (2 + L,), for the scopes' ``best`` = g^T C^-1 g; NaN if gradient or step is zero."""
    along, curvature = profile.alongs, profile.curvatures
    share = (along / curvature) * (along / best)
    share = share.clamp_max(1.0) * along.sign()  # only rounding takes a share above 1
    return torch.where((curvature > 0) & (best > 0), share, math.nan)


class Judged(NamedTuple):
    """The metrics of a step in one scope, whose entries are ``part``; NaN means that a metric is not defined."""

    scope: str
    part: slice
    values: dict[str, float]


def judge(step: Tensor, fisher: ExactFisher, gradient: Tensor, damping: float) -> list[Judged]:
    """Every direction metric of a step (P,): of the network, of its layer blocks and of each layer.

    If the Fisher is streamed, one pass over its columns serves the layer blocks and all metrics of the step.

    Raises:
        ValueError: a step or the gradient is not finite, the step has another shape, or the damping is not above zero.
    """
    refuse_damping(damping)
    if step.shape != gradient.shape:
        raise ValueError(f"the step has shape {tuple(step.shape)}, the gradient {tuple(gradient.shape)}")
    _refuse_flaws({"step": step, "gradient": gradient})
    unit, size = _unit(step)
    exact, profile = _exact_and_profile(unit, fisher, gradient, damping)
    numbers = _numbers(profile, exact.of_gradient, exact.layerwise, numerics.inner(gradient, exact.network))
    numbers["length"] /= size
    rows = zip(*(column.tolist() for column in numbers.values()), strict=True)
    places = [(NETWORK, slice(None)), (BLOCKS, slice(None)), *((la.name, la.slice) for la in fisher.layers)]
    judged = [Judged(*place, dict(zip(numbers, row, strict=True))) for place, row in zip(places, rows, strict=True)]
    targets = (exact.network, exact.blocks)
    for scope, target, curvature in zip(judged, targets, profile.curvatures.tolist(), strict=False):
        scope.values.update(compare(step, target, gradient, size * (size * curvature)))
    for scope in judged:
        scope.values["gradient"] = _cosine(step[scope.part], gradient[scope.part])
    return judged


def best_products(fisher: ExactFisher, gradient: Tensor, damping: float) -> Tensor:
    """g^T (F + damping I)^-1 g of the network, of its layer blocks and of each layer, (2 + L,) in float64.

    Raises:
        ValueError: the gradient or an exact step is not finite, or the damping is not above zero.
    """
    refuse_damping(damping)
    _refuse_flaws({"gradient": gradient})
    parts = [(fisher.layer(layer.name), gradient[layer.slice]) for layer in fisher.layers]
    steps = [block.natural_gradient(part, damping) for block, part in parts]
    network = fisher.natural_gradient(gradient, damping)
    _refuse_flaws({f"exact step at damping {damping:g}": torch.cat([network, *steps])})
    each = [numerics.inner(part, step) for (_, part), step in zip(parts, steps, strict=True)]
    along = torch.tensor(each, dtype=torch.float64, device="cpu")
    return _with_totals(along, along.new_tensor(numerics.inner(gradient, network)))


def step_qualities(
    step: Tensor, fisher: ExactFisher, gradient: Tensor, damping: float, bests: Sequence[float]
) -> list[float]:
    """The quality of a step (P,) in every scope, without Gram matrices; ``bests`` are the numbers of ``best_products``.

    NaN means that the gradient or the step is zero.

    Raises:
        ValueError: the step or the gradient is not finite.
    """
    _refuse_flaws({"step": step, "gradient": gradient})
    unit, _ = _unit(step)
    profile = _profile(unit, gradient, fisher, damping, _responses(unit, fisher))
    values: list[float] = qualities(profile, profile.along.new_tensor(bests)).tolist()
    return values


def _numbers(profile: Profile, of_gradient: Profile, layerwise: Profile, best: float) -> dict[str, Tensor]:
    """The metrics that do not depend on the step's length, and its best multiple, in every scope, (2 + L,).

    ``of_gradient`` and ``layerwise`` are the profiles of the gradient and of the step by exact layer blocks. ``best``
    is the network's g^T C^-1 g; the values for the other scopes follow from ``layerwise``.
    """
    bests = _with_totals(layerwise.along, layerwise.along.new_tensor(best))
    quality, least = qualities(profile, bests), qualities(of_gradient, bests)
    most = torch.ones_like(least)
    most[0] = qualities(layerwise, bests)[0]
    rated = torch.cat([bests.new_tensor(profile.rated), (quality * bests).abs()[2:]])
    return {
        "quality": quality,
        "length": torch.where(quality.isnan(), math.nan, profile.alongs / profile.curvatures),
        "gap_closed": torch.where(most - least < LEAST_GAP, math.nan, (quality - least) / (most - least)),
        "quality_rates": torch.where(quality.isnan(), math.nan, (rated / bests).clamp_max(1.0)),
    }


class Exact(NamedTuple):
    """The exact steps (P,) for a gradient at a damping, and the profiles of the gradient and of the blocks' step."""

    gradient: Tensor
    damping: float
    network: Tensor
    blocks: Tensor
    of_gradient: Profile
    layerwise: Profile


_EXACT: WeakKeyDictionary[ExactFisher, Exact] = WeakKeyDictionary()
"""The last exact steps of a Fisher, because all probes that are compared in one process are judged by the same."""


def _exact_and_profile(step: Tensor, fisher: ExactFisher, gradient: Tensor, damping: float) -> tuple[Exact, Profile]:
    """The exact steps, and the profile of a step; raises ValueError if an exact step is not finite."""
    known = _EXACT.get(fisher)
    if known is not None and known.damping == damping and torch.equal(known.gradient, gradient):
        return known, _profile(step, gradient, fisher, damping, _responses(step, fisher))
    network = fisher.natural_gradient(gradient, damping)
    blocks, (profile, of_gradient, layerwise) = _profiles(step, fisher, gradient, damping)
    _refuse_flaws({f"exact step at damping {damping:g}": torch.cat([network, blocks])})
    found = Exact(gradient, damping, network, blocks, of_gradient, layerwise)
    if not fisher.is_streamed:  # of large networks, whose vectors had better not stay
        _EXACT[fisher] = found
    return found, profile


def _profiles(step: Tensor, fisher: ExactFisher, gradient: Tensor, damping: float) -> tuple[Tensor, list[Profile]]:
    """The step by exact layer blocks, and the profiles of a step, of the gradient and of that step, in one pass."""
    exact, responses = [], []
    for layer in fisher.layers:
        block, part = fisher.layer(layer.name), gradient[layer.slice]
        solved = block.natural_gradient(part, damping)
        vectors = torch.stack([v.to(solved.dtype) for v in (step[layer.slice], part, solved)], dim=1)
        responses.append(_responses_of(block, vectors))
        exact.append(solved)
    blocks, stacked = torch.cat(exact), torch.stack(responses, dim=1)
    steps = (step, gradient, blocks)
    return blocks, [_profile(p, gradient, fisher, damping, stacked[..., k]) for k, p in enumerate(steps)]


def _responses(step: Tensor, fisher: ExactFisher) -> Tensor:
    """The responses V^T p / sqrt(terms) of a step p (P,) layer by layer, (R N, L)."""
    parts = [(fisher.layer(layer.name), step[layer.slice, None].to(fisher.dtype)) for layer in fisher.layers]
    return torch.stack([_responses_of(block, part)[:, 0] for block, part in parts], dim=1)


def _responses_of(block: ExactFisher, vectors: Tensor) -> Tensor:
    """The responses (R N, K) of vectors (P, K) to one matrix."""
    return block.project(vectors).double().flatten(0, 1) / block.terms**0.5


def _profile(step: Tensor, gradient: Tensor, fisher: ExactFisher, damping: float, responses: Tensor) -> Profile:
    parts = [layer.slice for layer in fisher.layers]
    along = [numerics.inner(gradient[part], step[part]) for part in parts]
    squares = [damping * numerics.sum_squares(step[part]) for part in parts]
    return Profile(responses.new_tensor(along), responses, responses.new_tensor(squares))


def _with_totals(each: Tensor, network: Tensor | None = None) -> Tensor:
    """The network's number (None means the sum), the layer blocks' number (the sum) and the layers', (2 + L,)."""
    blocks = each.sum()
    return torch.cat([torch.stack([blocks if network is None else network, blocks]), each])


def with_damping(probe: Probe, damping: float, terms: int = 1) -> Probe:
    """The probe damped by ``damping`` of the mean Fisher of ``terms`` loss terms; itself if it has no damping."""
    unit = probe.damping_unit(terms)
    return probe if unit is None else replace(probe, damping=damping * unit)  # type: ignore[type-var]


def how_damped(probe: Probe, damping: float, terms: int) -> str:
    """The text of a row's method on ``with_damping``; empty if the probe's damping is in the mean Fisher's unit."""
    unit = probe.damping_unit(terms)
    if unit is None:
        return f"own damping ({probe.about.damping})" if probe.about.damping else "own damping"
    return "" if unit == 1 else f"as the probe's damping={damping * unit:g}"


def step_of(probe: Probe, instance: Instance, gradient: Tensor) -> Tensor:
    """The probe's preconditioned gradient (P,), with statistics of the whole batch."""
    state = probe.refresh(probe.fit(instance))
    return probe.precondition(state, gradient.clone())


@full_precision()
def direction_errors(probe: Probe, instance: Instance, damping: float = DAMPING) -> dict[str, float]:
    """Metrics of the probe's step on the instance's gradient against the exact (F + damping I)^-1 g.

    If the probe has a damping, it is set to ``damping`` of the mean Fisher, converted into the probe's own unit.

    Returns:
        ``quality``, ``quality_rates``, ``gap_closed`` and ``length``; ``cosine``, ``relative`` and ``decrease``;
        ``gradient``; see ``METRICS``. NaN means that the gradient or the step is zero, or that there is no gap.

    Raises:
        ValueError: the damping is not above zero, or the step is not finite.
    """
    refuse_type("probe", probe, Probe, "give curvbench.probe(name)")
    refuse_type("instance", instance, Instance, "give curvbench.Instance(model, inputs, targets)")
    refuse_damping(damping)
    gradient = instance.gradient()
    step = step_of(with_damping(probe, damping, instance.terms), instance, gradient)
    return judge(step, exact_fisher(instance), gradient, damping)[0].values


def direction_rows(step: Tensor, fisher: ExactFisher, gradient: Tensor, damping: float, how: str = "") -> Iterator[Row]:
    """Every direction metric in every scope in which the metric has a meaning; ``how`` is the text of ``how_damped``.

    If a vector is not finite, all rows are errors, whose reason names the vector.
    """
    method = ", ".join(filter(None, [f"damping {damping:g}", how]))
    scopes = [(NETWORK, OF_NETWORK), (BLOCKS, OF_BLOCKS), *((la.name, OF_LAYERS) for la in fisher.layers)]
    try:
        judged = judge(step, fisher, gradient, damping)
    except ValueError as error:
        for scope, names in scopes:
            for name in names:
                yield Row(f"direction.{name}", scope=scope, method=method, status=Status.ERROR, reason=str(error))
        return
    for (_, part, values), (scope, names) in zip(judged, scopes, strict=True):
        for name in names:
            why = _why(name, step[part], gradient[part]) if math.isnan(values[name]) else ""
            yield _row(f"direction.{name}", values[name], scope, method, why)


def _row(metric: str, value: float, scope: str, method: str, why: str) -> Row:
    if not why:
        return Row(metric, value, scope, method=method)
    return Row(metric, scope=scope, method=method, status=Status.SKIPPED, reason=why)


def _why(name: str, step: Tensor, gradient: Tensor) -> str:
    """Why a metric of a finite step and gradient is not defined; empty if there is no reason."""
    if not gradient.any():
        return "the gradient is zero here: no step along it is better than another"
    if not step.any():
        return "the step is zero here: it has no direction"
    if name == "gap_closed":
        return f"there is no gap of {LEAST_GAP:g} between the gradient and the step by exact layer blocks"
    return ""


def _refuse_flaws(vectors: dict[str, Tensor]) -> None:
    for name, vector in vectors.items():
        if flaw := numerics.flaw(vector):
            raise ValueError(f"the {name} is {flaw}")


def _unit(vector: Tensor) -> tuple[Tensor, float]:
    """The vector divided by a power of two, so that its largest entry is in [1, 2), and the power; zero stays zero.

    The division is exact, and squares of the result neither overflow nor vanish.
    """
    largest = float(vector.abs().max()) if vector.numel() else 0.0
    size = 2.0 ** (math.frexp(largest)[1] - 1) if largest else 1.0
    return (vector.double() / size).to(vector.dtype), size


def _cosine(a: Tensor, b: Tensor) -> float:
    a, b = _unit(a)[0], _unit(b)[0]
    lengths = (numerics.sum_squares(a) * numerics.sum_squares(b)) ** 0.5
    return numerics.inner(a, b) / lengths if lengths else math.nan
