"""The fixed look of every method: a colour and a symbol, for good, told apart by readers who are colour-blind.

Colours are those of Okabe and Ito (2008) without yellow and black, which vanish on white and on dark paper, with a
lighter blue for dark paper, a grey and a brown. A symbol belongs to a family, and within a family no two colours are
alike. Variants of a method have its colour and open symbols.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any, NamedTuple

BLUE, ORANGE, GREEN, RED, PINK, SKY = "#2878D0", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
GREY, BROWN = "#808080", "#9A6B3F"
COLORS = (BLUE, ORANGE, GREEN, RED, PINK, SKY, GREY, BROWN)
DASHES = ("solid", "dot", "dash", "dashdot", "longdash", "longdashdot")
OPEN = ("-open", "-open-dot")
CROSSED = (*OPEN, "-x-open", "-cross-open")
MARKS = {"circle": CROSSED, "square": CROSSED, "diamond": CROSSED}  # what plotly draws inside of a symbol
FAMILIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "exact in part": ("diamond", ("full", "layer", "unit", "diag")),
    "Kronecker": ("circle", ("kfac", "ekfac", "kpsvd", "tkfac", "shampoo")),
    "smaller factors": ("square", ("thor", "skfac", "eva", "mbf")),
    "rescaled layers": ("triangle-up", ("lngd", "cwngd")),
    "low rank": ("pentagon", ("eigen", "fngd", "ginger", "qng", "hylo", "lbfgs")),
    "first order": ("cross", ("identity", "sgdm", "adam", "adamw")),
}
_COLOR = {
    **{"full": GREY, "layer": BROWN, "unit": SKY, "diag": RED},
    **{"kfac": BLUE, "ekfac": ORANGE, "kpsvd": GREEN, "tkfac": RED, "shampoo": PINK},
    **{"thor": RED, "skfac": SKY, "eva": GREEN, "mbf": BROWN},
    **{"lngd": GREEN, "cwngd": ORANGE},
    **{"eigen": GREY, "fngd": ORANGE, "ginger": SKY, "qng": BLUE, "hylo": BROWN, "lbfgs": RED},
    **{"identity": GREY, "sgdm": BROWN, "adam": ORANGE, "adamw": BLUE},
}
_SYMBOL = {name: symbol for symbol, names in FAMILIES.values() for name in names}
_ORDER = {name: place for place, name in enumerate(_SYMBOL)}


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
        symbol = _SYMBOL.get(name, "star")
        marks = MARKS.get(symbol, OPEN)
        if alike or "[" in probe:
            symbol += marks[(len(alike) - alike.count(symbol)) % len(marks)]
        color = _COLOR.get(name, COLORS[zlib.crc32(name.encode()) % len(COLORS)])
        found[probe] = Look(color, symbol, DASHES[len(alike) % len(DASHES)])
    return found


def method(probe: str) -> str:
    """The name of a probe given by its label, or by that of a training with it: ``kfac[damping=1] {lr=0.1}``."""
    return probe.partition(" {")[0].partition("[")[0]


def by_family(probes: Iterable[str]) -> list[str]:
    """Labels in the order of the families, those of users last, variants behind their method."""
    return sorted(probes, key=lambda probe: (_ORDER.get(method(probe), len(_ORDER)), probe))
