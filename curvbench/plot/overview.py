"""How every cell ended."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import pandas as pd

from curvbench.plot import axes
from curvbench.plot.look import by_family
from curvbench.spec import Status

if TYPE_CHECKING:
    import plotly.graph_objects as go

ROW_HEIGHT = 19
TALLEST = 240  # pixels of slanted names at most
FLAT = 40  # letters of the names of problems that have room side by side
# A mark stands beside the colour, because some readers cannot tell the colours apart.
MARKS = {"ok": ("+", "#8CCBB5"), "no value": ("-", "#C9C9C9"), "failed": ("x", "#E9A27A"), "not run": ("", "#EFEFEF")}
KINDS = list(MARKS)
NOTE = "+ ok, - unsupported or skipped, x failed or in part failed, blank: not run"


def status_figure(table: pd.DataFrame, surrogates: Collection[str]) -> go.Figure:
    """Probe by problem: how the cells ended, by mark and colour; the pointer shows status and reason.

    ``table`` as ``analysis.views.status`` gives it; ``surrogates``: the labels of problems that are called so.
    """
    probes, problems = by_family(dict.fromkeys(table["probe"]))[::-1], list(dict.fromkeys(table["problem"]))
    names = [axes.escaped(name) + (" (surrogate)" if name in surrogates else "") for name in problems]
    slanted = sum(map(len, names)) > FLAT
    height = 110 + (min(6 * max(map(len, names)), TALLEST) if slanted else 0) + ROW_HEIGHT * max(len(probes), 3)
    figure = axes.new_figure("How the measurements ended", [NOTE], height=height)
    table = table.assign(kind=table["status"].map(kind))
    table["hover"] = table["reason"].map(lambda reason: f"<br>{axes.escaped(reason)}" if reason else "")
    grid = {
        key: table.pivot(index="probe", columns="problem", values=key).reindex(index=probes, columns=problems)
        for key in ("kind", "status", "hover")
    }
    figure.add_heatmap(
        z=grid["kind"].map(KINDS.index).to_numpy(),
        x=names,
        y=[axes.escaped(probe) for probe in probes],
        text=grid["kind"].map(lambda name: MARKS[name][0]).to_numpy(),
        texttemplate="%{text}",
        textfont={"color": "#202020"},
        customdata=(grid["status"] + grid["hover"]).to_numpy(),
        hovertemplate="%{y} on %{x}: %{customdata}<extra></extra>",
        colorscale=[(place / 4 + edge, color) for place, (_, color) in enumerate(MARKS.values()) for edge in (0, 0.25)],
        zmin=-0.5,
        zmax=3.5,
        showscale=False,
        xgap=1,
        ygap=1,
    )
    figure.update_xaxes(side="top", title=None, tickangle=-60 if slanted else 0, dtick=1, automargin=True)
    figure.update_yaxes(automargin=True, title=None, dtick=1)
    figure.update_layout(margin={"b": 10, "t": figure.layout.margin.t + ROW_HEIGHT})
    return figure


def kind(status: str) -> str:
    """Which of ``MARKS`` the statuses of some cells, ``ok`` or ``ok, timeout``, get."""
    if status in ("ok", "not run"):
        return status
    return "no value" if set(status.split(", ")) <= {Status.OK, Status.UNSUPPORTED, Status.SKIPPED} else "failed"
