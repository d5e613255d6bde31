"""Widgets whose values stand in the address of the view."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

import address
import show
import source
from curvbench.analysis import frames, views
from curvbench.analysis.roles import COMPARED
from curvbench.analysis.views import Quantity
from curvbench.plot.emphasis import MOST
from curvbench.plot.look import by_family, method


def pick_run() -> Path:
    """One of the runs, the latest first; of archived ones those that a link or a switch asks for."""
    names = offered([st.session_state.get("run"), *st.session_state["asked"].get("run", [])])
    st.session_state["last run"] = name = pick("Run", names, "run", format_func=_named(names).__getitem__)
    return source.runs()[name]


def pick_archived() -> None:
    """Whether archived runs are offered too; without any nothing is asked."""
    if any(source.notes(run).archived for run in source.runs().values()):
        switch("Archived runs too", "archived", usual=False)


def offered(asked: Collection[Any]) -> list[str]:
    """The names of the runs to choose from; those that are ``asked`` for are among them."""
    runs, shown = source.runs(), source.unarchived()
    with_archived = st.session_state.get("archived") or "true" in st.session_state["asked"].get("archived", [])
    return [name for name in runs if with_archived or name in shown or name in asked]


def _named(names: Iterable[str]) -> dict[str, str]:
    """Runs by name, as they are offered: with the labels that someone gave them."""
    labels = {name: source.notes(source.runs()[name]).label for name in names}
    return {name: f"{label} · {name}" if label else name for name, label in labels.items()}


def pick_baseline(label: str) -> Path | None:
    """A run to compare with, by default the latest one of the same suite before the chosen run, else after it.

    None means that no run is chosen, because the suite has no other.
    """
    runs, chosen = source.runs(), st.session_state["run"]
    names = offered([chosen, st.session_state.get("baseline"), *st.session_state["asked"].get("baseline", [])])
    place = names.index(chosen)
    others = [*names[place + 1 :], *reversed(names[:place])]
    usual = next((name for name in others if runs[name].parent == runs[chosen].parent), None)
    address.begin(label, "baseline", others, usual)
    shown = _named(others)
    name = st.selectbox(
        label, others, index=None, key="baseline", placeholder="Choose a run", format_func=shown.__getitem__
    )
    return None if name is None else runs[name]


def pick_problem(frame: pd.DataFrame) -> str:
    """One of the problems of a run."""
    surrogates = frames.surrogates(frame)

    def label(name: str) -> str:
        return f"{name} (surrogate)" if name in surrogates else name

    return str(pick("Problem", frames.problems(frame), "problem", format_func=label))


def pick_probes(frame: pd.DataFrame) -> list[str]:
    """Some of the probes; an empty choice means all."""
    probes = sorted(dict.fromkeys(frames.labels(frame, "probe")), key=len)  # what is typed in full comes first
    address.begin("Methods", "probes", probes, [])
    return st.multiselect("Methods", probes, key="probes", placeholder="All", filter_mode="contains")


def pick_pins(frame: pd.DataFrame) -> None:
    """The methods that figures draw in colour; without a choice those that a person compares first."""
    probes = by_family(dict.fromkeys(frames.labels(of_probes(frame), "probe")))
    st.session_state["labels"] = probes
    if len(probes) <= MOST:
        st.session_state["pins"] = probes
        return
    shortest = sorted(probes, key=len)
    first = [next((probe for probe in shortest if method(probe) == name), None) for name in COMPARED]
    usual = [probe for probe in probes if probe in first]
    address.begin("In colour", "pins", probes, usual if len(usual) > 1 else probes[:MOST])
    st.multiselect("In colour", probes, key="pins", placeholder="None", filter_mode="contains")


def pick_cell(labels: Sequence[str]) -> str:
    """A cell by its label."""
    return str(pick("Measurement, also by a click at the left of its row", labels, "cell"))


def pick_seed(seeds: Sequence[int]) -> int:
    """One of the seeds; a single seed needs no widget."""
    if len(seeds) > 1:
        return int(pick("Seed", seeds, "seed"))
    address.begin("Seed", "seed", seeds, seeds[0])
    return int(seeds[0])


def pick(label: str, options: Sequence[Any], key: str, place: int = 0, **settings: Any) -> Any:
    """One of some options, by default the option at ``place``."""
    address.begin(label, key, options, options[place])
    return st.selectbox(label, options, key=key, **settings)


def run_name() -> str:
    """The name of the run that the sidebar shows."""
    return str(st.session_state["run"])


def run() -> Path:
    """The run that the sidebar shows."""
    return source.runs()[run_name()]


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
    show.nothing(f"None of {chosen} was run on {show.plain(problem())}: choose another problem, or other methods.")


def of_methods(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table whose ``probe`` is a variant of a chosen method."""
    chosen = {method(probe) for probe in st.session_state["probes"]}
    return table[[method(probe) in chosen for probe in table["probe"]]] if chosen else table


def pick_quantity(label: str, options: Sequence[Quantity], key: str, default: Quantity) -> Quantity:
    """A metric of the network, a layer or a phase; the help shows its meaning."""
    index = options.index(default) if default in options else 0
    chosen = pick(label, list(map(str, options)), key, index, format_func=_label, help=_meanings(options))
    return Quantity.parse(chosen)


def pick_metric(label: str, options: Sequence[str], key: str) -> str:
    """A metric; the help shows its meaning."""
    return str(pick(label, options, key, format_func=views.plain, help=_meanings(Quantity(o, "") for o in options)))


def _label(text: str) -> str:
    return Quantity.parse(text).label if text.endswith(")") else text  # a name stays itself


def _meanings(quantities: Iterable[Quantity]) -> str:
    metrics = dict.fromkeys(quantity.metric for quantity in quantities)
    return "  \n".join(
        f"**{views.plain(name)}** ({show.plain(name)}): {show.plain(views.meaning(name).text)}" for name in metrics
    )


def pick_one(label: str, options: Sequence[str], key: str) -> Any:
    """One of a few words, by default the first."""
    address.begin(label, key, options, options[0])
    return st.segmented_control(label, options, key=key, required=True)


def pick_number(label: str, usual: float, key: str, meaning: str) -> float:
    """A number to type."""
    step = 10 ** (math.floor(math.log10(abs(usual))) - 1) if usual else 0.01
    address.begin_number(label, key, usual)
    return float(st.number_input(show.plain(label), step=step, format="%.4g", key=key, help=meaning))


def switch(label: str, key: str, usual: bool = True) -> bool:
    """On or off."""
    address.begin(label, key, [True, False], usual)
    return st.toggle(label, key=key)
