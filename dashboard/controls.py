"""The widgets whose values stand in the address, so that a view can be sent as a link."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

import show
import source
from curvbench.analysis import frames, views
from curvbench.analysis.views import Quantity
from curvbench.plot.look import by_family, method

LINKED: dict[str, Any] = {"bind": "query-params"}


def pick_run(label: str = "Run", key: str = "run", place: int = 0) -> Path:
    """One of the runs, the latest first."""
    runs = source.runs()
    names = list(runs)
    _say_what_is_not_there(label, key, names)
    return runs[st.selectbox(label, names, index=min(place, len(names) - 1), key=key, **LINKED)]


def pick_problem(frame: pd.DataFrame) -> str:
    """One of the problems of a run."""
    stand_ins = frames.surrogates(frame)

    def shown(name: str) -> str:
        return f"{name} (surrogate)" if name in stand_ins else name

    return pick("Problem", frames.problems(frame), "problem", format_func=shown)


def pick_probes(frame: pd.DataFrame) -> list[str]:
    """Some of the probes; none chosen means all."""
    known = by_family(dict.fromkeys(frames.labels(frame, "probe")))
    _say_what_is_not_there("Probes", "probes", known)
    return st.multiselect("Probes", known, key="probes", placeholder="All", **LINKED)


def pick_cell(labels: Sequence[str]) -> str:
    """A cell by its label."""
    return str(pick("Cell, also by a click at the left of its row", labels, "cell"))


def pick_seed(known: Sequence[int]) -> int:
    """One of the seeds; nothing to choose where there is one."""
    if len(known) > 1:
        return int(pick("Seed", known, "seed"))
    _say_what_is_not_there("Seed", "seed", known)
    return int(known[0])


def pick(label: str, known: Sequence[Any], key: str, place: int = 0, **settings: Any) -> Any:
    """One of some options, the one at ``place`` without a choice; a link to another one is answered in a line."""
    shown = settings.get("format_func", str)
    _say_what_is_not_there(label, key, [shown(option) for option in known])
    return st.selectbox(label, known, index=place, key=key, **settings, **LINKED)


def _say_what_is_not_there(label: str, key: str, known: Sequence[Any]) -> None:
    """A line for what the address asks of a widget and it does not have: Streamlit passes over it in silence."""
    strange = [asked for asked in st.query_params.get_all(key) if asked not in set(map(str, known))]
    if strange:
        what, names = label.partition(",")[0], ", ".join(map(show.plain, strange))
        st.warning(f"{what}: the link asks for {names}, which is not here.", icon=":material/link_off:")


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
    """The rows of the chosen run and probes: there is one at least."""
    return of_probes(source.rows(run()))


def of_probes(rows: pd.DataFrame) -> pd.DataFrame:
    """Those of some rows that are of the chosen probes."""
    chosen = st.session_state["probes"]
    return rows[frames.labels(rows, "probe").isin(chosen)] if chosen else rows


def mine() -> pd.DataFrame:
    """The rows of the chosen run, probes and problem; where there are none the page ends with a sentence."""
    rows = frames.of_problem(frame(), problem())
    if rows.empty:
        say_not_run()
        st.stop()
    return rows


def say_not_run() -> None:
    """The sentence for probes that were not run on the problem."""
    chosen = show.plain(", ".join(st.session_state["probes"]))
    show.nothing(f"Nothing of {chosen} was run on {show.plain(problem())}: choose another problem, or other probes.")


def of_methods(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table whose ``probe`` is a variant of a chosen method."""
    chosen = {method(probe) for probe in st.session_state["probes"]}
    return table[[method(probe) in chosen for probe in table["probe"]]] if chosen else table


def pick_quantity(label: str, known: Sequence[Quantity], key: str, usual: Quantity) -> Quantity:
    """A metric in a scope; what it means is one hover away."""
    index = known.index(usual) if usual in known else 0
    meaning = "  \n".join(f"`{name}`: {views.meaning(name).text}" for name in dict.fromkeys(q.metric for q in known))
    return Quantity.parse(pick(label, list(map(str, known)), key, index, help=meaning))


def pick_metric(label: str, known: Sequence[str], key: str) -> str:
    """A metric by name; what it means is one hover away."""
    meaning = "  \n".join(f"`{name}`: {views.meaning(name).text}" for name in known)
    return str(pick(label, known, key, help=meaning))


def pick_one(label: str, options: Sequence[str], key: str) -> Any:
    """One of a few words, the first without a choice."""
    _say_what_is_not_there(label, key, options)
    return st.segmented_control(label, options, default=options[0], key=key, required=True, **LINKED)


def pick_number(label: str, usual: float, key: str, meaning: str) -> float:
    """A number to type."""
    step = 10 ** (math.floor(math.log10(abs(usual))) - 1) if usual else 0.01
    return float(st.number_input(label, value=usual, step=step, format="%.4g", key=key, help=meaning, **LINKED))


def switch(label: str, key: str, usual: bool = True) -> bool:
    """On or off."""
    return st.toggle(label, value=usual, key=key, **LINKED)
