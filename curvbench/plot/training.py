"""Training: a metric against epochs or seconds, and how often a target was reached how soon."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import pandas as pd

from curvbench.analysis import frames, targets, views
from curvbench.analysis.frames import problems
from curvbench.analysis.summary import digits
from curvbench.plot import axes
from curvbench.plot.look import Look, by_family, looks

if TYPE_CHECKING:
    import plotly.graph_objects as go

FEW = 12  # epochs: each has its number


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
    for probe, seen in looks(table["probe"].unique()).items():
        _draw(figure, probe, drawn[drawn["probe"] == probe], against, seen)
    figure.update_xaxes(title="epoch" if against == "epoch" else "train.seconds [s], training alone")
    if against == "epoch" and 0 < len(drawn) and drawn["epoch"].max() - drawn["epoch"].min() < FEW:
        figure.update_xaxes(dtick=1)
    positive = len(table) > 0 and bool((table["median"].dropna() > 0).all())
    scale = axes.scale(table["median"], 0.0 if positive and "loss" in metric else None)
    figure.update_yaxes(title=axes.upright(axes.metric_title(metric)), **scale)
    return figure


def profiles(
    frame: pd.DataFrame, metric: str = "test.accuracy", target: float | None = None, cost: targets.Cost = "seconds"
) -> go.Figure:
    """Performance profiles (Dolan and More, 2002): the share of trainings that took at most a multiple of the best.

    One line per probe over all problems and seeds, higher is better; ``target`` as ``analysis.targets`` takes it.
    """
    goal = targets.usual_target(frame, metric) if target is None else target
    trials = targets.trials(frame, metric, goal)
    table = targets.profile(trials, cost)
    missed = [probe for probe in trials["probe"].unique() if probe not in set(table["probe"])]
    notes = [f"never reached by: {', '.join(by_family(missed))}"] if missed else []
    stand_in = " (surrogate)" if len(frames.surrogates(frame)) else ""
    title = f"{cost} to {metric} {digits(goal)}{stand_in}"
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


def _draw(figure: go.Figure, probe: str, rows: pd.DataFrame, against: str, seen: Look) -> None:
    name = axes.escaped(probe)
    if rows.empty:
        return
    if (rows["max"] > rows["min"]).any():
        figure.add_scatter(
            x=[*rows[against], *rows[against][::-1]],
            y=[*rows["max"], *rows["min"][::-1]],
            fill="toself",
            fillcolor=seen.color,
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
        line={"color": seen.color, "dash": seen.dash},
        marker=seen.marker(9),
        name=name,
        legendgroup=name,
        text=rows["median"].map(digits),
        hovertemplate=f"<b>{name}</b><br>{against} %{{x}}: %{{text}}<extra></extra>",
    )


def _missing(frame: pd.DataFrame, problem: str, table: pd.DataFrame) -> list[str]:
    """The probes that failed: those of the other kind of cell have no curve, and are not missed."""
    ended = views.status(frames.of_problem(frame, problem))
    drawn = [name.partition(" {")[0] for name in table["probe"]]
    failed = ended[~ended["probe"].isin(drawn) & ended["status"].ne("ok")]
    names = [f"{probe} ({status})" for probe, status in zip(failed["probe"], failed["status"], strict=True)]
    return [f"not drawn: {', '.join(names)}"] if names else []
