"""Methods of one problem as a verdict reads them: the gap that each closes, its cost at an interval, its damping."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

import numpy as np
import pandas as pd

from curvbench.analysis import roles
from curvbench.analysis.frames import is_cell_ending, labels, texts
from curvbench.spec import Status

GAP, BEST_GAP = ("direction.gap_closed", "network"), ("damping.gap_closed", "network")
DAMPING, PLATEAU = ("damping.best", "network"), ("damping.plateau", "network")
MEMORY = ("memory.ratio", "step")
PHASES = ("statistics", "invert", "precondition")
WANTED = (GAP, BEST_GAP, DAMPING, PLATEAU, MEMORY, *(("flops.ratio", phase) for phase in PHASES))
METRICS_READ = frozenset(metric for metric, _ in WANTED)
NEGLIGIBLE = 0.1  # of a gradient: extra cost below it is called none
TIE = 0.02  # of the gap: on one batch, a smaller difference is none


class Budget(NamedTuple):
    """What a step may cost: gradients in FLOPs, and multiples of SGD's peak memory, at a refresh interval in steps."""

    flops: float = 2.0
    memory: float = 3.0
    refresh: int = 100

    def __str__(self) -> str:
        limits = [f"{self.flops:g} gradient{'s' * (self.flops != 1)} a step"] if math.isfinite(self.flops) else []
        limits += [f"{self.memory:g} times SGD's memory"] if math.isfinite(self.memory) else []
        return f"{' and '.join(limits) or 'any budget'}, with statistics refreshed {every(self.refresh)}"


def every(refresh: int) -> str:
    """The interval in words."""
    return "at every step" if refresh == 1 else f"every {refresh} steps"


def budget(flops: float, memory: float, refresh: int) -> Budget:
    """A budget; raises ValueError for numbers that are none."""
    for name, value in (("flops", flops), ("memory", memory)):
        if not value > 0:
            raise ValueError(f"{name} must be above 0, in multiples of a plain gradient step, got {value:g}")
    if not math.isfinite(refresh) or refresh != int(refresh) or refresh < 1:
        raise ValueError(f"refresh must be a whole number of steps of at least 1, got {refresh:g}")
    return Budget(flops, memory, int(refresh))


class Cost(NamedTuple):
    """FLOPs of a method's phases in gradients. ``moments``: the statistics are paid at every step."""

    statistics: float
    invert: float
    precondition: float
    moments: bool = False

    @property
    def of_each_step(self) -> float:
        """What the method adds to every step."""
        return self.precondition + (self.statistics if self.moments else 0.0)

    @property
    def of_a_refresh(self) -> float:
        """What the method adds to a step that refreshes."""
        return self.invert + (0.0 if self.moments else self.statistics)

    def at(self, refresh: int) -> float:
        """Gradients of a step, its own included, if every ``refresh``-th step refreshes statistics and factors."""
        return 1 + self.of_each_step + self.of_a_refresh / refresh

    def negligible_from(self, extra: float = NEGLIGIBLE) -> int | None:
        """The least interval at which the method adds less than ``extra`` gradients to a step. None means never."""
        if self.of_each_step >= extra:
            return None
        interval = max(1, math.ceil(self.of_a_refresh / (extra - self.of_each_step)))
        return interval + (self.of_each_step + self.of_a_refresh / interval >= extra)


@dataclass(frozen=True)
class Method:
    """A method as measured.

    ``gaps``: the share of the gap that it closes, by batch or seed, at its best damping if that was looked for.
    ``memory``: the peak over that of SGD. ``damping``: the best one, of the mean Fisher. ``plateau``: its width in
    decades. A cost of None and NaN mean that the number was not measured.
    """

    label: str
    gaps: Mapping[int, float] = field(default_factory=dict)
    cost: Cost | None = None
    memory: float = math.nan
    damping: float = math.nan
    plateau: float = math.nan

    @property
    def gap(self) -> float:
        """The median over batches or seeds; NaN without any."""
        return median(self.gaps.values()) if self.gaps else math.nan

    @property
    def is_gradient(self) -> bool:
        """Whether its step is the plain gradient, which closes nothing of the gap."""
        return roles.name_of(self.label) in roles.BASELINES

    @property
    def has_price(self) -> bool:
        """Whether both FLOPs and memory were measured."""
        return self.cost is not None and not math.isnan(self.memory)

    def gradients(self, refresh: int) -> float:
        """Gradients of a step at a refresh interval; NaN if they were not measured."""
        return math.nan if self.cost is None else self.cost.at(refresh)

    def excess(self, budget: Budget) -> float:
        """The largest multiple of a limit of the budget that the method takes: it fits up to 1. NaN means unknown."""
        shares = [self.gradients(budget.refresh) / budget.flops if math.isfinite(budget.flops) else 0.0]
        shares += [self.memory / budget.memory if math.isfinite(budget.memory) else 0.0]
        return math.nan if any(map(math.isnan, shares)) else max(shares)

    def fits(self, budget: Budget) -> bool:
        """Whether the method is known to stay within the budget."""
        return self.excess(budget) <= 1


def methods(rows: pd.DataFrame) -> list[Method]:
    """The methods among the rows of one problem, without references and bounds, in the order of the rows."""
    probes = [label for label in dict.fromkeys(labels(rows, "probe")) if roles.is_method(label)]
    by_probe = _values(rows)
    return [_method(label, by_probe.get(label, {})) for label in probes]


