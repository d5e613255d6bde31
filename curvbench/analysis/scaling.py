"""How cost grows with size: exponents of the counted costs and of the published model, over the same sizes.

A sweep is a set of cells that differ in one numeric hyperparameter of the problem or of the probe (width, batch,
rank). An exponent is the slope of a least-squares line through the logarithms at the upper end of the sweep, the
larger half of its sizes and at least three, because terms of lower order weigh least there. Its interval is Student's
at 95 %, from the scatter about the line. Counts have no noise, so that the interval tells how straight the line is.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from curvbench import registry
from curvbench.analysis.frames import labels, texts
from curvbench.analysis.views import arguments
from curvbench.spec import Component, Status
from curvbench.spec.labels import arguments_of, split_label

PHASES = ("statistics", "invert", "precondition")
QUANTITIES = (*PHASES, "memory")
"""Costs whose growth is fitted: a method's FLOPs per phase without network passes, and the bytes of its state."""

DRIFT = 0.1
"""Largest relative change of counted over modelled in the last doubling for which the ratio counts as a constant."""

RESOLUTION = 0.05
"""Exponents nearer than this agree even if their intervals do not meet: 3.5 % of cost per doubling."""

ROUNDING = 1e-9  # an exponent up to this is the exponent of a constant cost

LEGEND = (
    "exponents of cost in the swept hyperparameter (..) at the upper end of the sweep, with 95 % intervals: counted, "
    "network passes apart, and published, of the model over the same sizes; ratio: counted over modelled at the "
    "largest size; drift: its change in the last doubling; ! where it is no constant or the exponents differ"
)

_STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)  # two-sided 95 %, by degrees of freedom


@dataclass(frozen=True)
class Exponent:
    """The slope in the logarithms and half the width of its interval; NaN if a cost is not positive."""

    value: float
    half: float

    def agrees(self, other: Exponent) -> bool:
        """Whether the intervals meet, or the values are nearer than ``RESOLUTION``."""
        return abs(self.value - other.value) <= max(self.half + other.half, RESOLUTION)

    def __str__(self) -> str:
        return "" if math.isnan(self.value) else f"{self.value + 0:.2f} ± {self.half:.2f}"


class Growth(NamedTuple):
    """One quantity of one probe over one sweep; the labels of problem and probe contain the range of sizes.

    ``ratio``: counted over modelled at the largest size; ``drift``: its relative change in the last doubling.
    ``ratio``, ``drift`` and ``published`` are NaN without a model.
    """

    problem: str
    probe: str
    quantity: str
    counted: Exponent
    published: Exponent
    ratio: float
    drift: float

    @property
    def agrees(self) -> bool:
        """Whether counted over modelled is a constant by ``DRIFT`` and the exponents agree."""
        return abs(self.drift) <= DRIFT and self.counted.agrees(self.published)


def exponent(sizes: NDArray[np.float64], costs: NDArray[np.float64]) -> Exponent:
    """The exponent at the upper end of a sweep, sizes ascending.

    Raises:
        ValueError: fewer than three sizes.
    """
    if len(sizes) < 3:
        raise ValueError(f"an exponent with an interval takes three sizes, got {len(sizes)}")
    upper = max(3, math.ceil(len(sizes) / 2))
    if not bool((costs[-upper:] > 0).all()):
        return Exponent(math.nan, math.nan)
    x, y = np.log(sizes[-upper:]), np.log(costs[-upper:])
    x, y = x - x.mean(), y - y.mean()
    slope = float(x @ y / (x @ x))
    freedom = upper - 2
    variance = float(np.square(y - slope * x).sum() / freedom / (x @ x))
    return Exponent(slope, _STUDENT[min(freedom, len(_STUDENT)) - 1] * variance**0.5)


def growth(frame: pd.DataFrame) -> list[Growth]:
    """Every sweep in the rows of a run, for every quantity that the method or its model has."""
    rows = [_fitted(sweep, costs) for sweep, costs in _sweeps(frame).items()]
    return [row for row in rows if row is not None]


def growing(frame: pd.DataFrame) -> pd.DataFrame:
    """``growth`` as a table, without the quantities that are constant over a sweep.

    Its columns are problem, probe, cost, counted and published with half their intervals (``+-``), ratio, drift and
    agrees. It is empty if nothing was swept.
    """
    rows = [row for row in growth(frame) if abs(row.counted.value) > ROUNDING] if _may_hold_sweeps(frame) else []
    return pd.DataFrame([_as_dict(row) for row in rows], columns=list(_COLUMNS))


