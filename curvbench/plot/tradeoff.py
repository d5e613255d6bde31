"""Quality against cost, with the Pareto front."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from curvbench.analysis import views
from curvbench.analysis.summary import digits, problems
from curvbench.analysis.views import Quantity
from curvbench.plot import axes
from curvbench.plot.look import by_family, look

if TYPE_CHECKING:
    import plotly.graph_objects as go

FLOPS = Quantity("flops.ratio", "step")
ERROR = Quantity("error.relative", "layer blocks")


def tradeoff(
    frame: pd.DataFrame, problem: str | None = None, x: Quantity = FLOPS, y: Quantity = ERROR, log: bool = True
) -> go.Figure:
    """One point per probe, ranges over seeds as bars, the Pareto front as a line with its probes named.

    ``problem`` is a label; without it, that of the first row. A metric that is best at 1 is shown as its distance
    from 1. A logarithmic axis turns linear where a value is negative.
    """
    problem = problem or next(iter(problems(frame)), "")
    table = views.tradeoff(frame, problem, x, y)
    floors = {axis: axes.logarithmic(table[axis]) if log else None for axis in ("x", "y")}
    notes = [note for axis in ("x", "y") for note in axes.at_the_edge(table, axis, floors[axis])]
    figure = axes.new_figure(
        axes.problem_title(frame, "Trade-off", problem),
        [*notes, *axes.not_drawn(table, "x", "y")],
        height=460,
        names=["Pareto front", *table["probe"]],
    )
    drawn = table[np.isfinite(table[["x", "y"]]).all(axis=1)].set_index("probe", drop=False)
    drawn = drawn.assign(**{f"{axis} shown": axes.clipped(drawn[axis], floors[axis]) for axis in ("x", "y")})
    _front(figure, drawn[drawn["front"]].sort_values(["x", "y"], ascending=[True, False]))
    sides = _sides(drawn, {axis: floor is not None for axis, floor in floors.items()})
    rows = {row["probe"]: row for row in drawn.to_dict("records")}
    for probe in by_family(rows):
        figure.add_trace(_point(rows[probe], x, y, sides.get(probe)))
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


def _point(row: Mapping[Any, Any], x: Quantity, y: Quantity, side: str | None) -> Any:
    name, (color, symbol) = axes.escaped(row["probe"]), look(row["probe"])
    return axes.graph_objects().Scatter(
        x=[row["x shown"]],
        y=[row["y shown"]],
        error_x=_range(row, "x", color),
        error_y=_range(row, "y", color),
        mode="markers+text" if side else "markers",
        text=[f"<b>{name}</b>"],
        textposition=side or "top right",
        textfont={"size": 11},
        cliponaxis=False,
        marker={"color": color, "symbol": symbol, "size": 11, "line": {"width": 2 if "open" in symbol else 0}},
        name=name,
        hovertemplate=(
            f"<b>{name}</b><br>{axes.axis_title(x)}: {digits(row['x'])}<br>{axes.axis_title(y)}: {digits(row['y'])}"
            + ("<br>on the Pareto front" if row["front"] else "")
            + "<extra></extra>"
        ),
    )


def _range(row: Mapping[Any, Any], axis: str, color: str) -> dict[str, Any] | None:
    low, high = row[f"{axis} min"], row[f"{axis} max"]
    if not low < high or row[axis] != row[f"{axis} shown"]:
        return None
    return {"array": [high - row[axis]], "arrayminus": [row[axis] - low], "color": color, "thickness": 1, "width": 3}


def _sides(drawn: pd.DataFrame, log: Mapping[str, bool]) -> dict[str, str]:
    """Where names of the front stand: where they cover least. One that would cover another's stays with the pointer."""
    if drawn.empty:
        return {}
    at = {axis: _pixels(drawn[f"{axis} shown"], log[axis], PIXELS[axis]) for axis in ("x", "y")}
    places = np.column_stack([at["x"], at["y"]])
    points = [np.array([x - 6, y - 6, x + 6, y + 6]) for x, y in places]
    names: list[np.ndarray[Any, Any]] = []
    named: set[tuple[int, int]] = set()
    sides = {}
    for probe, front, (x, y) in zip(drawn.index, drawn["front"], places, strict=True):
        boxes = {side: _box(x, y, len(probe), side) for side in _SIDES}
        free = {side: box for side, box in boxes.items() if not sum(_overlap(box, name) for name in names)}
        at_pixel = (round(x), round(y))  # of several probes in one point the first is named
        if front and free and at_pixel not in named:
            named.add(at_pixel)
            sides[probe] = min(free, key=lambda side: sum(_overlap(free[side], point) for point in points))
            names.append(boxes[sides[probe]])
    return sides


def _pixels(values: pd.Series, log: bool, length: int) -> np.ndarray[Any, Any]:
    shown = np.log10(values.to_numpy()) if log else values.to_numpy()
    spread = np.ptp(shown[np.isfinite(shown)]) if np.isfinite(shown).any() else 0.0
    return length * (shown - np.nanmin(shown)) / (spread or 1.0)


def _box(x: float, y: float, letters: int, side: str) -> np.ndarray[Any, Any]:
    """Left, bottom, right and top of a name beside a point."""
    vertical, horizontal = side.split()
    width, height, gap = 7 * letters, 12, 8
    left = {"left": x - gap - width, "center": x - width / 2, "right": x + gap}[horizontal]
    bottom = {"top": y + gap, "middle": y - height / 2, "bottom": y - gap - height}[vertical]
    return np.array([left, bottom, left + width, bottom + height])


def _overlap(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    sizes = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    return float(np.prod(np.clip(sizes, 0, None)))


_SIDES = [f"{v} {h}" for v, h in itertools.product(("bottom", "top"), ("left", "center", "right"))] + ["middle right"]
PIXELS = {"x": 620, "y": 300}  # of a page of middle width
