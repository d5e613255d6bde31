"""Costs of several methods on one network, as a table for people and as records for programs."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from curvbench.prediction.layout import Shapes
from curvbench.prediction.pricing import Cost

WIDTH = 110  # signs of a line of the legend
UNITS = (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))
HEAD = ("method", "step", "10 % at", "statistics", "invert", "precondition", "state", "total")
LEGEND = (
    "step, statistics, invert, precondition: FLOPs in gradients, a gradient being a whole step of SGD. step: the step "
    "of SGD included, {amortized}. 10 % at: the refresh interval from which a method adds at most a tenth of a "
    "gradient to a step. statistics: passes through the network included. state: bytes kept between steps. "
    "total: bytes of weights, gradients, momentum, activations, old and new state, vectors and score columns. ~: "
    "leading order only."
)


@dataclass(frozen=True)
class Costs:
    """The costs of methods on a network, in the order of the call.

    ``omitted``: a line per method that has no cost. ``refresh``, ``dtype`` and ``budget`` are those of the call.
    """

    shapes: Shapes
    rows: tuple[Cost, ...]
    refresh: int
    dtype: str
    budget: float | None = None
    omitted: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Cost]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, probe: str) -> Cost:
        """The cost of a method by its label; raises KeyError."""
        return {cost.probe: cost for cost in self.rows}[probe]

    def record(self) -> dict[str, Any]:
        """Network, settings and all numbers as JSON can hold them."""
        network = {key: getattr(self.shapes, key) for key in ("name", "source", "parameters", "samples", "terms")}
        network |= {"outputs": self.shapes.classes, "loss": self.shapes.loss}
        settings = {"refresh": self.refresh, "dtype": self.dtype, "budget": self.budget}
        methods = [cost.record() for cost in self.rows]
        return {"network": network, **settings, "methods": methods, "omitted": list(self.omitted)}

    def __str__(self) -> str:
        lines = [_title(self), "", *_aligned([self._head(), *map(self._line, self.rows)]), ""]
        every = "at every step" if self.refresh == 1 else f"every {self.refresh} steps"
        lines += textwrap.wrap(LEGEND.format(amortized=f"statistics and factorization {every}"), WIDTH)
        lines += [f"{cost.probe} declines this network: {cost.refused}" for cost in self.rows if cost.refused]
        return "\n".join([*lines, *self.omitted])

    def _head(self) -> Sequence[str]:
        return HEAD if self.budget is None else (*HEAD, f"in {scaled(self.budget, 'B')}")

    def _line(self, cost: Cost) -> Sequence[str]:
        inexact = cost.leading
        words = [
            cost.probe,
            _marked(ratio(cost.gradients), bool(inexact - {"state"})),
            _interval(cost),
            *(
                _marked(ratio(getattr(cost, key) / cost.gradient), key in inexact)
                for key in ("statistics", "invert", "precondition")
            ),
            _marked(scaled(cost.state, "B"), "state" in inexact),
            f"~{scaled(cost.total, 'B')}",
        ]
        if cost.fits is not None:
            words.append("declined" if cost.refused else "fits" if cost.fits else "does not fit")
        return words


def _title(costs: Costs) -> str:
    shapes, first = costs.shapes, costs.rows[0] if costs.rows else None
    terms = f" of {shapes.terms:,} loss terms" if shapes.terms > 1 else ""
    title = f"{shapes.name}: {shapes.parameters:,} parameters, {_samples(shapes.samples)}{terms}, {costs.dtype}"
    if first is None:
        return title
    return f"{title}; a gradient takes {scaled(first.gradient, 'FLOP')}, its memory ~{scaled(first.sgd, 'B')}"


def _samples(count: int) -> str:
    return "1 sample" if count == 1 else f"{count:,} samples"


def _interval(cost: Cost) -> str:
    return (
        f"{cost.interval:,.0f}"
        if cost.interval < 1e6
        else "never"
        if math.isinf(cost.interval)
        else ratio(cost.interval)
    )


def _marked(text: str, is_leading: bool) -> str:
    return f"~{text}" if is_leading and text != "0" else text


def ratio(value: float) -> str:
    """A number to three digits: 0, 0.00123, 1.23, 12,300, 1.2e+12."""
    if value == 0:
        return "0"
    if value >= 1e6 or value < 1e-4:
        return f"{value:.1e}"
    places = max(0, 2 - math.floor(math.log10(value)))
    return f"{value:,.{places}f}"


def scaled(value: float, unit: str) -> str:
    """A count with a unit: 1.23 GB."""
    for prefix, size in UNITS:
        if value >= size:
            number = value / size
            return f"{number:.3g} {prefix}{unit}" if number < 1e3 else f"{number:.2g} {prefix}{unit}"
    return f"{value:.0f} {unit}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            word.ljust(width) if number in (0, len(HEAD)) else word.rjust(width)
            for number, (word, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
