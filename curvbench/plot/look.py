"""The fixed look of every method: a colour and a symbol, which its `about` names and colour-blind readers tell apart.

Colours are those of Okabe and Ito (2008) without yellow and black, which vanish on white and on dark paper, with a
lighter blue for dark paper, a grey and a brown. A symbol belongs to a family, and within a family no two colours are
alike. A variant of a method has its colour or a shade of it and a mark in its symbol, which its label alone decides: no
mark changes with what else is drawn.
"""

from __future__ import annotations

import functools
import math
import re
import zlib
from collections.abc import Iterable
from typing import Any, NamedTuple

from curvbench import registry
from curvbench.spec import About
from curvbench.spec.labels import split_arguments

BLUE, ORANGE, GREEN, RED, PINK, SKY = "#2878D0", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
GREY, BROWN = "#808080", "#9A6B3F"
COLORS = {
    **{"blue": BLUE, "orange": ORANGE, "green": GREEN, "red": RED},
    **{"pink": PINK, "sky": SKY, "grey": GREY, "brown": BROWN},
}
DASHES = ("dot", "dash", "dashdot", "longdash", "longdashdot")  # of variants; a method itself is solid
MARKS = ("-open", "-open-dot", "-dot")
CROSSED = ("-open", "-x-open", "-open-dot", "-cross-open", "-x", "-cross", "-dot")
CROSSES = ("circle", "square", "diamond")  # the symbols inside of which plotly draws crosses
SHADES = {"": 0.0, "dark": 0.3, "light": 0.4}  # how much black or white is mixed in
WORDS = {  # the places of the variants that suites have side by side
    **{"fisher_type=mc": 0, "fisher_type=empirical": 1, "fisher_type=forward-only": 2},
    **{"damping_rule=pi": 3, "damping_rule=factored": 4, "kfac_approx=reduce": 5, "bias=separate": 6},
    **{"statistics_dtype=bfloat16": 0, "statistics_dtype=float16": 1, "statistics_dtype=float32": 2},
    **{"statistics_dtype=float64": 3, "factor_dtype=float64": 4},
}
PER_DECADE = 11  # places from a number to its tenfold: powers of two and of ten differ
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
OTHERS = ("star", "star-square", "star-diamond", "star-triangle-up", "hourglass", "bowtie")  # of methods of users


class Look(NamedTuple):
    """Colour, symbol and dash; the symbol of a method with other than its default hyperparameters has a mark."""

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


def look(label: str) -> Look:
    """The look of a probe by its label alone: that of its method, which a variant has with a mark, shade and dash.

    The name of a user's method decides its colour and which of ``OTHERS`` it gets.
    """
    return _look(label, 0)


def looks(probes: Iterable[str]) -> dict[str, Look]:
    """The looks of the probes of a figure by their labels, in the order of ``by_family``.

    Two variants whose labels give them one look are told apart as long as there are others.
    """
    looks: dict[str, Look] = {}
    taken: set[tuple[str, str]] = set()  # points have no dash
    for probe in by_family(probes):
        places = [_look(probe, further) for further in range(len(CROSSED) * len(SHADES))]
        looks[probe] = next((free for free in places if free[:2] not in taken), places[0])
        taken.add(looks[probe][:2])
    return looks


def _look(label: str, further: int) -> Look:
    name = method(label)
    about = _about(name)
    by_name = zlib.crc32(name.encode())
    color = COLORS.get(about.color) or list(COLORS.values())[by_name % len(COLORS)]
    symbol = FAMILIES.get(about.family) or OTHERS[by_name // len(COLORS) % len(OTHERS)]
    arguments = label.removeprefix(name).strip(" []{}")
    if not arguments and not further:
        return Look(color, symbol, "solid")
    marks = CROSSED if symbol in CROSSES else MARKS
    place = further + sum(map(_place, split_arguments(re.sub(r"\] \{", ",", arguments))))
    shade = list(SHADES)[place // len(marks) % len(SHADES)]
    return Look(_shaded(color, shade), symbol + marks[place % len(marks)], DASHES[place % len(DASHES)])


def _place(argument: str) -> int:
    """The place of ``key=value`` among the looks of variants: a word's stands in the table, a number's by its size."""
    if argument in WORDS:
        return WORDS[argument]
    try:
        number = float(argument.partition("=")[2])
        return 3 + round(PER_DECADE * math.log10(1 - number if 0.5 < number < 1 else number))  # decays are close to 1
    except (ValueError, OverflowError):
        return zlib.crc32(argument.encode())


def _shaded(color: str, shade: str) -> str:
    share, end = SHADES[shade], 255 * (shade == "light")
    parts = [int(color[at : at + 2], 16) for at in (1, 3, 5)]
    return "#" + "".join(f"{round(part + share * (end - part)):02X}" for part in parts)


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