def compared(rows: pd.DataFrame) -> list[Method]:
    """The methods that close some share of the gap, of either sign, the best first, without the plain gradient."""
    known = [method for method in methods(rows) if method.gaps and not method.is_gradient]
    return sorted(known, key=lambda method: -method.gap)


def winners(rivals: Sequence[Method], budget: Budget) -> tuple[Method | None, Method | None]:
    """The best of the methods, best first, that stay within the budget, and the best of all."""
    return next((method for method in rivals if method.fits(budget)), None), next(iter(rivals), None)


def seeds(rivals: Sequence[Method]) -> int:
    """The number of batches or seeds on which methods were compared."""
    return len({seed for method in rivals for seed in method.gaps})


def are_tied(a: Method, b: Method) -> bool:
    """Whether two methods cannot be told apart on the batches or seeds that both have.

    Over several the ranges overlap; on one the gaps are closer than ``TIE``.
    """
    common = sorted(a.gaps.keys() & b.gaps.keys())
    x, y = [a.gaps[seed] for seed in common], [b.gaps[seed] for seed in common]
    if len(common) < 2:
        return not common or abs(x[0] - y[0]) < TIE
    return ranges_meet(x, y)


def ranges_meet(a: Collection[float], b: Collection[float]) -> bool:
    """Whether the ranges of two sets of values have a point in common."""
    return max(min(a), min(b)) <= min(max(a), max(b))


def gradient_like(method: Method) -> Method:
    """The plain gradient on the batches of a method: it closes nothing of the gap."""
    return Method("the plain gradient", dict.fromkeys(method.gaps, 0.0))


def lacking(rows: pd.DataFrame) -> dict[str, str]:
    """Why probes, references included, have no share of the gap with some seed: ``timeout: too slow`` by label."""
    probes = labels(rows, "probe")
    is_gap, is_ok = _is(rows, GAP) | _is(rows, BEST_GAP), rows["status"] == Status.OK
    cells = texts(rows, "cell_id")
    failed = rows[(is_gap | is_cell_ending(rows)) & ~is_ok & ~cells.isin(cells[is_gap & is_ok])]
    whys = (texts(failed, "status") + ": " + texts(failed, "reason")).str.removesuffix(": ")
    seeds_of = rows["seed"].groupby(probes).nunique()
    reasons: dict[str, str] = {}
    for label, group in whys.groupby(probes[failed.index], sort=False):
        failing = sorted(failed.loc[group.index, "seed"].unique())
        some = f" with {listed_seeds(failing)}" if len(failing) < seeds_of[label] else ""
        reasons[str(label)] = "; ".join(dict.fromkeys(group)) + some
    return reasons


def listed_seeds(numbers: Sequence[int]) -> str:
    """``seed 1``, ``seeds 1, 2``."""
    return f"seed{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"


Values = dict[tuple[str, str], dict[int, float]]


def _is(rows: pd.DataFrame, quantity: tuple[str, str]) -> pd.Series:
    return rows["metric"].eq(quantity[0]).fillna(False) & rows["scope"].eq(quantity[1]).fillna(False)


def _values(rows: pd.DataFrame) -> dict[str, Values]:
    """Finite values by probe, by metric and scope, by seed; the median if several runs have one."""
    chosen = rows[rows["metric"].isin(METRICS_READ) & (rows["status"] == Status.OK)]
    chosen = chosen[np.isfinite(chosen["value"].to_numpy("float64"))]
    keys = [labels(chosen, "probe"), texts(chosen, "metric"), texts(chosen, "scope"), chosen["seed"]]
    found: dict[str, Values] = {}
    for (label, metric, scope, seed), value in chosen["value"].groupby(keys, sort=False).median().items():
        if (metric, scope) in WANTED:
            found.setdefault(label, {}).setdefault((metric, scope), {})[int(seed)] = float(value)
    return found


def _method(label: str, values: Values) -> Method:
    statistics, invert, precondition = (_middle(values, ("flops.ratio", phase)) for phase in PHASES)
    is_priced = not math.isnan(statistics + invert + precondition)
    return Method(
        label,
        _most(values.get(GAP, {}), values.get(BEST_GAP, {})),
        Cost(statistics, invert, precondition, roles.learns_at_every_step(label)) if is_priced else None,
        _middle(values, MEMORY),
        _middle_of_powers(values, DAMPING),
        _middle(values, PLATEAU),
    )


def _most(a: Mapping[int, float], b: Mapping[int, float]) -> dict[int, float]:
    """The larger value by seed; a seed that one of them lacks has the other's."""
    return {seed: max(a.get(seed, -math.inf), b.get(seed, -math.inf)) for seed in sorted({*a, *b})}


def _middle(values: Values, quantity: tuple[str, str]) -> float:
    by_seed = values.get(quantity, {})
    return median(by_seed.values()) if by_seed else math.nan


def _middle_of_powers(values: Values, quantity: tuple[str, str]) -> float:
    """The median between powers, so that two dampings have their geometric mean."""
    positive = [math.log10(value) for value in values.get(quantity, {}).values() if value > 0]
    return 10 ** median(positive) if positive else math.nan
