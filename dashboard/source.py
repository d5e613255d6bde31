"""The runs of a results folder, read through ``curvbench.store`` and cached until their files change."""

from __future__ import annotations

import gc
import os
import threading
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

import turns
from curvbench import store
from curvbench.analysis import frames, noise, scaling
from curvbench.analysis.runs import Progress
from curvbench.analysis.runs import look as look_at
from curvbench.analysis.verdict import sentences
from curvbench.shipped import DATA
from curvbench.spec.pictures import Blocks
from curvbench.store.checks import FILE as CHECK
from curvbench.store.notes import FILE as NOTES
from curvbench.words import printable

SAMPLE = DATA / "sample"
BASELINES = ("baselines", "data/baselines")  # where pages and templates have them
# The columns that the pages need of every row; the other columns of a cell are read when it is opened.
COLUMNS = (
    "suite run_id cell_id problem problem_args probe probe_args seed status reason metric scope epoch value method "
    "started_at device dtype threads parameters step device_name samples"
).split()
LONGEST = 200  # letters of a text on a page of many cells; the page of a cell has the whole text
HOLDS = 5.0  # seconds after which a window that follows the folder looks again, at the earliest
AGED = 6.0  # times as old a look is too old for a page that someone has asked for
READING = 0.2  # the share of the time that may go into looking and reading
State = tuple[int, int, int]
NOTHING: State = (0, 0, 0)
_reading = threading.Lock()  # one run at a time, because reading takes several times the memory of what is read


@dataclass
class View:
    """The folder as all sessions see it for a while, because looking at thousands of files takes long."""

    folder: Path
    runs: dict[str, Path]
    lost: list[str]
    fault: str = ""
    born: float = field(default_factory=time.monotonic)
    states: dict[Path, State] = field(default_factory=dict)  # of the runs that a page has shown
    reading: float = 0.0  # seconds that looking took, and reading what had changed

    def holds(self, times: float = 1.0) -> bool:
        """Whether sessions need not look again."""
        age = time.monotonic() - self.born
        return self.folder == results() and age < times * max(HOLDS, self.reading / READING)

    def state(self, run: Path) -> State:
        """``store.state`` of a run when a page first asked; ``NOTHING`` if the run cannot be listed."""
        if run not in self.states:
            try:
                self.states[run] = store.state(run)
            except (ValueError, OSError):
                self.states[run] = NOTHING
        return self.states[run]


_view: View | None = None
_looking = threading.Lock()


def results() -> Path:
    """The folder that ``CURVBENCH_RESULTS`` names, else the shipped sample."""
    return Path(os.environ.get("CURVBENCH_RESULTS") or SAMPLE)


def is_sample() -> bool:
    """Whether the shipped sample is shown."""
    return results() == SAMPLE


def look() -> View:
    """The folder for one run of the script; faults are in the view. Windows that follow look again for all others."""
    st.session_state["view"] = view = _newest(AGED)
    st.session_state["states"], st.session_state["frames"], st.session_state["is_new"] = {}, {}, True
    return view


def lost() -> list[str]:
    """What could not be read of the folder, beside the files of its runs."""
    return st.session_state["view"].lost


@contextmanager
def at_work() -> Iterator[None]:
    """Within, a page is made."""
    try:
        with turns.at_work():
            yield
    finally:
        frames = st.session_state.pop("frames", {})  # which other sessions may replace
        st.session_state["has_rows"] = any(len(frame) for frame, _ in frames.values())
        gc.collect()  # figures are circles of references, and hold large tables


def changed() -> bool:
    """Whether to show the folder again: a run came or went since the last ``look``, or cells of one that it showed.

    Windows with rows take turns; those without show what comes at once.
    """
    if st.session_state.pop("is_new", False):
        return False
    has_rows = st.session_state.get("has_rows", True)
    view, newest = st.session_state["view"], _newest() if has_rows else list_again()
    has_changed = (newest.runs, newest.fault) != (view.runs, view.fault) or any(
        newest.state(run) != state for run, state in st.session_state["states"].items()
    )
    window = st.session_state.setdefault("window", object())
    return has_changed and (not has_rows or turns.has_come(window))


def runs() -> dict[str, Path]:
    """The runs below ``results`` by name, latest first; a folder of fragments without a run is one run."""
    return st.session_state["view"].runs


def unarchived() -> dict[str, Path]:
    """``runs`` without those that someone has archived; all of them if everything is archived."""
    return {name: run for name, run in runs().items() if not notes(run).archived} or runs()


def _newest(times: float = 1.0) -> View:
    """The view that all sessions share, made again if it holds no longer."""
    global _view
    view = _view
    if view is not None and view.holds(times):
        return view
    if view is not None and view.folder == results() and _looking.locked():
        return view  # another session is at it
    with _looking:
        if _view is view:
            _view = _renewed(view)
        assert _view is not None
        return _view


