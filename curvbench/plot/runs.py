"""One metric in two runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from curvbench.analysis.summary import digits
from curvbench.analysis.views import Quantity
from curvbench.plot import axes
from curvbench.plot.look import by_family, looks

if TYPE_CHECKING:
    import plotly.graph_objects as go


def comparison_figure(table: pd.DataFrame, quantity: Quantity, names: tuple[str, str] = ("A", "B")) -> go.Figure:
    """One point per probe, problem and seed: its value in run B against its value in run A, with the line y = x.

    ``table``: the rows of ``analysis.pairs.pairs`` of one quantity.
    """
    both = table[table["a"].notna() & table["b"].notna()]
    shared = pd.concat([both["a"], both["b"]])
    floor = axes.logarithmic(shared)
    only = {side: table.loc[table["verdict"] == f"only in {side}", "probe"].unique() for side in "AB"}
    notes = [f"only in {side}: {', '.join(by_family(probes))}" for side, probes in only.items() if len(probes)]
    figure = axes.new_figure(axes.metric_title(*quantity), notes, height=480, names=["y = x", *both["probe"].unique()])
    ends = [float(axes.clipped(shared, floor).min()), float(shared.max())] if len(both) else [0.0, 1.0]
    line = {"color": "#808080", "dash": "dot"}
    figure.add_scatter(x=ends, y=ends, mode="lines", line=line, name="y = x", hoverinfo="skip")
    for probe, look in looks(both["probe"].unique()).items():
        rows = both[both["probe"] == probe]
        figure.add_scatter(
            x=axes.clipped(rows["a"], floor),
            y=axes.clipped(rows["b"], floor),
            mode="markers",
            marker=look.marker(10),
            name=axes.escaped(probe),
            text=[
                f"{axes.escaped(probe)} on {axes.escaped(row['problem'])}, seed {row['seed']}<br>"
                f"{digits(row['a'])} -> {digits(row['b'])} ({row['verdict']})"
                for row in rows.to_dict("records")
            ],
            hovertemplate="%{text}<extra></extra>",
        )
    scale = axes.scale(axes.clipped(shared, floor), floor)
    for update, name in zip((figure.update_xaxes, figure.update_yaxes), names, strict=True):
        update(title=f"{axes.escaped(name)}: {axes.metric_title(*quantity)}", **scale)
    return figure
