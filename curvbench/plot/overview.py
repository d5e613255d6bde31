"""How every cell ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from curvbench.analysis import views
from curvbench.plot import axes
from curvbench.plot.look import by_family
from curvbench.spec import Status

if TYPE_CHECKING:
    import plotly.graph_objects as go

ROW_HEIGHT = 30
# A mark beside the colour: what is told by colour alone is lost on some readers.
MARKS = {"ok": ("+", "#8CCBB5"), "no value": ("-", "#C9C9C9"), "failed": ("x", "#E9A27A"), "not run": ("", "#EFEFEF")}
KINDS = list(MARKS)
NOTE = "+ ok, - unsupported or skipped, x failed or in part failed, blank: not run"


def status(frame: pd.DataFrame) -> go.Figure:
    """Problem by probe: how the cells ended, by mark and colour; status and reason where the pointer rests."""
    table = views.status(frame)
    probes, problems = by_family(dict.fromkeys(table["probe"])), list(dict.fromkeys(table["problem"]))[::-1]
    height = 110 + 6 * max(map(len, probes), default=0) + ROW_HEIGHT * len(problems)
    figure = axes.new_figure("How the cells ended", [NOTE], height=height)
    table["kind"] = table["status"].map(kind)
    table["hover"] = table["reason"].map(lambda reason: f"<br>{axes.escaped(reason)}" if reason else "")
    grid = {
        key: table.pivot(index="problem", columns="probe", values=key).reindex(index=problems, columns=probes)
        for key in ("kind", "status", "hover")
    }
    stand_ins = views.surrogates(frame)
    figure.add_heatmap(
        z=grid["kind"].map(KINDS.index).to_numpy(),
        x=[axes.escaped(probe) for probe in probes],
        y=[axes.escaped(name) + (" (surrogate)" if name in stand_ins else "") for name in problems],
        text=grid["kind"].map(lambda found: MARKS[found][0]).to_numpy(),
        texttemplate="%{text}",
        textfont={"color": "#202020"},
        customdata=(grid["status"] + grid["hover"]).to_numpy(),
        hovertemplate="%{x} on %{y}: %{customdata}<extra></extra>",
        colorscale=[(place / 4 + edge, color) for place, (_, color) in enumerate(MARKS.values()) for edge in (0, 0.25)],
        zmin=-0.5,
        zmax=3.5,
        showscale=False,
        xgap=2,
        ygap=2,
    )
    figure.update_xaxes(side="bottom", title=None, tickangle=-60, dtick=1, automargin=True)
    figure.update_yaxes(automargin=True, title=None, dtick=1)
    figure.update_layout(margin_b=10)
    return figure


def kind(status: str) -> str:
    """Which of ``MARKS`` the statuses of some cells, ``ok`` or ``ok, timeout``, get."""
    if status in ("ok", "not run"):
        return status
    return "no value" if set(status.split(", ")) <= {Status.OK, Status.UNSUPPORTED, Status.SKIPPED} else "failed"