def _renewed(old: View | None) -> View:
    view = _listed()
    for run, state in list(old.states.items()) if old else ():
        if run not in view.runs.values():
            _read.clear(run, state)
        elif view.state(run) != state:
            with suppress(ValueError, OSError):  # which the page of the run will say
                _read(run, view.state(run))  # before the others need it
            _read.clear(run, state)  # rather than until many more runs were read
    view.reading = time.monotonic() - view.born
    return view


def list_again() -> View:
    """The runs that are there now, with cells as all sessions see them: for pages that have nothing to show."""
    global _view
    old, view = _newest(AGED), _listed()
    view.born, view.reading = old.born, old.reading
    view.states = {run: state for run, state in list(old.states.items()) if run in view.runs.values() and state[0]}
    _view = view
    return view


def _listed() -> View:
    view = View(results(), {}, [])
    try:
        with store.noting() as view.lost:
            view.runs = _runs(view.folder)
    except (ValueError, OSError) as error:
        view.fault = str(error)
    return view


def _runs(folder: Path) -> dict[str, Path]:
    runs = {str(run.relative_to(folder)): run for run in reversed(store.runs_below(folder))}
    if not runs and store.state(folder)[0]:
        return {folder.name: folder}
    return {folder.name if name == "." else name: run for name, run in runs.items()}


def rows(run: Path) -> pd.DataFrame:
    """The rows of a run in ``COLUMNS``, shared by all sessions: not to be changed.

    Raises:
        ValueError, OSError: a fragment is of a later version, or the run was removed.
    """
    return rows_and_damage(run)[0]


def rows_and_damage(run: Path) -> tuple[pd.DataFrame, list[str]]:
    """``rows``, and the warnings on fragments of the run that were set aside; once per run of the script."""
    frames = st.session_state["frames"]
    if run not in frames:
        frames[run] = _read(run, _state(run))
    return frames[run]


def metrics(run: Path) -> frozenset[tuple[str, str]]:
    """Every metric of a run that has a value, with its scope, shared by all sessions; raises as ``rows`` does."""
    rows(run)
    return _metrics(run, _state(run))


def latest() -> pd.DataFrame | None:
    """The rows of the latest run, cached for all sessions. None means that there are none.

    Raises:
        ValueError, OSError: the folder or a fragment cannot be read.
    """
    view = _newest()
    run = next(iter(view.runs.values()), None)
    frame = None if run is None else _read(run, view.state(run))[0]
    return None if frame is None or frame.empty else frame


def _state(run: Path) -> State:
    """The state of a run in the view of this run of the script."""
    states: dict[Path, State] = st.session_state["states"]
    if run not in states:
        states[run] = st.session_state["view"].state(run)
    return states[run]


def verdict(run: Path, problem: str, probes: tuple[str, ...], is_provisional: bool) -> list[str]:
    """The sentences on some probes of a problem, or on all of them, shared by all sessions."""
    return _judge(run, _state(run), problem, probes, is_provisional)


def cell(run: Path, cell_id: str) -> pd.DataFrame:
    """Every column of the rows of one cell; no rows if its file was removed."""
    try:
        return _read_cell(run, cell_id, _state(run))
    except (ValueError, OSError):
        return pd.DataFrame()


def blocks(run: Path, cell_ids: Iterable[str]) -> tuple[dict[str, Blocks], list[str]]:
    """The blocks that some cells of a run have stored, by cell, and what is wrong with damaged ones."""
    stored, faults, state = {}, [], _state(run)
    for cell_id in cell_ids:
        try:
            stored[cell_id] = _read_blocks(run, cell_id, state)
        except ValueError as error:
            faults.append(str(error))
    return {cell_id: blocks for cell_id, blocks in stored.items() if blocks is not None}, faults


def has_blocks(run: Path) -> bool:
    """Whether any cell of a run has stored blocks."""
    return (run / "blocks").is_dir()


def growth(run: Path) -> pd.DataFrame:
    """The exponents of every sweep in a run, shared by all sessions: not to be changed."""
    return _fit(run, _state(run))


def record(run: Path) -> dict[str, Any]:
    """``run.json`` of a run without its damaged parts; empty if it is absent."""
    return record_and_damage(run)[0]


def record_and_damage(run: Path) -> tuple[dict[str, Any], list[str]]:
    """``record``, and the warnings on the parts that were set aside; a folder of fragments alone has no record."""
    stamp = store.stamp(run / "run.json")
    if stamp is None and not (run / "cells").exists():
        return {}, []
    return _read_record(run, stamp)


def notes(run: Path) -> store.Notes:
    """What a person has noted of a run; nothing if the file of the notes is damaged."""
    stamp = store.stamp(run / NOTES)
    return store.Notes() if stamp is None else _read_notes(run, stamp)


