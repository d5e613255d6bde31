"""What one method costs on a network: FLOPs of its phases, bytes of its state, and how well both are known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from curvbench.meters.cost import published_cost
from curvbench.prediction import of_columns, of_factors, of_vectors, work
from curvbench.prediction.layout import Shapes
from curvbench.prediction.limits import in_tiles, refusal
from curvbench.prediction.passes import Passes, passes
from curvbench.prediction.products import Case
from curvbench.spec import FisherProbe, Probe

Dtype = Literal["bfloat16", "float32", "float64"]
ITEMSIZES: Mapping[str, int] = {"bfloat16": 2, "float32": 4, "float64": 8}
LEAST_ITEMSIZE = 4  # statistics of bfloat16 weights are in float32: see ``numerics``
WIDE_ITEMSIZE = 8
VECTORS = 3  # of P numbers in a step: the gradient as a vector, the direction, and the direction by parameter
QUANTITIES = ("statistics", "invert", "precondition", "state")
ALL = frozenset(QUANTITIES)
OF_COLUMNS = frozenset({"statistics", "precondition", "state"})


class NoCost(ValueError):
    """Nobody has said what a method costs."""


class Method(NamedTuple):
    """How a method is priced. ``leading``: the quantities of which only the leading order is known.

    ``leading_tied``: those that are known so of a network with a parameter that is tied in two orientations.
    ``leading_terms``: those of a network with several loss terms per sample.
    """

    rule: work.Rule
    reads: work.Reads = work.scores
    leading: frozenset[str] = frozenset()
    leading_tied: frozenset[str] = frozenset()
    leading_terms: frozenset[str] = frozenset()


METHODS: Mapping[str, Method] = {
    "adafactor": Method(of_columns.adafactor, work.of_source, leading_tied=frozenset({"statistics"})),
    "adafisher": Method(of_factors.adafisher),
    "adahessian": Method(of_vectors.adahessian, work.hessian_or_fisher, leading=frozenset({"statistics"})),
    "adam": Method(of_vectors.adam, work.nothing),
    "adamw": Method(of_vectors.adamw, work.nothing),
    "cg": Method(of_columns.cg, leading_tied=OF_COLUMNS),
    "cwngd": Method(of_columns.cwngd),
    "diag": Method(of_columns.diag, leading_tied=frozenset({"statistics"})),
    "eigen": Method(of_columns.eigen, leading_tied=frozenset({"statistics"})),
    "ekfac": Method(of_factors.ekfac, leading_tied=frozenset({"statistics"})),
    "eva": Method(of_factors.eva, work.one_score, leading_tied=frozenset({"statistics"})),
    "fngd": Method(of_columns.fngd, leading_tied=OF_COLUMNS),
    "full": Method(of_columns.full, leading_tied=OF_COLUMNS),
    "ginger": Method(of_vectors.ginger, work.another_gradient),
    "hutchinson": Method(of_vectors.hutchinson, work.products, leading=frozenset({"statistics"})),
    "hylo": Method(of_columns.hylo, leading_terms=ALL),
    "identity": Method(of_vectors.identity, work.nothing),
    "ingd": Method(of_factors.ingd, leading_tied=frozenset({"statistics"})),
    "ief": Method(of_columns.ief, leading_tied=OF_COLUMNS),
    "kfac": Method(of_factors.kfac),
    "klshampoo": Method(of_factors.klshampoo, work.of_statistic, leading=frozenset({"statistics"})),
    "layer": Method(of_columns.layer, leading_tied=OF_COLUMNS),
    "lbfgs": Method(of_vectors.lbfgs, work.hessian, leading=ALL),
    "lngd": Method(of_factors.lngd, work.local_maps, leading=frozenset({"statistics"})),
    "mbf": Method(of_columns.mbf, leading_tied=frozenset({"statistics"})),
    "psgd": Method(of_factors.psgd, work.of_statistic),
    "ngplus": Method(of_columns.ngplus, work.of_source, leading_tied=frozenset({"statistics"})),
    "muon": Method(of_factors.muon, work.nothing),
    "mfac": Method(of_vectors.mfac, work.of_statistic),
    "nystrom": Method(of_columns.nystrom, leading_tied=frozenset({"statistics"})),
    "qng": Method(of_vectors.qng, work.another_gradient),
    "sgdm": Method(of_vectors.sgdm, work.nothing),
    "shampoo": Method(of_factors.shampoo, work.of_statistic),
    "skfac": Method(of_factors.skfac, leading_tied=ALL),
    "soap": Method(of_factors.soap, work.of_statistic, leading=frozenset({"statistics"})),
    "sophia": Method(of_vectors.sophia, work.of_draws, leading=frozenset({"statistics"})),  # a draw in some updates
    "spring": Method(of_columns.spring, leading_tied=frozenset({"statistics", "state"})),
    "thor": Method(of_factors.thor),
    "tkfac": Method(of_factors.tkfac),
    "tnt": Method(of_factors.tnt, leading_tied=frozenset({"statistics"})),
    "unit": Method(of_columns.unit),
}


@dataclass(frozen=True)
class Cost:
    """What a method costs on a network, beside the gradient of a step of SGD with momentum.

    ``probe``: its label. ``gradient``: FLOPs of one step of SGD, both passes and the update. ``statistics``: FLOPs of
    one update, the ``passes`` through the network included. ``invert``: FLOPs of one refresh. ``precondition``: FLOPs
    of one step. ``state``: bytes that are kept between steps. ``scratch``: bytes beside old and new state in a step
    (vectors, score columns), in leading order. ``sgd``: bytes of weights, gradient, momentum and stored activations, in
    leading order. ``refresh``: the steps from one update and refresh to the next. ``learns``: whether the method takes
    in every step's batch all the same. ``leading``: the quantities of which only the leading order is known.
    ``refused``: why the method declines the network; empty if it does not. ``budget``: bytes that there are; None means
    that nobody asked.
    """

    probe: str
    gradient: float
    passes: float
    statistics: float
    invert: float
    precondition: float
    state: float
    scratch: float
    sgd: float
    refresh: int
    learns: bool
    leading: frozenset[str]
    refused: str = ""
    budget: float | None = None

    @property
    def step(self) -> float:
        """FLOPs of a step on average over the steps of an interval, that of SGD included."""
        return self.gradient + self._fixed + self._spread / self.refresh

    @property
    def gradients(self) -> float:
        """A step in units of a step of SGD."""
        return self.step / self.gradient

    @property
    def interval(self) -> float:
        """The smallest ``refresh`` at which the method adds at most a tenth of a gradient to a step, or infinity."""
        left = self.gradient / 10 - self._fixed
        if self._spread == 0:
            return 1.0 if left >= 0 else math.inf
        return max(1.0, math.ceil(self._spread / left)) if left > 0 else math.inf

    @property
    def _fixed(self) -> float:
        """FLOPs of every step beside SGD's."""
        return self.precondition + (self.statistics if self.learns else 0.0)

    @property
    def _spread(self) -> float:
        """FLOPs of one step of an interval."""
        return self.invert + (0.0 if self.learns else self.statistics)

    @property
    def peak(self) -> float:
        """Bytes beside those of SGD, at most: the old state, the next one and what exists while it is made."""
        return 2 * self.state + self.scratch

    @property
    def total(self) -> float:
        """Bytes of a training with the method."""
        return self.sgd + self.peak

    @property
    def fits(self) -> bool | None:
        """Whether the total is within the budget and the method takes the network; None without a budget."""
        return None if self.budget is None else not self.refused and self.total <= self.budget

    def record(self) -> dict[str, Any]:
        """All numbers as JSON can hold them."""
        derived = {key: getattr(self, key) for key in ("step", "gradients", "interval", "peak", "total", "fits")}
        derived["interval"] = self.interval if math.isfinite(self.interval) else None
        return {**asdict(self), **derived, "leading": sorted(self.leading)}


