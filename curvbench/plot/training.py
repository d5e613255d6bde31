"""Training: a metric against epochs or seconds, and how often a target was reached how soon."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import pandas as pd

from curvbench.analysis import targets
from curvbench.analysis.summary import digits
from curvbench.analysis.views import plain
from curvbench.plot import axes
from curvbench.plot.look import Look, by_family, looks

if TYPE_CHECKING:
    import plotly.graph_objects as go

FEW = 12  # epochs: each has its number


def curves_figure(
    table: pd.DataFrame, statuses: pd.Series, problem: str, metric: str, against: Literal["epoch", "seconds"] = "epoch"
) -> go.Figure:
    """One line per probe: the median over seeds, with the range as a band; seconds are those of training alone.

    ``table`` as ``analysis.views.curves`` gives it, ``statuses`` by probe.
    """
    title, notes = axes.problem_title(plain(metric), problem), _missing(table, statuses)
    figure = axes.new_figure(title, notes, names=table["probe"].unique())
    drawn = table.dropna(subset=[against, "median"]).sort_values(against, kind="stable")
    for probe, look in looks(table["probe"].unique()).items():
        _draw(figure, probe, drawn[drawn["probe"] == probe], against, look)
    figure.update_xaxes(title="epoch" if against == "epoch" else "seconds of training alone [s]")
    if against == "epoch" and 0 < len(drawn) and drawn["epoch"].max() - drawn["epoch"].min() < FEW:
        figure.update_xaxes(dtick=1)
    positive = len(table) > 0 and bool((table["median"].dropna() > 0).all())
    scale = axes.scale(table["median"], 0.0 if positive and "loss" in metric else None)
    figure.update_yaxes(title=axes.upright(axes.metric_title(metric)), **scale)
    return figure


def profiles_figure(
    trials: pd.DataFrame, metric: str, target: float, cost: targets.Cost = "seconds", is_surrogate: bool = False
) -> go.Figure:
    """Performance profiles (Dolan and More, 2002): the share of trainings that took at most a multiple of the best.

    One line per probe over all problems and seeds, higher is better. ``trials`` as ``analysis.targets.trials`` gives
    them for the ``target``.
    """
    table = targets.profile(trials, cost)
    missed = [probe for probe in trials["probe"].unique() if probe not in set(table["probe"])]
    notes = [f"never reached by: {', '.join(by_family(missed))}"] if missed else []
    title = f"{cost} to a {plain(metric)} of {digits(target)}{' (surrogate)' if is_surrogate else ''}"
    figure = axes.new_figure(title, notes, height=380, names=table["probe"].unique())
    end = 1.1 * float(table["ratio"].max()) if len(table) else 2.0
    for probe, (color, symbol, dash) in looks(trials["probe"].unique()).items():
        rows = table[table["probe"] == probe]
        if rows.empty:
            continue
        figure.add_scatter(
            x=[*rows["ratio"], end],
            y=[*rows["share"], rows["share"].iloc[-1]],
            mode="lines+markers",
            line={"color": color, "shape": "hv", "dash": dash},
            marker={"symbol": symbol, "size": [8] * len(rows) + [0]},
            name=axes.escaped(probe),
            hovertemplate=f"<b>{axes.escaped(probe)}</b><br>%{{y:.0%}} within %{{x:.3g}} x the best<extra></extra>",
        )
    across = f"multiple of the best {cost}, lower is better"
    figure.update_xaxes(title=across, type="log", dtick="D2", tickformat="~g")
    figure.update_yaxes(title="share of trainings<br>higher is better", range=[-0.02, 1.05], tickformat=".0%")
    return figure


def _draw(figure: go.Figure, probe: str, rows: pd.DataFrame, against: str, look: Look) -> None:
    name = axes.escaped(probe)
    if rows.empty:
        return
    if (rows["max"] > rows["min"]).any():
        figure.add_scatter(
            x=[*rows[against], *rows[against][::-1]],
            y=[*rows["max"], *rows["min"][::-1]],
            fill="toself",
            fillcolor=look.color,
            mode="lines",
            opacity=0.12,
            line={"width": 0},
            legendgroup=name,
            showlegend=False,
            hoverinfo="skip",
        )
    figure.add_scatter(
        x=rows[against],
        y=rows["median"],
        mode="lines+markers",
        line={"color": look.color, "dash": look.dash},
        marker=look.marker(9),
        name=name,
        legendgroup=name,
        text=rows["median"].map(digits),
        hovertemplate=f"<b>{name}</b><br>{against} %{{x}}: %{{text}}<extra></extra>",
    )


def _missing(table: pd.DataFrame, statuses: pd.Series) -> list[str]:
    """A note that names the probes that failed; cells that were measured, not trained, need no curve."""
    drawn = {name.partition(" {")[0] for name in table["probe"]}
    failed = statuses[~statuses.index.isin(drawn) & statuses.ne("ok")]
    names = [f"{probe} ({status})" for probe, status in failed.items()]
    return [f"not drawn: {', '.join(names)}"] if names else []
