"""Some methods of a figure in colour and with their names at the lines' ends, the others grey."""

from __future__ import annotations

import html
import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from curvbench.plot.axes import LEGEND_COLUMNS, LEGEND_LINE
from curvbench.plot.look import method

if TYPE_CHECKING:
    import plotly.graph_objects as go

FAINT = "#B9B9B9"
MOST = 8  # methods that colours alone tell apart
LETTER, LINE = 6.2, 13  # pixels of a letter and of a line of a name
ROOM = 0.05  # of an axis, left free at each end
LONGEST = 30  # letters of a name beside a line


def emphasize(figure: go.Figure, labels: Collection[str], chosen: Collection[str]) -> None:
    """Draw the traces of methods that are not chosen in grey and behind the others, without an entry in the legend.

    ``labels``: of all methods; other traces stay as they are. Lines of chosen methods get their names at their ends
    instead of a legend, points that are named need none. Pointing at a grey one still tells its name.
    """
    before = _entries(figure)
    known = {*labels, *map(method, labels)}
    of_methods = [trace for trace in figure.data if trace.type == "scatter" and not known.isdisjoint(_names(trace))]
    is_chosen = {id(trace): _is_among(trace, labels, chosen) for trace in of_methods}
    for trace in of_methods:
        if not is_chosen[id(trace)]:
            _fade(trace)
        elif "text" in (trace.mode or "").split("+"):
            trace.showlegend = False
    behind = [trace for trace in of_methods if not is_chosen[id(trace)]]
    figure.data = [*behind, *(trace for trace in figure.data if trace not in behind)]
    _name_lines(figure, [trace for trace in of_methods if is_chosen[id(trace)] and trace.name])
    gone = LEGEND_LINE * (math.ceil(before / LEGEND_COLUMNS) - math.ceil(_entries(figure) / LEGEND_COLUMNS))
    figure.update_layout(height=figure.layout.height - gone, margin_b=figure.layout.margin.b - gone)


def _label(trace: Any) -> str:
    """The method of a trace such as ``kfac {lr=0.1} on mlp``."""
    name = html.unescape(trace.name or trace.legendgroup or "")
    return name.partition(" on ")[0].partition(" {")[0]


def _names(trace: Any) -> set[str]:
    return {_label(trace), method(_label(trace))}


def _is_among(trace: Any, labels: Collection[str], chosen: Collection[str]) -> bool:
    """Whether a trace is of a chosen method; a line over a hyperparameter is of every variant of its method."""
    label = _label(trace)
    return label in chosen if label in labels else method(label) in map(method, chosen)


def _fade(trace: Any) -> None:
    trace.update(showlegend=False, opacity=0.08 if trace.fill else 0.6)
    if trace.fill:
        trace.fillcolor = FAINT
    if "lines" in trace.mode:
        trace.line.color = FAINT
    trace.marker.color = FAINT
    for bars in (trace.error_x, trace.error_y):
        if bars.array is not None:
            bars.color = FAINT


def _name_lines(figure: go.Figure, traces: list[Any]) -> None:
    """Names at the ends of lines over numbers, moved apart where they would cover each other."""
    lines = [trace for trace in traces if _is_open_line(trace)]
    ends = [end for end in map(_end, lines) if end is not None]
    if not ends or figure.layout.xaxis.type == "category":
        return
    height = figure.layout.height - figure.layout.margin.t - figure.layout.margin.b
    is_log = {axis: figure.layout[f"{axis}axis"].type == "log" for axis in "xy"}
    for axis in "xy":  # set, because plotly would stretch the axes to the names
        figure.layout[f"{axis}axis"].range = _range(figure, axis, is_log[axis])
    low, high = figure.layout.yaxis.range
    ends.sort(key=lambda end: end[1])
    at = [((math.log10(y) if is_log["y"] else y) - low) / (high - low) * height for _, y, _ in ends]
    for (x, y, trace), place, free in zip(ends, at, _apart(at, height), strict=True):
        trace.showlegend = False
        figure.add_annotation(
            x=math.log10(x) if is_log["x"] else x,
            y=math.log10(y) if is_log["y"] else y,
            text=html.escape(_short(html.unescape(trace.name)), quote=False),
            font={"size": 11, "color": trace.line.color},
            **{"xanchor": "left", "xshift": 8, "yshift": free - place, "showarrow": False},
        )
    longest = max(len(_short(html.unescape(trace.name))) for *_, trace in ends)
    figure.update_layout(margin_r=max(figure.layout.margin.r, 16 + LETTER * longest))


def _range(figure: go.Figure, axis: str, is_log: bool) -> tuple[float, float]:
    """The ends of an axis: those of everything that is drawn, with room beside it."""
    ends: list[float] = []
    for trace in (trace for trace in figure.data if trace[axis] is not None):
        values, bars = np.asarray(trace[axis], dtype=float), trace[f"error_{axis}"]
        ends += [*values]
        if bars.array is not None:
            below = bars.array if bars.arrayminus is None else bars.arrayminus
            ends += [*(values + bars.array), *(values - below)]
    known = np.array([end for end in ends if math.isfinite(end) and (end > 0 or not is_log)])
    places = np.log10(known) if is_log else known
    room = ROOM * float(np.ptp(places)) or 0.5
    return float(places.min()) - room, float(places.max()) + room


def _apart(places: list[float], height: float) -> list[float]:
    """Ordered places, moved as little as keeps them ``LINE`` apart and, as far as there is room, within the plot."""
    groups: list[tuple[float, int]] = []  # the middle of each, and how many names it holds
    for place in places:
        groups.append((place, 1))
        while len(groups) > 1 and groups[-1][0] - groups[-2][0] < LINE * (groups[-1][1] + groups[-2][1]) / 2:
            (upper, above), (lower, below) = groups.pop(), groups.pop()
            groups.append(((upper * above + lower * below) / (above + below), above + below))
    free = [middle + LINE * (k - (count - 1) / 2) for middle, count in groups for k in range(count)]
    for k in range(len(free)):  # from below, then from above
        free[k] = max(free[k], LINE * k)
    for k in reversed(range(len(free))):
        free[k] = min(free[k], height - LINE * (len(free) - 1 - k))
    return free


def _is_open_line(trace: Any) -> bool:
    """Whether a trace is a line whose end no name or fill or step of its own takes."""
    parts = (trace.mode or "").split("+")
    return "lines" in parts and "text" not in parts and not trace.fill and trace.line.shape != "hv"


def _end(trace: Any) -> tuple[float, float, Any] | None:
    """The last point of a line, None without one that an axis shows."""
    x, y = (pd.to_numeric(pd.Series(part), errors="coerce").to_numpy("float64") for part in (trace.x, trace.y))
    known = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    return (float(x[known[-1]]), float(y[known[-1]]), trace) if known.size else None


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def _entries(figure: go.Figure) -> int:
    return sum(bool(trace.name) and trace.showlegend is not False for trace in figure.data)
