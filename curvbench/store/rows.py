"""Stored rows as a frame, and how cells ended."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa

from curvbench.spec import Status
from curvbench.store import content, copies, fragments
from curvbench.store.files import set_aside, size_and_time
from curvbench.store.schema import SCHEMA, WITHOUT_SAMPLES
from curvbench.words import near_misses

_DTYPES = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}


def load(path: str | Path | Iterable[str | Path], columns: Sequence[str] = SCHEMA.names) -> pd.DataFrame:
    """Every row below ``path``, oldest cell first.

    ``path``: a fragment, a folder of a run, suite or results, or several of them. A cell that several runs share comes
    once. Fragments that are truncated or foreign are named in a warning and set aside. Only ``columns`` are read; few
    columns are faster. Unchanged fragments are read from the run's copy of its rows (``keep_copy``).

    Raises:
        ValueError: there is no such path or column, or a later version of curvbench has written a fragment.
        OSError: a folder or file cannot be read.
    """
    if unknown := [name for name in columns if name not in SCHEMA.names]:
        raise ValueError(f"unknown column {unknown[0]!r}: {near_misses(unknown[0], SCHEMA.names)}")
    if not isinstance(path, str | Path | Iterable):
        raise TypeError(f"path must be a path or several, got {type(path).__name__}")
    paths = [path] if isinstance(path, str | Path) else list(path)
    if "" in paths:
        raise ValueError("no results at '': expected a Parquet file or a folder")
    files = list(dict.fromkeys(file for p in paths for file in fragments.below(Path(p))))
    schema = content.wanted(columns)
    parts, rest = [], []
    for run, of in _by_run(files).items():
        copied, others = copies.copied(run, of, schema)
        parts.append(copied)
        rest += others
    rows = content.joined([*parts, content.read(rest, schema)], schema)
    for file, fault in rows.faults.items():
        set_aside(file, fault)
    return _frame(content.in_order(rows, files)).loc[:, list(columns)]


def load_run(run: Path, columns: Sequence[str] = WITHOUT_SAMPLES) -> pd.DataFrame:
    """``load`` a run's folder, by default without raw samples, and keep a copy of the rows of many cells.

    Raises:
        ValueError, OSError: as ``load``.
    """
    copies.keep(run)
    return load(run, columns)


def cell_statuses(folder: Path) -> dict[str, Status]:
    """How each cell of a run's folder ended, see ``statuses``; damaged fragments are named in a warning.

    Every column is read, so that a cell whose rows no report can show is not one that has ended.
    """
    return statuses(load(folder / "cells")) if (folder / "cells").is_dir() else {}


def statuses(frame: pd.DataFrame) -> dict[str, Status]:
    """How each cell of a run ended: the status of its row without a metric, else ok if it has a value."""
    is_ending = frame["metric"].fillna("") == ""
    first = frame.assign(rank=(~is_ending) * (1 + (frame["status"] != Status.OK)))
    first = first.sort_values("rank", kind="stable").drop_duplicates("cell_id")
    return {cell: Status(status) for cell, status in zip(first["cell_id"], first["status"], strict=True)}


def endings(run: Path) -> pd.DataFrame:
    """One row per cell of a run that has ended: ``cell_id``, ``status``, ``started_at``, and when its file was written.

    ``written_at`` is missing for a cell whose file has not its name.
    """
    frame = load_run(run, ["cell_id", "status", "metric", "started_at"])
    table = frame.drop_duplicates("cell_id")[["cell_id", "started_at"]].reset_index(drop=True)
    table.insert(1, "status", table["cell_id"].map(statuses(frame)))
    written = {file.stem: size_and_time(file)[1] for file in fragments.below(run)}
    return table.assign(written_at=pd.to_datetime(table["cell_id"].map(written), unit="ns", utc=True))


def fragment_status(path: Path) -> Status | None:
    """How the cell of a fragment ended. None means that the fragment is absent, or, with a warning, damaged."""
    status_by_cell = statuses(load(path)) if path.is_file() else {}
    return next(iter(status_by_cell.values()), None)


def table_status(table: pa.Table) -> Status:
    """How the cell of a table ended, see ``statuses``."""
    return next(iter(statuses(table.select(["cell_id", "status", "metric"]).to_pandas()).values()))


def reason(table: pa.Table, status: Status) -> str:
    """The reason in the first row of a status."""
    rows = table.select(["status", "reason"]).to_pylist()
    return next(str(row["reason"]) for row in rows if row["status"] == status)


def state(path: Path) -> tuple[int, int, int]:
    """Count, bytes and a hash of the fragments below ``path``, which change whenever a fragment does."""
    stats = [(file.name, *size_and_time(file)) for file in fragments.below(path)]
    digest = hashlib.sha256(repr(stats).encode()).digest()
    return len(stats), sum(size for _, size, _ in stats), int.from_bytes(digest[:8])


def _by_run(files: Iterable[Path]) -> dict[Path, list[Path]]:
    """Fragments by the folder of the run in whose ``cells/`` they lie."""
    by_run: dict[Path, list[Path]] = {}
    for file in files:
        by_run.setdefault(file.parent.parent, []).append(file)
    return by_run


def _frame(table: pa.Table) -> pd.DataFrame:
    frame = table.to_pandas(types_mapper=_DTYPES.get)
    return frame.astype({name: kind for name, kind in fragments.NEVER_NULL.items() if name in frame})
