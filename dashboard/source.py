"""The runs of a results folder, read through ``curvbench.store`` and cached until their files change."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from curvbench import store
from curvbench.analysis import frames, scaling
from curvbench.analysis.verdict import sentences
from curvbench.shipped import DATA
from curvbench.spec.pictures import Blocks

SAMPLE = DATA / "sample"
# The columns that the pages need of every row; the other columns of a cell are read when it is opened.
COLUMNS = (
    "suite run_id cell_id problem problem_args probe probe_args seed status reason metric scope epoch value method "
    "started_at device dtype threads parameters step device_name"
).split()
# Columns of few texts that many rows repeat; as categories they are compared as numbers.
REPEATED = ("problem", "problem_args", "probe", "probe_args", "metric", "scope", "cell_id", "method", "suite")
State = tuple[int, int, int]
_one_at_a_time = threading.Lock()  # Python records warnings per process, and sessions are threads


@dataclass
class View:
    """The folder as one run of the script sees it, because a second look at thousands of files takes too long."""

    runs: dict[str, Path]
    lost: list[str] = field(default_factory=list)
    states: dict[Path, State] = field(default_factory=dict)
    is_new: bool = True


def results() -> Path:
    """The folder that ``CURVBENCH_RESULTS`` names, else the shipped sample."""
    return Path(os.environ.get("CURVBENCH_RESULTS") or SAMPLE)


def is_sample() -> bool:
    """Whether the shipped sample is shown."""
    return results() == SAMPLE


def look() -> dict[str, Path]:
    """Look at the folder again, once per run of the script, and return ``runs``.

    Raises:
        ValueError: there is no such folder.
        OSError: the folder cannot be read.
    """
    with _heard() as lost:
        found = _runs()
    st.session_state["view"] = View(found, lost)
    return found


def lost() -> list[str]:
    """What could not be read of the folder, beside the files of its runs."""
    return st.session_state["view"].lost


def changed() -> bool:
    """Whether a run came or went since the last ``look``, or cells of one that it showed."""
    view: View = st.session_state["view"]
    if view.is_new:
        view.is_new = False
        return False
    return _runs() != view.runs or any(store.state(run) != state for run, state in view.states.items())


def runs() -> dict[str, Path]:
    """The runs below ``results`` by name, latest first; a folder of fragments without a run is one run."""
    return st.session_state["view"].runs


def _runs() -> dict[str, Path]:
    folder = results()
    runs = {str(run.relative_to(folder)): run for run in reversed(store.runs_below(folder))}
    if not runs and store.state(folder)[0]:
        return {folder.name: folder}
    return {folder.name if name == "." else name: run for name, run in runs.items()}


def rows(run: Path) -> pd.DataFrame:
    """The rows of a run in ``COLUMNS``, shared by all sessions: not to be changed.

    Raises:
        ValueError: a fragment is of a later version.
    """
    return rows_and_damage(run)[0]


def rows_and_damage(run: Path) -> tuple[pd.DataFrame, list[str]]:
    """``rows``, and the warnings on fragments of the run that were set aside."""
    return _read(run, _state(run))


def latest() -> pd.DataFrame | None:
    """The rows of the latest run, cached for all sessions. None means that there are none.

    Raises:
        ValueError, OSError: the folder or a fragment cannot be read.
    """
    run = next(iter(_runs().values()), None)
    frame = None if run is None else _read(run, store.state(run))[0]
    return None if frame is None or frame.empty else frame


def _state(run: Path) -> State:
    """``store.state`` at the first look of this run of the script."""
    states: dict[Path, State] = st.session_state["view"].states
    if run not in states:
        states[run] = store.state(run)
    return states[run]


def verdict(run: Path, problem: str, probes: tuple[str, ...], is_provisional: bool) -> list[str]:
    """The sentences on some probes of a problem, or on all of them, shared by all sessions."""
    return _judge(run, _state(run), problem, probes, is_provisional)


def cell(run: Path, cell_id: str) -> pd.DataFrame:
    """Every column of the rows of one cell."""
    try:
        fragment = store.cell_file(run / "cells", cell_id)
    except ValueError:  # an id from a file that anyone may have written
        fragment = run
    with _heard():  # the page of every run names them already
        frame = store.load(fragment if fragment.is_file() else run)
    return frame[frame["cell_id"] == cell_id]


def blocks(run: Path, cell_ids: Iterable[str]) -> tuple[dict[str, Blocks], list[str]]:
    """The blocks that some cells of a run have stored, by cell, and what is wrong with damaged ones."""
    stored, faults, state = {}, [], _state(run)
    for cell_id in cell_ids:
        try:
            stored[cell_id] = _read_blocks(run, cell_id, state)
        except ValueError as error:
            faults.append(str(error))
    return {cell_id: blocks for cell_id, blocks in stored.items() if blocks is not None}, faults


def growth(run: Path) -> pd.DataFrame:
    """The exponents of every sweep in a run, shared by all sessions: not to be changed."""
    return _fit(run, _state(run))


def record(run: Path) -> dict[str, Any]:
    """``run.json`` of a run without its damaged parts; empty if it is absent."""
    return record_and_damage(run)[0]


def record_and_damage(run: Path) -> tuple[dict[str, Any], list[str]]:
    """``record``, and the warnings on the parts that were set aside; a folder of fragments alone has no record."""
    if not (run / "run.json").exists() and not (run / "cells").exists():
        return {}, []
    with _heard() as damaged:
        return store.read_run(run), damaged


def log(run: Path, cell_id: str) -> tuple[str | None, list[str]]:
    """What a cell printed, and the warning on a log that was set aside."""
    with _heard() as damaged:
        return store.read_log(run, cell_id), damaged


def suite(run: Path) -> str:
    """The suite of a run, as a command names it."""
    return str(record(run).get("suite_file", f"suites/{run.parent.name}"))


def trains(run: Path) -> bool:
    """Whether the cells of a run train rather than measure."""
    return any(cell.get("training") for cell in record(run).get("cells", []))


@st.cache_resource(max_entries=64, show_spinner=False)
def _read(run: Path, state: State) -> tuple[pd.DataFrame, list[str]]:
    with _heard() as damaged:
        frame = store.load_run(run, COLUMNS)
    return frame.astype(dict.fromkeys(REPEATED, "category")), damaged


@contextmanager
def _heard() -> Iterator[list[str]]:
    """The texts of the warnings within, each once, when it has ended."""
    texts: list[str] = []
    with _one_at_a_time, warnings.catch_warnings(record=True) as messages:
        warnings.simplefilter("always")
        try:
            yield texts
        finally:
            texts += dict.fromkeys(str(warning.message) for warning in messages)


@st.cache_resource(max_entries=256, show_spinner=False)
def _judge(run: Path, state: State, problem: str, probes: tuple[str, ...], is_provisional: bool) -> list[str]:
    frame = frames.of_problem(_read(run, state)[0], problem)
    chosen = frame[frames.labels(frame, "probe").isin(probes)] if probes else frame
    return sentences(chosen, provisional=is_provisional)


@st.cache_resource(max_entries=64, show_spinner=False)
def _fit(run: Path, state: State) -> pd.DataFrame:
    return scaling.growing(_read(run, state)[0])


@st.cache_resource(max_entries=256, show_spinner=False)
def _read_blocks(run: Path, cell_id: str, state: State) -> Blocks | None:
    return store.read_blocks(run, cell_id)