def price(probe: Probe, shapes: Shapes, refresh: int = 1, dtype: str = "float32", budget: float | None = None) -> Cost:
    """What a method costs on a network; raises NoCost, a ValueError, if nobody has said."""
    itemsize = max(ITEMSIZES[dtype], LEAST_ITEMSIZE)
    known = passes(shapes)
    spent, reads, leading = _spent(probe, shapes, known, itemsize)
    return Cost(
        probe.label,
        known.gradient,
        reads,
        reads + spent.statistics,
        spent.invert,
        spent.precondition,
        spent.kept * itemsize + spent.wide * WIDE_ITEMSIZE,
        (spent.scratch + VECTORS * shapes.parameters * bool(reads + sum(spent))) * itemsize,
        _of_sgd(shapes, ITEMSIZES[dtype]),
        refresh,
        learns_over_steps(probe),
        leading,
        _refusal(probe, shapes, itemsize),
        budget,
    )


def _spent(probe: Probe, shapes: Shapes, known: Passes, itemsize: int) -> tuple[work.Work, float, frozenset[str]]:
    """The work, the passes and the quantities of leading order; those of probes among the hyperparameters are added."""
    R = shapes.columns(probe.fisher_type or "type-2", probe.mc_samples)
    if _is_shipped(probe) and probe.name in METHODS:
        spent, reads, leading = _modelled(probe, shapes, R, known, itemsize)
    else:
        spent, reads, leading = _published(probe, shapes, R, known)
    for inner in probe.inner.values():
        more, more_reads, more_leading = _spent(inner, shapes, known, itemsize)
        spent = spent.plus(more._replace(precondition=probe.inner_solves * more.precondition))
        reads, leading = reads + more_reads, leading | more_leading
    return spent, reads, leading


