"""Training: a metric against epochs or seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import pandas as pd

from curvbench.analysis import views
from curvbench.analysis.summary import digits, problems
from curvbench.plot import axes
from curvbench.plot.look import by_family, look

if TYPE_CHECKING:
    import plotly.graph_objects as go


def curves(
    frame: pd.DataFrame,
    problem: str | None = None,
    metric: str = "train.loss",
    against: Literal["epoch", "seconds"] = "epoch",
) -> go.Figure:
    """One line per probe: the median over seeds, with the range as a band; seconds are those of training alone."""
    problem = problem or next(iter(problems(frame)), "")
    table = views.curves(frame, problem, metric)
    title, notes = axes.problem_title(frame, metric, problem), _missing(frame, problem, table)
    figure = axes.new_figure(title, notes, names=table["probe"].unique())
    drawn = table.dropna(subset=[against, "median"]).sort_values(against, kind="stable")
    for probe in by_family(drawn["probe"].unique()):
        _draw(figure, probe, drawn[drawn["probe"] == probe], against)
    figure.update_xaxes(title="epoch" if against == "epoch" else "train.seconds [s], training alone")
    positive = len(table) > 0 and bool((table["median"].dropna() > 0).all())
    figure.update_yaxes(
        title=axes.upright(axes.metric_title(metric)), type="log" if positive and "loss" in metric else "linear"
    )
    return figure


def _draw(figure: go.Figure, probe: str, rows: pd.DataFrame, against: str) -> None:
    name, (color, symbol) = axes.escaped(probe), look(probe)
    if (rows["max"] > rows["min"]).any():
        figure.add_scatter(
            x=[*rows[against], *rows[against][::-1]],
            y=[*rows["max"], *rows["min"][::-1]],
            fill="toself",
            fillcolor=color,
            opacity=0.18,
            line={"width": 0},
            legendgroup=name,
            showlegend=False,
            hoverinfo="skip",
        )
    figure.add_scatter(
        x=rows[against],
        y=rows["median"],
        mode="lines+markers",
        line={"color": color, "dash": "dot" if "[" in probe else "solid"},
        marker={"symbol": symbol, "size": 7},
        name=name,
        legendgroup=name,
        text=rows["median"].map(digits),
        hovertemplate=f"<b>{name}</b><br>{against} %{{x}}: %{{text}}<extra></extra>",
    )


def _missing(frame: pd.DataFrame, problem: str, table: pd.DataFrame) -> list[str]:
    """The probes that failed: those of the other kind of cell have no curve, and are not missed."""
    ended = views.status(views.of_problem(frame, problem))
    failed = ended[~ended["probe"].isin(table["probe"]) & ended["status"].ne("ok")]
    names = [f"{probe} ({status})" for probe, status in zip(failed["probe"], failed["status"], strict=True)]
    return [f"not drawn: {', '.join(names)}"] if names else []
