"""The widgets whose values stand in the address, so that a view can be sent as a link."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

import source
from curvbench.analysis import summary, views
from curvbench.analysis.views import Quantity
from curvbench.plot.look import by_family

LINKED: dict[str, Any] = {"bind": "query-params"}


def pick_run(label: str = "Run", key: str = "run", place: int = 0) -> Path:
    """One of the runs, the latest first."""
    runs = source.runs()
    names = list(runs)
    return runs[st.selectbox(label, names, index=min(place, len(names) - 1), key=key, **LINKED)]


def pick_problem(frame: pd.DataFrame) -> str:
    """One of the problems of a run."""
    stand_ins = views.surrogates(frame)

    def shown(name: str) -> str:
        return f"{name} (surrogate)" if name in stand_ins else name

    return st.selectbox("Problem", summary.problems(frame), format_func=shown, key="problem", **LINKED)


def pick_probes(frame: pd.DataFrame) -> list[str]:
    """Some of the probes; none chosen means all."""
    known = by_family(dict.fromkeys(summary.labels(frame, "probe")))
    return st.multiselect("Probes", known, key="probes", placeholder="All", **LINKED)


def pick_cell(labels: Sequence[str]) -> str:
    """A cell by its label."""
    return str(st.selectbox("Cell, also by a click at the left of its row", labels, key="cell", **LINKED))


def pick_seed(known: Sequence[int]) -> int:
    """One of the seeds; nothing to choose where there is one."""
    return int(known[0] if len(known) < 2 else st.selectbox("Seed", known, key="seed", **LINKED))


def run() -> Path:
    """The run that the sidebar shows."""
    return source.runs()[st.session_state["run"]]


def place_of_baseline() -> int:
    """The place in the list of runs of the one to compare with: of the same suite or kind, earlier if there is one."""
    runs = source.runs()
    names, chosen = list(runs), st.session_state["run"]
    place = names.index(chosen)
    others = [*range(place + 1, len(names)), *reversed(range(place))]
    same = [k for k in others if runs[names[k]].parent == runs[chosen].parent]
    alike = [k for k in others if source.trains(runs[names[k]]) == source.trains(runs[chosen])]
    return (same or alike or others)[0]


def problem() -> str:
    """The problem that the sidebar shows."""
    return str(st.session_state["problem"])


def frame() -> pd.DataFrame:
    """The rows of the chosen run and probes."""
    rows = source.rows(run())
    chosen = st.session_state["probes"]
    return rows[summary.labels(rows, "probe").isin(chosen)] if chosen else rows


def pick_quantity(label: str, known: Sequence[Quantity], key: str, usual: Quantity) -> Quantity:
    """A metric in a scope; what it means is one hover away."""
    index = known.index(usual) if usual in known else 0
    meaning = "  \n".join(f"`{name}`: {views.meaning(name).text}" for name in dict.fromkeys(q.metric for q in known))
    names = list(map(str, known))
    return Quantity.parse(st.selectbox(label, names, index=index, key=key, help=meaning, **LINKED))


def pick_metric(label: str, known: Sequence[str], key: str) -> str:
    """A metric by name; what it means is one hover away."""
    meaning = "  \n".join(f"`{name}`: {views.meaning(name).text}" for name in known)
    return st.selectbox(label, known, key=key, help=meaning, **LINKED)


def pick_one(label: str, options: Sequence[str], key: str) -> Any:
    """One of a few words, the first without a choice."""
    return st.segmented_control(label, options, default=options[0], key=key, required=True, **LINKED)


def pick_number(label: str, usual: float, key: str, meaning: str) -> float:
    """A number to type."""
    step = 10 ** (math.floor(math.log10(abs(usual))) - 1) if usual else 0.01
    return float(st.number_input(label, value=usual, step=step, format="%.4g", key=key, help=meaning, **LINKED))


def switch(label: str, key: str, usual: bool = True) -> bool:
    """On or off."""
    return st.toggle(label, value=usual, key=key, **LINKED)
