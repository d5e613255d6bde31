"""The common parts of all figures: titles with units and directions, logarithmic axes, notes."""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from curvbench.analysis.summary import digits
from curvbench.analysis.views import Quantity, meaning

if TYPE_CHECKING:
    import plotly.graph_objects as go

TITLE_WIDTH = 52  # characters of a title's line beside it
NOTE_WIDTH = 88  # characters that fit beside the navigation of a narrow window
DECADES = 2.5  # a wider gap below the other values is left out of a logarithmic axis
LEGEND_WIDTH, LETTER = 128, 4.3  # pixels of an entry: two fit in a narrow window
LEGEND_COLUMNS = 3  # in a window of middle width
ABOVE, BELOW = 52, 60  # pixels for the title, and for the axis below the plot
LEFT, RIGHT = 72, 20  # pixels beside the plot: the left side has the ticks and the title of the axis
LONG = 1e5  # numbers from here on have a prefix: 2M, 3G
MOST = 6  # metrics that a figure without values names
TITLE_LINE, LEGEND_LINE, NOTE_LINE = 22, 20, 16  # pixels of a line


def graph_objects() -> Any:
    """Plotly's module of traces; raises ImportError with the extra that brings it."""
    try:
        import plotly.graph_objects as go
    except ImportError as error:
        raise ImportError("figures need plotly: pip install 'curvbench[dashboard]'") from error
    return go


def escaped(text: object) -> str:
    """A name from a result file, escaped so that plotly shows every letter."""
    return html.escape(str(text), quote=False)


def axis_title(quantity: Quantity) -> str:
    """``1 - cosine with the exact step, network, lower is better``; a unit follows in brackets."""
    return _titled(quantity.metric, quantity.scope, quantity.better, "1 - " if quantity.is_gap else "")


def upright(title: str) -> str:
    """A title along a vertical axis: in two lines, for a low figure."""
    what, _, better = title.rpartition(", ")
    return f"{what}<br>{better}" if what else title


def metric_title(metric: str, scope: str = "") -> str:
    """The title of an axis that shows a metric itself."""
    return _titled(metric, scope, meaning(metric).better)


def problem_title(what: str, problem: str) -> str:
    """``Trade-off on mlp``."""
    return f"{what} on {escaped(problem)}"


def new_figure(title: str, notes: Iterable[str] = (), height: int = 420, names: Iterable[str] = ()) -> go.Figure:
    """An empty figure with a title, notes below it, both of which are wrapped, and room for a legend."""
    titles = textwrap.wrap(title, TITLE_WIDTH, break_long_words=False, break_on_hyphens=False)
    lines = [line for note in notes for line in textwrap.wrap(note, NOTE_WIDTH)]
    figure = graph_objects().Figure()
    subtitle = {"text": "<br>".join(map(escaped, lines))} if lines else {}
    entries = list(names)
    legend = LEGEND_LINE * math.ceil(len(entries) / LEGEND_COLUMNS)
    above = ABOVE + TITLE_LINE * max(len(titles) - 1, 0) + NOTE_LINE * len(lines)
    whole = height + legend + above - ABOVE
    top = 0.99 - TITLE_LINE * max(len(titles) - 1, 0) / whole  # of the title's last line, as plotly counts
    widest = max(LEGEND_WIDTH, LETTER * max(map(len, entries), default=0))
    figure.update_layout(
        template="plotly_white",
        title={
            **{"text": "<br>".join(titles), "subtitle": subtitle},
            **{"x": 0, "xanchor": "left", "y": top, "yanchor": "top"},
        },
        height=whole,
        margin={"l": LEFT, "r": RIGHT, "t": above, "b": BELOW + legend},
        legend={
            **{"orientation": "h", "yanchor": "top", "y": -BELOW / (height - ABOVE - BELOW)},
            **{"x": 0, "font": {"size": 10}, "entrywidth": widest, "entrywidthmode": "pixels"},
        },
        hoverlabel={"align": "left"},
    )
    return figure


def has_values(figure: go.Figure) -> bool:
    """Whether any trace has a finite value: in a heat map a colour, elsewhere a place."""
    return any(map(_has_values, figure.data))


