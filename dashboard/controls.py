"""Widgets whose values are part of the address, so that a view can be sent as a link."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
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
    _warn_of_unknown(label, key, names)
    return runs[st.selectbox(label, names, index=min(place, len(names) - 1), key=key, **LINKED)]


def pick_problem(frame: pd.DataFrame) -> str:
    """One of the problems of a run."""
    surrogates = frames.surrogates(frame)

    def label(name: str) -> str:
        return f"{name} (surrogate)" if name in surrogates else name

    return pick("Problem", frames.problems(frame), "problem", format_func=label)


def pick_probes(frame: pd.DataFrame) -> list[str]:
    """Some of the probes; an empty choice means all."""
    probes = by_family(dict.fromkeys(frames.labels(frame, "probe")))
    _warn_of_unknown("Probes", "probes", probes)
    return st.multiselect("Probes", probes, key="probes", placeholder="All", **LINKED)


def pick_cell(labels: Sequence[str]) -> str:
    """A cell by its label."""
    return str(pick("Cell, also by a click at the left of its row", labels, "cell"))


def pick_seed(seeds: Sequence[int]) -> int:
    """One of the seeds; a single seed needs no widget."""
    if len(seeds) > 1:
        return int(pick("Seed", seeds, "seed"))
    _warn_of_unknown("Seed", "seed", seeds)
    return int(seeds[0])


def pick(label: str, options: Sequence[Any], key: str, place: int = 0, **settings: Any) -> Any:
    """One of some options, by default the option at ``place``; a link to an unknown option gets a warning."""
    as_text = settings.get("format_func", str)
    _warn_of_unknown(label, key, [as_text(option) for option in options])
    return st.selectbox(label, options, index=place, key=key, **settings, **LINKED)


def _warn_of_unknown(label: str, key: str, options: Sequence[Any]) -> None:
    """Warn of values in the address that a widget does not have, because Streamlit ignores them in silence."""
    unknown = [value for value in st.query_params.get_all(key) if value not in set(map(str, options))]
    if unknown:
        what, names = label.partition(",")[0], ", ".join(map(show.plain, unknown))
        st.warning(f"{what}: the link asks for {names}, which is not here.", icon=":material/link_off:")


def run() -> Path:
    """The run that the sidebar shows."""
    return source.runs()[st.session_state["run"]]


def place_of_baseline() -> int:
    """The place of the run to compare with: of the same suite, else of the same kind; an earlier run if possible."""
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
    """The rows of the chosen run and probes, at least one."""
    return of_probes(source.rows(run()))


def rows(of: Path) -> pd.DataFrame:
    """The rows of any run; none, with a warning, if they cannot be read."""
    try:
        return source.rows(of)
    except (ValueError, OSError) as error:
        st.warning(show.plain(error))
        return source.rows(run())[:0]


def of_probes(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of the chosen probes."""
    chosen = st.session_state["probes"]
    return rows[frames.labels(rows, "probe").isin(chosen)] if chosen else rows


def problem_rows() -> pd.DataFrame:
    """The rows of the chosen run, probes and problem; without any the page ends with a sentence."""
    rows = frames.of_problem(frame(), problem())
    if rows.empty:
        say_not_run()
        st.stop()
    return rows


def say_not_run() -> None:
    """Say that the chosen probes were not run on the problem."""
    chosen = show.plain(", ".join(st.session_state["probes"]))
    show.nothing(f"No cell of {chosen} was run on {show.plain(problem())}: choose another problem, or other probes.")


def of_methods(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table whose ``probe`` is a variant of a chosen method."""
    chosen = {method(probe) for probe in st.session_state["probes"]}
    return table[[method(probe) in chosen for probe in table["probe"]]] if chosen else table


def pick_quantity(label: str, options: Sequence[Quantity], key: str, default: Quantity) -> Quantity:
    """A metric in a scope; the help shows its meaning."""
    index = options.index(default) if default in options else 0
    meanings = _meanings(dict.fromkeys(q.metric for q in options))
    return Quantity.parse(pick(label, list(map(str, options)), key, index, help=meanings))


def pick_metric(label: str, options: Sequence[str], key: str) -> str:
    """A metric by name; the help shows its meaning."""
    return str(pick(label, options, key, help=_meanings(options)))


def _meanings(metrics: Iterable[str]) -> str:
    """A line for each metric, in Markdown."""
    return "  \n".join(f"{show.plain(name)}: {views.meaning(name).text}" for name in metrics)


def pick_one(label: str, options: Sequence[str], key: str) -> Any:
    """One of a few words, by default the first."""
    _warn_of_unknown(label, key, options)
    return st.segmented_control(label, options, default=options[0], key=key, required=True, **LINKED)


def pick_number(label: str, usual: float, key: str, meaning: str) -> float:
    """A number to type."""
    step = 10 ** (math.floor(math.log10(abs(usual))) - 1) if usual else 0.01
    label = show.plain(label)
    return float(st.number_input(label, value=usual, step=step, format="%.4g", key=key, help=meaning, **LINKED))


def switch(label: str, key: str, usual: bool = True) -> bool:
    """On or off."""
    return st.toggle(label, value=usual, key=key, **LINKED)