def _is_shipped(probe: Probe) -> bool:
    return type(probe).__module__ == f"curvbench.probes.{probe.name}"


def _refusal(probe: Probe, shapes: Shapes, itemsize: int) -> str:
    """Why the probe, or one among its hyperparameters, declines the network; empty if none does."""
    R = shapes.columns(probe.fisher_type or "type-2", probe.mc_samples)
    own = refusal(probe, shapes, R, itemsize) if _is_shipped(probe) else ""
    inner = ((name, value, _refusal(value, shapes, itemsize)) for name, value in probe.inner.items())
    return own or next((f"{name}={value.label}: {why}" for name, value, why in inner if why), "")


def learns_over_steps(probe: Probe) -> bool:
    """Whether the method takes in every step's batch, however old its factorization may be.

    A method that only follows the batches reads the scores of the training's own passes, and learns nothing from them.
    """
    when_due = isinstance(probe, FisherProbe) and probe.hyperparameters.get("source", "columns") == "columns"
    return "updates" in probe.hyperparameters and not when_due


def _modelled(
    probe: Probe, shapes: Shapes, R: int, known: Passes, itemsize: int
) -> tuple[work.Work, float, frozenset[str]]:
    method = METHODS[probe.name]
    of = {**probe.hyperparameters, "fisher_type": probe.fisher_type or "type-2"}
    of |= {"mixes": mixes(shapes), "terms": shapes.terms}
    tiled = in_tiles(probe, shapes, R, itemsize)
    rule = of_columns.tiled if tiled else method.rule
    total = of_columns.shared(probe.name, shapes.samples, R, of)
    if method.reads in (work.scores, work.one_score) or of.get("source") == "columns":
        total = total.plus(work.Work(shapes.slopes(of["fisher_type"], probe.mc_samples)))
    for block in shapes.blocks:
        total = total.plus(rule(Case(block, shapes.samples, R, of)), block.repeat)
    return total, method.reads(known, R, of), _leading(method, shapes) | (ALL if tiled else frozenset())


def _leading(method: Method, shapes: Shapes) -> frozenset[str]:
    """The quantities of which only the leading order is known on a network."""
    is_tied = any(block.kind == "tied" for block in shapes.blocks)
    has_terms = shapes.terms > 1
    return method.leading.union(*[method.leading_tied] * is_tied, *[method.leading_terms] * has_terms)


def mixes(shapes: Shapes) -> bool:
    """Whether numbers of one layer's output meet before the next layer: norms over channels, and attention do that."""
    kinds = {layer.kind for layer in shapes.layers}
    return "attention" in kinds or ("norm" in kinds and "conv" not in kinds)


def _published(probe: Probe, shapes: Shapes, R: int, known: Passes) -> tuple[work.Work, float, frozenset[str]]:
    """The formulas that a method publishes, in which every block is a Linear."""
    if not probe.about.cost:
        raise NoCost(f"{probe.label} has no estimate, because it publishes no cost (About.cost)")
    cost = published_cost(probe, list(shapes.each()), shapes.samples, R)
    statistics, invert, precondition = (2 * cost.get(key, 0.0) for key in QUANTITIES[:3])
    reads = work.scores(known, R, {}) if probe.fisher_type else 0.0
    return work.Work(statistics, invert, precondition, cost.get("memory", 0.0)), reads, ALL


def _of_sgd(shapes: Shapes, itemsize: int) -> float:
    """Weights, gradient and momentum, and the outputs of all layers."""
    numbers = sum(
        float(layer.repeat * layer.positions * layer.outputs) for layer in shapes.layers if layer.kind != "vector"
    )
    return itemsize * (3.0 * shapes.parameters + shapes.samples * numbers)
