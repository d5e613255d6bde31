"""The fixed look of every method: a colour and a symbol, for good, told apart by readers who are colour-blind.

Colours are those of Okabe and Ito (2008) without yellow and black, which vanish on white and on dark paper, and two
greys. A symbol belongs to a family, and within a family no colour comes twice.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

BLUE, ORANGE, GREEN, RED, PINK, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
GREY, BROWN = "#808080", "#9A6B3F"
COLORS = (BLUE, ORANGE, GREEN, RED, PINK, SKY, GREY, BROWN)
DASHES = ("solid", "dot", "dash", "dashdot", "longdash", "longdashdot")
FAMILIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "exact in part": ("diamond", ("full", "layer", "unit", "diag")),
    "Kronecker": ("circle", ("kfac", "ekfac", "kpsvd", "tkfac", "shampoo")),
    "smaller factors": ("square", ("thor", "skfac", "eva", "mbf")),
    "rescaled layers": ("triangle-up", ("lngd", "cwngd")),
    "low rank": ("pentagon", ("eigen", "fngd", "ginger", "qng", "hylo", "lbfgs")),
    "first order": ("cross", ("identity", "sgdm", "adam", "adamw")),
}
_COLOR = {
    **{"full": GREY, "layer": BROWN, "unit": SKY, "diag": PINK},
    **{"kfac": BLUE, "ekfac": ORANGE, "kpsvd": GREEN, "tkfac": RED, "shampoo": PINK},
    **{"thor": RED, "skfac": SKY, "eva": GREEN, "mbf": BROWN},
    **{"lngd": GREEN, "cwngd": ORANGE},
    **{"eigen": GREY, "fngd": PINK, "ginger": SKY, "qng": BLUE, "hylo": BROWN, "lbfgs": RED},
    **{"identity": GREY, "sgdm": BROWN, "adam": ORANGE, "adamw": BLUE},
}
_SYMBOL = {name: symbol for symbol, names in FAMILIES.values() for name in names}
_ORDER = {name: place for place, name in enumerate(_SYMBOL)}


class Look(NamedTuple):
    """Colour and symbol; the symbol of a method with other than its default hyperparameters is open."""

    color: str
    symbol: str


def look(probe: str) -> Look:
    """The look of a probe given by its label; one of a user gets a star in a colour that its name decides."""
    name, arguments = method(probe), "[" in probe
    color = _COLOR.get(name, COLORS[zlib.crc32(name.encode()) % len(COLORS)])
    return Look(color, _SYMBOL.get(name, "star") + ("-open" if arguments else ""))


def method(probe: str) -> str:
    """The name of a probe given by its label, or by that of a training with it: ``kfac[damping=1] {lr=0.1}``."""
    return probe.partition(" {")[0].partition("[")[0]


def dashes(probes: Iterable[str]) -> dict[str, str]:
    """The dash of the line of each probe: among those of one method, and so of one colour, none comes twice."""
    found: dict[str, str] = {}
    used: Counter[str] = Counter()
    for probe in by_family(probes):
        found[probe] = DASHES[used[method(probe)] % len(DASHES)]
        used[method(probe)] += 1
    return found


def by_family(probes: Iterable[str]) -> list[str]:
    """Labels in the order of the families, those of users last, variants behind their method."""
    return sorted(probes, key=lambda probe: (_ORDER.get(method(probe), len(_ORDER)), probe))
