"""Quality against cost, with the Pareto front."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from curvbench.analysis.roles import are_methods, is_method
from curvbench.analysis.summary import digits
from curvbench.analysis.views import Quantity, plain
from curvbench.plot import axes
from curvbench.plot.look import Look, looks

if TYPE_CHECKING:
    import plotly.graph_objects as go


def tradeoff_figure(
    table: pd.DataFrame, problem: str, x: Quantity, y: Quantity, log: bool = True, named: Collection[str] = ()
) -> go.Figure:
    """One point per probe, ranges over seeds as bars, the Pareto front as a line with its probes named.

    ``named``: labels of other probes that are named too, where there is room. ``table`` as ``analysis.views.tradeoff``
    gives it. A metric that is best at 1 is shown as its distance from 1. A logarithmic axis turns linear if a value is
    negative.
    """
    floors = {axis: axes.logarithmic(table[axis]) if log else None for axis in ("x", "y")}
    notes = [note for axis in ("x", "y") for note in axes.at_the_edge(table, axis, floors[axis])]
    figure = axes.new_figure(
        axes.problem_title(f"{plain(y.metric)} against {plain(x.metric)}", problem),
        [*notes, *axes.not_drawn(table, "x", "y"), *axes.noisy_clocks(table)],
        height=460,
        names=["Pareto front", *table["probe"]],
    )
    drawn = table[np.isfinite(table[["x", "y"]]).all(axis=1)].set_index("probe", drop=False)
    drawn = drawn.assign(**{f"{axis} shown": axes.clipped(drawn[axis], floors[axis]) for axis in ("x", "y")})
    _front(figure, drawn[drawn["front"]].sort_values(["x", "y"], ascending=[True, False]))
    are_rivals = are_methods(drawn["probe"])
    across = drawn.loc[are_rivals if are_rivals.any() else ~are_rivals, "x shown"]
    sides = _sides(
        drawn,
        drawn["front"] | (drawn["probe"].isin(list(named)) & are_rivals),
        {axis: floor is not None for axis, floor in floors.items()},
    )
    rows = {row["probe"]: row for row in drawn.to_dict("records")}
    texts = _reference_names(drawn[~are_rivals], floors["y"] is not None, drawn["y shown"])
    longest = max(map(len, texts.values()), default=0)
    figure.update_layout(margin_r=figure.layout.margin.r + LETTER * longest)
    for probe, look in looks(table["probe"]).items():
        if probe in rows and not is_method(probe):
            figure.add_trace(_reference(rows[probe], across, y, texts[probe]))
        elif probe in rows:
            figure.add_trace(_point(rows[probe], look, x, y, sides.get(probe)))
    for axis, quantity in (("x", x), ("y", y)):
        title = axes.axis_title(quantity)
        settings = axes.scale(drawn[f"{axis} shown"], floors[axis])
        text = axes.upright(title) if axis == "y" else title
        figure.update_layout({f"{axis}axis": {"title": {"text": text}, **settings}})
    return figure


def _front(figure: go.Figure, front: pd.DataFrame) -> None:
    if len(front) > 0:
        figure.add_scatter(
            x=front["x shown"],
            y=front["y shown"],
            mode="lines",
            line={"shape": "hv", "dash": "dot", "width": 1.5, "color": "#808080"},
            name="Pareto front",
            hoverinfo="skip",
        )


def _reference_names(references: pd.DataFrame, log: bool, of_all: pd.Series) -> dict[str, str]:
    """The text at the line of each reference: lines whose texts would cover each other have one, at the highest."""
    if references.empty:
        return {}
    places = dict(zip(of_all.index, _pixels(of_all, log, HEIGHT), strict=True))
    texts: dict[str, str] = {}
    leader = ""
    for probe in sorted(references["probe"], key=lambda probe: -places[probe]):
        if leader and places[leader] - places[probe] < LETTER_HEIGHT:
            texts[leader] += f", {axes.escaped(probe)}"
            texts[probe] = ""
        else:
            leader, texts[probe] = probe, axes.escaped(probe)
    return texts


def _reference(row: Mapping[Any, Any], across: pd.Series, y: Quantity, text: str) -> Any:
    """A reference or bound: a line at its quality, whatever it costs, because no method competes with it."""
    name = axes.escaped(row["probe"])
    return axes.graph_objects().Scatter(
        x=[across.min(), across.max()],
        y=[row["y shown"]] * 2,
        mode="lines+text",
        line={"color": "#808080", "dash": "dash", "width": 1},
        text=["", f"\u2003{text}"],  # a space, because a point may lie on the line's end
        textposition="middle right",
        textfont={"size": 10},
        cliponaxis=False,
        name=name,
        showlegend=False,
        hovertemplate=f"<b>{name}</b>, a reference<br>{axes.axis_title(y)}: {digits(row['y'])}<extra></extra>",
    )


def _point(row: Mapping[Any, Any], look: Look, x: Quantity, y: Quantity, side: str | None) -> Any:
    name = axes.escaped(row["probe"])
    return axes.graph_objects().Scatter(
        x=[row["x shown"]],
        y=[row["y shown"]],
        error_x=_range(row, "x", look.color),
        error_y=_range(row, "y", look.color),
        mode="markers+text" if side else "markers",
        text=[f"<b>{name}</b>"],
        textposition=side or "top right",
        textfont={"size": 11},
        cliponaxis=False,
        marker=look.marker(11),
        name=name,
        hovertemplate=(
            f"<b>{name}</b><br>{axes.axis_title(x)}: {_told(row, 'x')}<br>{axes.axis_title(y)}: {_told(row, 'y')}"
            + ("<br>on the Pareto front" if row["front"] else "")
            + "<extra></extra>"
        ),
    )


def _told(row: Mapping[Any, Any], axis: str) -> str:
    """A value with its range."""
    low, high = row[f"{axis} min"], row[f"{axis} max"]
    return digits(row[axis]) + (f" ({digits(low)} to {digits(high)})" if low < high else "")


def _range(row: Mapping[Any, Any], axis: str, color: str) -> dict[str, Any] | None:
    low, high = row[f"{axis} min"], row[f"{axis} max"]
    if not low < high or row[axis] != row[f"{axis} shown"]:
        return None
    return {"array": [high - row[axis]], "arrayminus": [row[axis] - low], "color": color, "thickness": 1, "width": 3}


def _sides(drawn: pd.DataFrame, wanted: pd.Series, log: Mapping[str, bool]) -> dict[str, str]:
    """The side on which each wanted name covers least; a name that would cover another name is left out."""
    if drawn.empty:
        return {}
    y = _pixels(drawn["y shown"], log["y"], HEIGHT)
    pages = [np.column_stack([_pixels(drawn["x shown"], log["x"], width), y]) for width in WIDTHS]
    points = [np.column_stack([places - RADIUS, places + RADIUS]) for places in pages]
    names: list[list[np.ndarray[Any, Any]]] = []  # the boxes of a name, one per page
    named: set[tuple[int, ...]] = set()
    sides = {}
    for place, (probe, is_wanted) in enumerate(wanted.items()):
        point = [places[place] for places in pages]
        boxes = {side: [_box(at[0], at[1], len(str(probe)), side) for at in point] for side in _SIDES}
        free = [s for s, spots in boxes.items() if _is_within(spots) and not any(_covered(spots, n) for n in names)]
        at_pixel = tuple(np.round(point[0]).astype(int))  # the first of several probes in one point is named
        if is_wanted and free and at_pixel not in named:
            named.add(at_pixel)
            covered = {
                side: sum(_covered(boxes[side], list(all_of)) for all_of in zip(*points, strict=True)) for side in free
            }
            sides[str(probe)] = min(covered, key=covered.__getitem__)
            names.append(boxes[sides[str(probe)]])
    return sides


def _is_within(boxes: list[np.ndarray[Any, Any]]) -> bool:
    """Whether a name stays within the plot and its margin on every page."""
    return all(box[0] > -MARGIN and box[2] < width + MARGIN for box, width in zip(boxes, WIDTHS, strict=True))


def _covered(boxes: list[np.ndarray[Any, Any]], others: list[np.ndarray[Any, Any]]) -> float:
    """The area that two boxes share, summed over all pages."""
    return sum(_overlap(box, other) for box, other in zip(boxes, others, strict=True))


def _pixels(values: pd.Series, log: bool, length: int) -> np.ndarray[Any, Any]:
    places = np.log10(values.to_numpy()) if log else values.to_numpy()
    spread = np.ptp(places[np.isfinite(places)]) if np.isfinite(places).any() else 0.0
    return length * (places - np.nanmin(places)) / (spread or 1.0)


def _box(x: float, y: float, letters: int, side: str) -> np.ndarray[Any, Any]:
    """Left, bottom, right and top of a name beside a point."""
    vertical, horizontal = side.split()
    width, height, gap = LETTER * letters, LETTER_HEIGHT, GAP
    left = {"left": x - gap - width, "center": x - width / 2, "right": x + gap}[horizontal]
    bottom = {"top": y + gap, "middle": y - height / 2, "bottom": y - gap - height}[vertical]
    return np.array([left, bottom, left + width, bottom + height])


def _overlap(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    sizes = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    return float(np.prod(np.clip(sizes, 0, None)))


_SIDES = [f"{v} {h}" for v, h in itertools.product(("bottom", "top"), ("left", "center", "right"))] + ["middle right"]
MARGIN = 25  # pixels between the outermost points and the numbers beside the plot
RADIUS, GAP = 6, 8  # pixels: of a point, and between a point and its name
LETTER, LETTER_HEIGHT = 7, 12  # pixels of a letter of a name
WIDTHS, HEIGHT = (350, 600, 900), 280  # pixels of the plot on a narrow, a middle and a wide page
