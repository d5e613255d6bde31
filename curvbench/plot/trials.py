"""The trials of a search as parallel coordinates: one line per setting, coloured by what it reached."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from curvbench.analysis.summary import digits
from curvbench.analysis.trials import VALUE, hyperparameters
from curvbench.analysis.views import meaning, plain
from curvbench.plot import axes
from curvbench.plot.look import by_family

if TYPE_CHECKING:
    import plotly.graph_objects as go

FAR = 30.0  # the greatest over the least number of an axis from which on it is logarithmic
NONE = "none"


def trials_figure(table: pd.DataFrame, problem: str, metric: str) -> go.Figure:
    """Parallel coordinates: method, hyperparameters, value.

    ``table`` as ``analysis.trials.table`` gives it.
    """
    notes = [f"{meaning(metric).better} is better; drag along an axis to keep the lines that pass there"]
    figure = axes.new_figure(axes.problem_title(f"Trials by {plain(metric)}", problem), notes, height=440)
    drawn = table[np.isfinite(table[VALUE].astype("float64"))]
    parts = [("method", drawn["probe"])] if drawn["probe"].nunique() > 1 else []
    parts += [(name, drawn[name]) for name in hyperparameters(drawn)]
    value = {"label": plain(metric), "values": drawn[VALUE]}
    figure.add_trace(
        axes.graph_objects().Parcoords(
            dimensions=[*(_dimension(name, part) for name, part in parts), value],
            line={
                "color": drawn[VALUE],
                "colorscale": "Viridis",
                "reversescale": meaning(metric).better == "lower",
            },
            labelfont={"size": 12},
            tickfont={"size": 11},
        )
    )
    figure.update_layout(margin={"t": figure.layout.margin.t + 40, "l": 90, "r": 90, "b": 30})
    return figure


def _dimension(name: str, settings: pd.Series) -> dict[str, Any]:
    """An axis of numbers, by decades if they are far apart, or of words; trials without the setting are at its foot."""
    numbers = pd.to_numeric(settings, errors="coerce")
    label = axes.escaped(name)
    if numbers.isna().to_numpy()[settings.notna().to_numpy()].any():
        words = by_family(dict.fromkeys(settings.dropna().astype(str)))
        return _words(label, settings.astype(object).where(settings.notna(), NONE).astype(str), words)
    is_far = bool(numbers.min() > 0 and numbers.max() >= FAR * numbers.min())
    places = np.log10(numbers) if is_far else numbers
    low, high = places.min(), places.max()
    foot = low - 0.15 * ((high - low) or 1.0)
    ticks = sorted(set(numbers.dropna()))
    ticks = ticks if len(ticks) <= 8 else [float(x) for x in np.quantile(ticks, [0, 0.25, 0.5, 0.75, 1])]
    at = [float(np.log10(tick)) if is_far else float(tick) for tick in ticks]
    texts = [digits(tick) for tick in ticks]
    if numbers.isna().any():
        at, texts = [foot, *at], [NONE, *texts]
    return {"label": label, "values": places.fillna(foot), "tickvals": at, "ticktext": texts}


def _words(label: str, settings: pd.Series, words: list[str]) -> dict[str, Any]:
    names = [*([NONE] if (settings == NONE).any() else []), *(word for word in words if word != NONE)]
    places = settings.map(names.index)
    texts = list(map(axes.escaped, names))
    return {"label": label, "values": places, "tickvals": list(range(len(names))), "ticktext": texts}