def _may_hold_sweeps(frame: pd.DataFrame) -> bool:
    """Whether a hyperparameter is written with two sizes or more, found without importing components."""
    seen: dict[tuple[str, str], set[float]] = defaultdict(set)
    for kind in ("problem", "probe"):
        cells = frame[[kind, f"{kind}_args"]].drop_duplicates()
        for name, given in zip(cells[kind], texts(cells, f"{kind}_args"), strict=True):
            for key, value in arguments(given).items():
                if isinstance(value, float):
                    seen[name, key].add(value)
    return any(len(values) > 1 for values in seen.values())


_COLUMNS = tuple("problem,probe,cost,counted,counted +-,published,published +-,ratio,drift,agrees".split(","))


def _as_dict(row: Growth) -> dict[str, object]:
    exponents = (row.counted.value, row.counted.half, row.published.value, row.published.half)
    values = (row.problem, row.probe, row.quantity, *exponents, row.ratio, row.drift, row.agrees)
    return dict(zip(_COLUMNS, values, strict=True))


class _Cost(NamedTuple):
    """One quantity of one cell; ``modelled`` is NaN without a model."""

    size: float
    counted: float
    modelled: float


class _Sweep(NamedTuple):
    """A sweep: labels with a star in place of the swept hyperparameter, and the quantity."""

    problem: str
    probe: str
    quantity: str


def _fitted(sweep: _Sweep, costs: Sequence[_Cost]) -> Growth | None:
    sizes, counted, modelled = np.array(sorted(costs)).T
    if not counted.any() and not np.nan_to_num(modelled).any():
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = counted / modelled
        drift = (ratios[-1] / ratios[-2]) ** (math.log(2) / math.log(sizes[-1] / sizes[-2])) - 1
    problem, probe = (label.replace("*", f"{sizes[0]:g}..{sizes[-1]:g}") for label in sweep[:2])
    fits = exponent(sizes, counted), exponent(sizes, modelled)
    return Growth(problem, probe, sweep.quantity, *fits, float(ratios[-1]), float(drift))


def _sweeps(frame: pd.DataFrame) -> dict[_Sweep, list[_Cost]]:
    """The sweeps of at least three sizes."""
    sweeps: dict[_Sweep, dict[float, _Cost]] = defaultdict(dict)
    for (problem, probe), values in _cells(frame).items():
        places = [(size, label, probe) for size, label in _starred(problem, registry.problems())]
        places += [(size, problem, label) for size, label in _starred(probe, registry.probes())]
        places = [place for place in places if place[0] > 0]  # a size of 0 has no logarithm
        for quantity, counted, modelled in _quantities(values):
            for size, *pair in places:
                sweeps[_Sweep(pair[0], pair[1], quantity)][size] = _Cost(size, counted, modelled)
    return {sweep: list(costs.values()) for sweep, costs in sweeps.items() if len(costs) >= 3}


def _cells(frame: pd.DataFrame) -> dict[tuple[str, str], dict[str, float]]:
    """Medians over seeds, named ``metric scope``, by labels of problem and probe."""
    costs = frame[(frame["status"] == Status.OK) & texts(frame, "metric").str.startswith(("flops.", "memory."))]
    keys = [labels(costs, "problem"), labels(costs, "probe"), texts(costs, "metric") + " " + texts(costs, "scope")]
    medians = costs["value"].astype("float64").groupby(keys, sort=False).median()
    cells: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for (problem, probe, name), value in zip(medians.index, medians, strict=True):
        cells[problem, probe][name] = value
    return cells


def _quantities(values: Mapping[str, float]) -> Iterator[tuple[str, float, float]]:
    """Name, counted and modelled cost of every quantity that was measured."""
    for phase in PHASES:
        if {f"flops.counted {phase}", f"flops.passes {phase}"} <= values.keys():
            counted = values[f"flops.counted {phase}"] - values[f"flops.passes {phase}"]
            yield phase, counted, values.get(f"flops.model {phase}", math.nan)
    if "memory.state step" in values:
        yield "memory", values["memory.state step"], values.get("memory.model step", math.nan)


def _starred(label: str, components: Mapping[str, type[Component]]) -> Iterator[tuple[float, str]]:
    """Every numeric hyperparameter of a label: its value, and the label with a star in its place."""
    name, arguments = split_label(label)
    given = arguments_of(arguments)
    settings = registry.describe(name, components[name])["hyperparameters"] | given if name in components else given
    for key, value in settings.items():
        if re.fullmatch(r"\d+(\.\d+)?(e[-+]?\d+)?", str(value)):
            starred = {k: "*" if k == key else v for k, v in settings.items() if k == key or k in given}
            yield float(value), f"{name}[{','.join(f'{k}={v}' for k, v in starred.items())}]"