def check(run: Path) -> store.Check | None:
    """What `curvbench check` said of a run the last time, if it is legible."""
    stamp = store.stamp(run / CHECK)
    return None if stamp is None else _read_check(run, stamp)


def baselines(run: Path) -> str | None:
    """The folder of baselines, as a command names it, that has one of a run's suite."""
    return next((folder for folder in BASELINES if any(Path(folder, run.parent.name).glob("torch-*.parquet"))), None)


def progress(run: Path) -> Progress | None:
    """How far a run is, shared by all sessions while it stands; None if its rows cannot be read."""
    is_running = store.is_running(run)
    try:
        return _look_at(run, _state(run), is_running, int(time.time() / HOLDS) if is_running else 0)
    except (ValueError, OSError):
        return None


def log(run: Path, cell_id: str) -> tuple[str | None, list[str]]:
    """What a cell printed, and the warning on a log that was set aside."""
    with store.noting() as damaged:
        return store.read_log(run, cell_id), damaged


def suite(run: Path) -> str:
    """The suite of a run, as a command names it."""
    return str(record(run).get("suite_file", f"suites/{run.parent.name}"))


def trains(run: Path) -> bool:
    """Whether the cells of a run train rather than measure."""
    return any(cell.get("training") for cell in record(run).get("cells", []))


@st.cache_resource(max_entries=64, show_spinner=False)
def _read(run: Path, state: State) -> tuple[pd.DataFrame, list[str]]:
    with _reading, store.noting() as damaged:
        return noise.with_spread(categorical(store.load_run(run, COLUMNS))), damaged


def categorical(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows with their texts as categories, which take little memory and are compared as numbers.

    Texts that nobody can read are replaced: control characters by escapes, and what is longer than ``LONGEST`` by its
    beginning and a number, in which no two such texts are alike.
    """
    texts: dict[str, pd.Series] = {}
    for name in (str(name) for name in frame if isinstance(frame[name].dtype, pd.StringDtype)):
        column = frame[name].astype("category")
        shown = {text: _legible(text) for text in column.cat.categories}
        is_sound = all(text == legible for text, legible in shown.items())
        texts[name] = column if is_sound else column.map(shown).astype("category")
    return frame.assign(**texts)


def _legible(text: str) -> str:
    shown = printable(text)
    return shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}... ({zlib.crc32(text.encode()):08x})"


@st.cache_resource(max_entries=256, show_spinner=False)
def _read_record(run: Path, stamp: store.Stamp) -> tuple[dict[str, Any], list[str]]:
    with store.noting() as damaged:
        return store.read_run(run), damaged


@st.cache_resource(max_entries=4096, show_spinner=False)
def _read_notes(run: Path, stamp: store.Stamp) -> store.Notes:
    with store.noting():
        return store.read_notes(run)


@st.cache_resource(max_entries=256, show_spinner=False)
def _read_check(run: Path, stamp: store.Stamp) -> store.Check | None:
    with store.noting():
        return store.read_check(run)


@st.cache_resource(max_entries=4096, show_spinner=False)
def _look_at(run: Path, state: State, is_running: bool, moment: int) -> Progress:
    """``moment``: of a run that goes on, whose times go on without new rows."""
    with store.noting():
        return look_at(run)


@st.cache_resource(max_entries=64, show_spinner=False)
def _read_cell(run: Path, cell_id: str, state: State) -> pd.DataFrame:
    try:
        fragment = store.cell_file(run / "cells", cell_id)
    except ValueError:  # an id from a file that anyone may have written
        fragment = run
    with store.noting():  # the page of every run names them already
        frame = store.load(fragment if fragment.is_file() else run)
    return frame[frame["cell_id"].map(_legible) == cell_id]


@st.cache_resource(max_entries=256, show_spinner=False)
def _judge(run: Path, state: State, problem: str, probes: tuple[str, ...], is_provisional: bool) -> list[str]:
    frame = frames.of_problem(_read(run, state)[0], problem)
    chosen = frame[frames.labels(frame, "probe").isin(probes)] if probes else frame
    return sentences(chosen, provisional=is_provisional)


@st.cache_resource(max_entries=64, show_spinner=False)
def _metrics(run: Path, state: State) -> frozenset[tuple[str, str]]:
    frame = _read(run, state)[0]
    pairs = frame.loc[frame["value"].notna(), ["metric", "scope"]].drop_duplicates()
    return frozenset((str(metric), str(scope)) for metric, scope in pairs.itertuples(index=False))


@st.cache_resource(max_entries=64, show_spinner=False)
def _fit(run: Path, state: State) -> pd.DataFrame:
    return scaling.growing(_read(run, state)[0])


@st.cache_resource(max_entries=256, show_spinner=False)
def _read_blocks(run: Path, cell_id: str, state: State) -> Blocks | None:
    return store.read_blocks(run, cell_id)
