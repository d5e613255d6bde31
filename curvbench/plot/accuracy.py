"""How good the approximations are: per layer, and against a hyperparameter."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from curvbench.analysis import views
from curvbench.analysis.summary import digits
from curvbench.analysis.views import Quantity
from curvbench.plot import axes
from curvbench.plot.look import DASHES, Look, by_family, looks

if TYPE_CHECKING:
    import plotly.graph_objects as go

ROW_HEIGHT = 23
FARTHEST = 2.0  # decades from 1 that colours tell apart
SLANTED, LETTER = 36, 5.5  # pixels for names of layers that a narrow window slants; of a slanted letter
SCALE = 70  # pixels for the scale of colours
WIDEST_WITH_NUMBERS = 14  # columns
# Where a scale of colours is dark, as a share of it: numbers are white there.
DARK = {"Viridis": lambda share: share < 0.45, "PuOr_r": lambda share: abs(share - 0.5) > 0.32}


def heatmap_figure(table: pd.DataFrame, statuses: pd.Series, problem: str, metric: str) -> go.Figure:
    """Probe by layer: medians over seeds; the network and its layer blocks stand first.

    ``table`` as ``analysis.views.layers`` gives it, ``statuses`` by probe. Metrics that span decades are coloured by
    their logarithm.
    """
    table = table.loc[by_family(table.index)[::-1]]
    greatest = {"probe": table.index, "value": table.max(axis=1).to_numpy()}
    ends = pd.DataFrame(greatest | {"status": statuses.reindex(table.index).to_numpy()})
    figure = axes.new_figure(
        axes.problem_title(views.plain(metric), problem),
        axes.not_drawn(ends, "value"),
        height=120 + SCALE + ROW_HEIGHT * max(len(table), 3),
    )
    colored, scale, texts = _colored(table, metric), _scale(table, metric), table.map(digits)
    blanks = texts.map(lambda text: "\u2007" * len(text))  # as wide as digits: both parts get letters of one size
    dark = _is_dark(colored, scale)
    for part, color in ((dark, "white"), (~dark, "black")):
        figure.add_heatmap(
            z=np.where(part, colored, np.nan),
            x=[axes.escaped(scope) for scope in table],
            y=[axes.escaped(probe) for probe in table.index],
            text=np.where(part, texts, blanks),
            texttemplate="%{text}" if table.shape[1] <= WIDEST_WITH_NUMBERS else None,
            textfont={"color": color},
            hovertemplate="%{y}, %{x}<br>" + f"{views.plain(metric)}: " + "%{text}<extra></extra>",
            hoverongaps=False,
            xgap=1,
            ygap=1,
            **scale,
        )
    figure.update_traces(showscale=False, selector=1)
    is_wide = table.shape[1] > WIDEST_WITH_NUMBERS
    above = max([SLANTED, *(LETTER * len(str(scope)) for scope in table if is_wide)])
    figure.update_xaxes(side="top", title=None, dtick=1, tickangle=-60 if is_wide else None, tickfont_size=11)
    figure.update_yaxes(automargin=True, title=None, dtick=1)
    figure.update_layout(
        margin_b=SCALE, margin_t=figure.layout.margin.t + above, height=figure.layout.height + above - SLANTED
    )
    wholes = sum(scope in views.WHOLES for scope in table)
    if 0 < wholes < len(table.columns):
        figure.add_vline(x=wholes - 0.5, line_width=2)
    return figure


def sweep_figure(table: pd.DataFrame, parameter: str, quantity: Quantity) -> go.Figure:
    """A quantity against a hyperparameter: one line per probe and problem, ranges over seeds as bars.

    ``table`` as ``analysis.views.sweep`` gives it for ``parameter``.
    """
    floor = axes.logarithmic(table["median"]) if len(table) else None
    drawn = table[table["median"].notna()].assign(shown=lambda rows: axes.clipped(rows["median"], floor))
    several = drawn["problem"].nunique() > 1
    drawn["name"] = drawn["probe"] + " on " + drawn["problem"] if several else drawn["probe"]
    notes = axes.at_the_edge(table.drop_duplicates("probe"), "median", floor)
    title = f"{views.plain(quantity.metric)} against {axes.escaped(parameter)}"
    figure = axes.new_figure(title, notes, names=drawn["name"].unique())
    dash_of = dict(zip(dict.fromkeys(drawn["problem"]), itertools.cycle(("solid", *DASHES))))
    for probe, look in looks(drawn["probe"].unique()).items():
        for problem, rows in drawn[drawn["probe"] == probe].groupby("problem", sort=False):
            if rows[parameter].nunique() > 1:
                figure.add_trace(_line(rows, parameter, look._replace(dash=dash_of[problem]) if several else look))
    far = len(drawn) > 0 and drawn[parameter].max() >= 30 * drawn[parameter].min() > 0
    figure.update_xaxes(title=axes.escaped(parameter), **axes.scale(drawn[parameter], 0.0 if far else None))
    figure.update_yaxes(title=axes.upright(axes.axis_title(quantity)), **axes.scale(drawn["shown"], floor))
    return figure


def _line(rows: pd.DataFrame, parameter: str, look: Look) -> Any:
    name = axes.escaped(rows["name"].iloc[0])
    ranged = (rows["max"] > rows["min"]).any() and (rows["shown"] == rows["median"]).all()
    bars = {"array": rows["max"] - rows["median"], "arrayminus": rows["median"] - rows["min"], "thickness": 1}
    return axes.graph_objects().Scatter(
        x=rows[parameter],
        y=rows["shown"],
        error_y=bars if ranged else None,
        mode="lines+markers",
        line={"color": look.color, "dash": look.dash},
        marker=look.marker(9),
        name=name,
        text=rows["median"].map(digits),
        hovertemplate=f"<b>{name}</b><br>{axes.escaped(parameter)} = %{{x}}: %{{text}}<extra></extra>",
    )


def _colored(table: pd.DataFrame, metric: str) -> np.ndarray[Any, Any]:
    """The values, or their logarithms if they are positive and span more than a decade."""
    values = table.to_numpy("float64").copy()
    values[~np.isfinite(values)] = np.nan
    if not _by_decades(table, metric):
        return values
    values[values == 0] = values[values > 0].min()
    return np.log10(values)


def _by_decades(table: pd.DataFrame, metric: str) -> bool:
    if _is_share(metric):
        return False
    values = table.to_numpy("float64").ravel()
    finite = values[np.isfinite(values)]
    positive = finite[finite > 0]
    return bool(positive.size and not (finite < 0).any() and positive.max() > 10 * positive.min())


def _is_share(metric: str) -> bool:
    """Whether a metric is a part of the squared error, which 0 and 1 bound."""
    return views.plain(metric).startswith("share of the squared error")


def _is_dark(colored: np.ndarray[Any, Any], scale: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    if not scale["showscale"]:
        return np.zeros(colored.shape, dtype=bool)
    share = np.clip((colored - scale["zmin"]) / (scale["zmax"] - scale["zmin"]), 0, 1)
    return np.asarray(DARK[scale["colorscale"]](share))


def _scale(table: pd.DataFrame, metric: str) -> dict[str, Any]:
    """Colours, range and ticks of the bar.

    Errors are those of the zero matrix at 1, and a metric without a direction is right there: blue below, brown above.
    The bar's ends say where colours are clipped.
    """
    colored = _colored(table, metric)
    values = colored[np.isfinite(colored) & (table.to_numpy() != 0)]
    if values.size == 0:
        return {"showscale": False}
    low, high = np.percentile(values, [5, 95])
    meaning = views.meaning(metric)
    is_share = _is_share(metric)
    diverges = not is_share and (not meaning.better or (metric.startswith("error.") and meaning.better == "lower"))
    if is_share:
        low = 0.0
    elif diverges:
        centre = 0.0 if _by_decades(table, metric) else 1.0
        reach = min(
            max(abs(low - centre), abs(high - centre), 1e-3), FARTHEST if _by_decades(table, metric) else np.inf
        )
        low, high = centre - reach, centre + reach
    elif _by_decades(table, metric):
        low, high = max(low, np.median(values) - 2), min(high, np.median(values) + 1)
    ticks = np.linspace(low, high, 5)
    texts = [digits(float(value)) for value in (10**ticks if _by_decades(table, metric) else ticks)]
    texts[0] = "≤ " * bool((values < low).any()) + texts[0]
    texts[-1] = "≥ " * bool((values > high).any()) + texts[-1]
    bar = {"tickvals": ticks, "ticktext": texts, "thickness": 12, "len": 0.8}
    bar |= {"orientation": "h", "y": 0, "yanchor": "top", "ypad": 6}
    bar |= {"title": {"text": axes.metric_title(metric), "side": "bottom", "font": {"size": 12}}}
    colors = "PuOr_r" if diverges else "Viridis"
    return {"showscale": True, "colorscale": colors, "zmin": low, "zmax": max(high, low + 1e-9), "colorbar": bar}
