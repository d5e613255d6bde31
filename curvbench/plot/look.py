"""The fixed look of every method: a colour and a symbol, which its `about` names and colour-blind readers tell apart.

Colours are those of Okabe and Ito (2008) without yellow and black, which vanish on white and on dark paper, with a
lighter blue for dark paper, a grey and a brown. A symbol belongs to a family, and within a family no two colours are
alike. Variants of a method have its colour and open symbols.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterable
from typing import Any, NamedTuple

from curvbench import registry
from curvbench.spec import About

BLUE, ORANGE, GREEN, RED, PINK, SKY = "#2878D0", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
GREY, BROWN = "#808080", "#9A6B3F"
COLORS = {
    **{"blue": BLUE, "orange": ORANGE, "green": GREEN, "red": RED},
    **{"pink": PINK, "sky": SKY, "grey": GREY, "brown": BROWN},
}
DASHES = ("solid", "dot", "dash", "dashdot", "longdash", "longdashdot")
OPEN = ("-open", "-open-dot")
CROSSED = (*OPEN, "-x-open", "-cross-open")
MARKS = {"circle": CROSSED, "square": CROSSED, "diamond": CROSSED}  # what plotly draws inside of a symbol
FAMILIES = {  # the symbol of each, in the order of legends
    "exact in part": "diamond",
    "Kronecker": "circle",
    "Kronecker bounds": "hexagon",
    "whitening": "hexagram",
    "smaller factors": "square",
    "rescaled layers": "triangle-up",
    "low rank": "pentagon",
    "solvers": "triangle-down",
    "first order": "cross",
}
OTHER = "star"  # the symbol of methods without a family, such as a user's


class Look(NamedTuple):
    """Colour, symbol and dash; the symbol of a method with other than its default hyperparameters is open."""

    color: str
    symbol: str
    dash: str

    def marker(self, size: int) -> dict[str, Any]:
        """Plotly's marker; what is open is drawn with a line that dark paper does not swallow."""
        return {
            "color": self.color,
            "symbol": self.symbol,
            "size": size,
            "line": {"width": 2 * ("open" in self.symbol)},
        }


def looks(probes: Iterable[str]) -> dict[str, Look]:
    """The looks of the probes of a figure by their labels, in the order of ``by_family``.

    A user's method gets a star in a colour that its name decides. Of one method's variants each has a dash of its own,
    and a mark within its symbol as long as there are some.
    """
    found: dict[str, Look] = {}
    for probe in by_family(probes):
        name = method(probe)
        alike = [one.symbol for other, one in found.items() if method(other) == name]
        about = _about(name)
        symbol = FAMILIES.get(about.family, OTHER)
        marks = MARKS.get(symbol, OPEN)
        if alike or "[" in probe:
            symbol += marks[(len(alike) - alike.count(symbol)) % len(marks)]
        color = COLORS.get(about.color) or list(COLORS.values())[zlib.crc32(name.encode()) % len(COLORS)]
        found[probe] = Look(color, symbol, DASHES[len(alike) % len(DASHES)])
    return found


def method(probe: str) -> str:
    """The name of a probe given by its label, or by that of a training with it: ``kfac[damping=1] {lr=0.1}``."""
    return probe.partition(" {")[0].partition("[")[0]


def by_family(probes: Iterable[str]) -> list[str]:
    """Labels in the order of the families; methods without a family come last, variants behind their method."""
    places = {family: place for place, family in enumerate(FAMILIES)}
    return sorted(probes, key=lambda probe: (places.get(_about(method(probe)).family, len(places)), probe))


def _about(name: str) -> About:
    """What a method says of itself; nothing if no such method is installed here."""
    return _abouts().get(name, About())


@functools.cache
def _abouts() -> dict[str, About]:
    return {name: probe.about for name, probe in registry.probes().items()}