def _has_values(trace: Any) -> bool:
    if trace.type == "parcoords":
        return any(len(part["values"]) for part in trace.dimensions)
    parts = (trace.z,) if trace.type == "heatmap" else (trace.x, trace.y)
    are_known = [pd.notna(np.ravel(part)) if part is not None else np.array([], bool) for part in parts]
    return bool(np.logical_and.reduce(are_known).any())


def or_why(figure: go.Figure, what: str, rows: pd.DataFrame) -> go.Figure:
    """The figure, with a sentence in its middle if the rows have no finite value of ``what`` to draw."""
    if not has_values(figure):
        metrics = [name for name in rows["metric"].dropna().unique() if name]
        has = f"; they have {', '.join(metrics[:MOST])}{' and others' * (len(metrics) > MOST)}" * bool(metrics)
        lines = textwrap.wrap(f"Nothing to draw: no value of {what} in these rows{has}.", 60)
        text = "<br>".join(map(escaped, lines))
        figure.add_annotation(text=text, x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False, font_size=14)
        figure.update_xaxes(visible=False).update_yaxes(visible=False)
    return figure


def logarithmic(values: pd.Series) -> float | None:
    """The least value that a logarithmic axis shows. None means that the axis has to be linear: a value is negative.

    Zeros, and rounding errors of values that are zero in exact arithmetic, go to the lower edge, because they would
    press all other values together.
    """
    finite = values[np.isfinite(values)]
    positive = finite[finite > 0]
    if positive.empty or (finite < 0).any():
        return None
    ordered = np.sort(positive.to_numpy())
    gaps = np.flatnonzero(np.diff(np.log10(ordered)) > DECADES)
    gaps = gaps[gaps < len(ordered) // 2 - 1]  # most values stay
    return float(ordered[gaps[-1] + 1] if gaps.size else ordered[0])


def clipped(values: pd.Series, floor: float | None) -> pd.Series:
    """Values, with half of the floor in place of those below it: the lower edge of a logarithmic axis."""
    return values if floor is None else values.where(~np.isfinite(values) | (values >= floor), floor / 2)


def scale(values: pd.Series, floor: float | None) -> dict[str, Any]:
    """Settings of an axis for its values: decades, with ticks at 2 and 5 between them if there are few."""
    if floor is None:
        return {"type": "linear"}
    finite = values[np.isfinite(values)]
    decades = math.log10(finite.max() / finite.min())
    return {"type": "log", "dtick": 1 if decades > 2 else "D2", "tickformat": "~s" if finite.max() >= LONG else "~g"}


def not_drawn(table: pd.DataFrame, *columns: str) -> list[str]:
    """A note that names the probes without a finite value, and why; no note if all have one."""
    finite = np.isfinite(table[list(columns)].to_numpy("float64")).all(axis=1)
    missing = table[~finite]
    rows: list[dict[Any, Any]] = missing.to_dict("records")
    names = [f"{probe} ({_why(row)})" for probe, row in zip(missing["probe"], rows, strict=True)]
    return [f"not drawn: {', '.join(names)}"] if names else []


def at_the_edge(table: pd.DataFrame, column: str, floor: float | None) -> list[str]:
    """A note that names the probes drawn at the lower edge of a logarithmic axis, with their values."""
    below = table[np.isfinite(table[column]) & (table[column] < floor)] if floor is not None else table[:0]
    names = [f"{probe} {digits(value)}" for probe, value in zip(below["probe"], below[column], strict=True)]
    return [f"at the edge, below the range of the axis: {', '.join(names)}"] if names else []


def noisy_clocks(table: pd.DataFrame) -> list[str]:
    """A note that names the probes whose clock was noisy."""
    names = list(table.loc[table["noisy"], "probe"]) if "noisy" in table else []
    return [f"noisy clock: {', '.join(names)}"] if names else []


def _why(row: Mapping[Any, Any]) -> str:
    infinite = [value for value in row.values() if isinstance(value, float) and math.isinf(value)]
    ended = row.get("status")
    return "infinite" if infinite else "no value" if ended in (None, "ok") or ended != ended else str(ended)


def _titled(metric: str, scope: str, better: str, prefix: str = "") -> str:
    entry = meaning(metric)
    name = prefix + (entry.label or escaped(metric)) + (f" [{entry.unit}]" if entry.unit not in ("", "1") else "")
    return ", ".join(filter(None, [name, escaped(scope), better and f"{better} is better"]))
