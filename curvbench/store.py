"""Result files: one Arrow schema, one Parquet fragment per cell, one ``run.json`` per run.

``results/<suite>/<run_id>/cells/<cell_id>.parquet``, beside them ``blocks/``, ``logs/``, ``references/``, ``run.json``
and, of many cells, ``rows.copy`` with the rows of all fragments. No other module reads or writes them.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from curvbench.blocks import Blocks, pack, unpack
from curvbench.hyperparameters import near_misses
from curvbench.spec import FLOP_MODEL, METRICS, SURROGATE, Cell, Metric, Row, Status

SCHEMA_VERSION = 1

_COLUMNS: tuple[tuple[str, pa.DataType, str, str], ...] = (
    ("schema_version", pa.int64(), "1", "version of this schema"),
    ("run_id", pa.string(), "", "the run in which the cell was measured"),
    ("suite", pa.string(), "", "name of the suite"),
    ("cell_id", pa.string(), "", "hash over everything that decides the cell's rows"),
    ("problem", pa.string(), "", "name of the problem"),
    ("problem_args", pa.string(), "", "its hyperparameters that differ from the defaults, key=value,..."),
    ("probe", pa.string(), "", "name of the probe"),
    ("probe_args", pa.string(), "", "its hyperparameters that differ from the defaults, key=value,..."),
    ("seed", pa.int64(), "1", "seed of the snapshot and the samples"),
    ("status", pa.string(), "", f"one of {', '.join(Status)}"),
    ("reason", pa.string(), "", "why there is no value; names of operations for flops.uncounted_ops"),
    ("metric", pa.string(), "", "name of the metric; empty where the cell did not succeed"),
    ("scope", pa.string(), "", "network, layer blocks, a layer's name or a phase"),
    ("epoch", pa.int64(), "1", "epochs trained before the measurement"),
    ("step", pa.int64(), "1", "steps trained before the measurement"),
    ("unit", pa.string(), "", "unit of value and samples"),
    ("better", pa.string(), "", "lower, higher or empty: which way is better"),
    ("value", pa.float64(), "column unit", "the measurement"),
    ("samples", pa.list_(pa.float64()), "column unit", "raw repetitions behind the value"),
    ("started_at", pa.timestamp("us", "UTC"), "UTC", "when the cell was started"),
    ("git_sha", pa.string(), "", "commit of curvbench; null outside git"),
    ("git_dirty", pa.bool_(), "", "whether curvbench's files differed from it"),
    ("torch_version", pa.string(), "", "version of torch"),
    ("device", pa.string(), "", "cpu, cuda or cuda:i"),
    ("device_name", pa.string(), "", "model of the processor"),
    ("dtype", pa.string(), "", "precision of the measurement"),
    ("threads", pa.int64(), "1", "threads of torch"),
    ("flop_model", pa.string(), "", "how floating-point operations are counted"),
    ("method", pa.string(), "", "how the value was measured; begins with surrogate where it stands in for a paper's"),
)
SCHEMA = pa.schema(
    [pa.field(name, kind, metadata={"unit": unit, "description": text}) for name, kind, unit, text in _COLUMNS],
    metadata={"curvbench_schema_version": str(SCHEMA_VERSION)},
)
# A fragment repeats no descriptions: of its bytes they would be a third, and each is read with its fragment.
_LEAN = pa.schema(
    [pa.field(n, kind, metadata={"unit": unit} if unit else None) for n, kind, unit, _ in _COLUMNS], SCHEMA.metadata
)
_DTYPES = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
_NEVER_NULL = {"schema_version": "int64", "seed": "int64", "threads": "int64"}
_CELL = ("suite", "run_id", "cell_id")
_ALWAYS = (*_CELL, "schema_version", "started_at")  # read whatever is asked for
_COPY, _STATE = "rows.copy", b"curvbench_state"
_MANY = 32  # fragments that take longer to read than one file to find
_PART = 100  # files that a thread reads before it asks for more
_THREADS = min(8, os.cpu_count() or 1)
_KNOWN = frozenset(map(str, Status))
_STAMP = "%Y%m%dT%H%M%SZ"
_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,100}")


@dataclass(frozen=True)
class Context:
    """Where and when a cell is measured: what the store adds to its rows. See ``identity.environment``."""

    run_id: str
    cell_id: str
    started_at: datetime
    environment: Mapping[str, Any]


def rows_to_table(cell: Cell, rows: Sequence[Row], context: Context) -> pa.Table:
    """Rows of one cell in ``SCHEMA``, where a NaN is an error and no value.

    Raises:
        ValueError: a metric that ``spec.METRICS`` does not have.
    """
    common = _common(cell, context)
    measured = [common | _measured(row) for row in rows]
    if cell.surrogate:
        measured = [row | {"method": ", ".join(filter(None, [SURROGATE, row["method"]]))} for row in measured]
    return pa.Table.from_pylist(measured, schema=SCHEMA)


def write_cell(folder: Path, table: pa.Table) -> Path:
    """Write a cell's fragment into ``folder``, whole or not at all, and return its path.

    Raises:
        ValueError: the cell's id is no plain file name.
    """
    path = cell_file(folder, table["cell_id"][0].as_py())
    sink = pa.BufferOutputStream()
    # Of some kilobytes dictionaries and statistics only slow the reader; checksums find what flips on a disk.
    pq.write_table(table.cast(_LEAN), sink, use_dictionary=False, write_statistics=False, write_page_checksum=True)
    _replace(path, sink.getvalue().to_pybytes())
    return path


def write_rows(path: Path, rows: pd.DataFrame) -> None:
    """Write rows, as ``load`` gives them, into one small Parquet file that it reads again; whole or not at all."""
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pandas(rows[SCHEMA.names], SCHEMA, preserve_index=False)
    pq.write_table(table, sink, compression="zstd", compression_level=19)
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, sink.getvalue().to_pybytes())


def cell_file(folder: Path, cell_id: str, ending: str = ".parquet") -> Path:
    """Where in ``folder`` the file of a cell belongs; raises ValueError for an id that could lead out of it."""
    if not _PLAIN.fullmatch(cell_id):
        raise ValueError(f"expected a cell id of letters, digits, _ and -, 100 at most, got {cell_id[:50]!r}")
    return folder / f"{cell_id}{ending}"


def read_cell(path: Path) -> pa.Table:
    """A fragment in ``SCHEMA``; columns that came after the version of the file are null.

    Raises:
        ValueError: it is truncated, or no fragment of curvbench.
        NewerSchema: a later curvbench has written it.
    """
    return _sound(_read(path, SCHEMA), path)


def _read(path: Path, wanted: pa.Schema) -> pa.Table:
    """The columns ``wanted`` of a fragment, ``_ALWAYS`` among them; others are not read. See also ``_sound``."""
    with open(path, "rb") as opened:
        content = opened.read()  # not mapped: a file that is cut meanwhile would end the process
    every = wanted is SCHEMA  # what is read whole need not be asked for its columns first
    try:
        file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True, pre_buffer=False)
        table = file.read(None if every else wanted.names, use_threads=False)  # of some kilobytes: threads cost more
        known = table.schema.names if every else file.schema_arrow.names
    except (pa.ArrowException, OSError) as error:  # Arrow raises OSError too where the content is damaged
        raise ValueError(f"not readable as Parquet ({' '.join(str(error).split())})") from error
    fits = known == SCHEMA.names and table.schema.equals(wanted)
    return table if fits else _fitted(table, known, wanted, path)


def _fitted(table: pa.Table, known: Sequence[str], wanted: pa.Schema, path: Path) -> pa.Table:
    """The table of a file with the columns ``known`` in the schema ``wanted``; raises as ``read_cell``."""
    missing = [name for name in SCHEMA.names if name not in known]
    if missing and not ("schema_version" in known and _version(table) < SCHEMA_VERSION):
        raise ValueError(f"no fragment of curvbench: {len(missing)} columns missing ({', '.join(missing[:3])})")
    _refuse_newer(table, path)
    for name in set(missing).intersection(wanted.names):
        table = table.append_column(SCHEMA.field(name), pa.nulls(table.num_rows, SCHEMA.field(name).type))
    try:
        return table.select(wanted.names).cast(wanted)
    except pa.ArrowException as error:
        raise ValueError(f"no fragment of curvbench: {str(error).splitlines()[0]}") from error


def _sound(table: pa.Table, path: Path) -> pa.Table:
    """The table; raises ValueError for rows that are newer, belong to no cell, or end in no known way."""
    _refuse_newer(table, path)
    empty = [name for name in (*_NEVER_NULL, *_CELL) if name in table.schema.names and table[name].null_count]
    if empty:
        raise ValueError(f"no fragment of curvbench: rows without {empty[0]}")
    statuses = table["status"].unique().to_pylist() if "status" in table.schema.names else []
    if unknown := [status for status in statuses if status not in _KNOWN]:
        raise ValueError(f"no fragment of curvbench: unknown status {unknown[0]!r}")
    return table


def _refuse_newer(table: pa.Table, path: Path) -> None:
    if (found := _version(table)) > SCHEMA_VERSION:
        version = f"schema version {found}, this curvbench reads up to {SCHEMA_VERSION}"
        raise NewerSchema(f"{path} was written in {version}: update it")


class NewerSchema(ValueError):
    """A fragment was written by a later version of curvbench."""


def load(path: str | Path | Iterable[str | Path], columns: Sequence[str] = SCHEMA.names) -> pd.DataFrame:
    """Every row below ``path``: a fragment, a folder of a run, suite or results, or several of them; oldest cell first.

    A cell that several runs share comes once. Fragments that are truncated or foreign are named in a warning and
    set aside. Only ``columns`` are read, which is faster where there are many rows. The fragments of a run are read
    from its copy where they are those that the copy was made of.

    Raises:
        ValueError: there is no such path or column, or a later version of curvbench has written it.
        OSError: a folder or file cannot be read.
    """
    if unknown := [name for name in columns if name not in SCHEMA.names]:
        raise ValueError(f"unknown column {unknown[0]!r}: {near_misses(unknown[0], SCHEMA.names)}")
    paths = [path] if isinstance(path, str | Path) else list(path)
    files = list(dict.fromkeys(file for p in paths for file in _fragments(Path(p))))
    wanted = _wanted(columns)
    copies = {run: copy for run, of in _by_run(files).items() if (copy := _copy(run, of, wanted)) is not None}
    direct = _read_all([file for file in files if _run_of(file) not in copies], wanted)
    found = [*copies.values(), direct]
    for file, fault in (fault for content in found for fault in content.faults):
        warnings.warn(f"{file} set aside: {fault}", stacklevel=2)
    return _frame(_in_order([table for content in found for table in content.tables], wanted)).loc[:, list(columns)]


WITHOUT_SAMPLES = [name for name in SCHEMA.names if name != "samples"]


def load_run(run: Path, columns: Sequence[str] = WITHOUT_SAMPLES) -> pd.DataFrame:
    """``load`` of a run's folder, by default without raw samples; of many cells a copy in one file is kept for it.

    Raises:
        ValueError, OSError: as ``load``.
    """
    cells = _fragments(run / "cells") if (run / "cells").is_dir() else []
    if len(cells) >= _MANY and _copy(run, cells, _wanted(_CELL)) is None:
        of = _state(cells)  # before they are read: what comes meanwhile makes the copy stale
        _keep_copy(run, _read_all(cells, SCHEMA), of)
    return load(run, columns)


def cell_statuses(folder: Path) -> dict[str, Status]:
    """How each cell of a run's folder ended, see ``statuses``; damaged fragments are named in a warning."""
    return statuses(load(folder / "cells", ["cell_id", "status", "metric"])) if (folder / "cells").is_dir() else {}


def statuses(frame: pd.DataFrame) -> dict[str, Status]:
    """How each cell of a run ended: what a row without a metric says, else ok where there is a value."""
    whole = frame["metric"].fillna("") == ""
    first = frame.assign(rank=(~whole) * (1 + (frame["status"] != Status.OK)))
    first = first.sort_values("rank", kind="stable").drop_duplicates("cell_id")
    return {cell: Status(status) for cell, status in zip(first["cell_id"], first["status"], strict=True)}


def fragment_status(path: Path) -> Status | None:
    """How the cell of a fragment ended; None where there is none, or, with a warning, a damaged one."""
    found = statuses(load(path, ["cell_id", "status", "metric"])) if path.is_file() else {}
    return next(iter(found.values()), None)


def table_status(table: pa.Table) -> Status:
    """How the cell of a table ended, see ``statuses``."""
    return next(iter(statuses(table.select(["cell_id", "status", "metric"]).to_pandas()).values()))


def reason(table: pa.Table, status: Status) -> str:
    """What the first row of a status says."""
    rows = table.select(["status", "reason"]).to_pylist()
    return next(str(row["reason"]) for row in rows if row["status"] == status)


def new_run(suite_folder: Path, code: str) -> Path:
    """A fresh folder for a run, named by the time in UTC and the code; names sort by time."""
    stem = f"{_after(runs(suite_folder)):{_STAMP}}-{code[:8]}"
    for name in [stem, *(f"{stem}-{k}" for k in range(2, 100))]:
        try:
            (suite_folder / name / "cells").mkdir(parents=True)
        except FileExistsError:
            continue
        (suite_folder / name / "logs").mkdir()
        return suite_folder / name
    raise OSError(f"{suite_folder}: a hundred runs were begun in this second")


def _after(earlier: Sequence[Path]) -> datetime:
    """Now, or a second after the latest of some runs: the last that was begun is the last by name if clocks jump."""
    stamps = [folder.name.partition("-")[0] for folder in earlier if re.match(r"\d{8}T\d{6}Z-", folder.name)]
    begun = [datetime.strptime(stamp, _STAMP).replace(tzinfo=UTC) + timedelta(seconds=1) for stamp in stamps]
    return max([datetime.now(UTC), *begun])


def runs(suite_folder: Path) -> list[Path]:
    """The runs of a suite, oldest first."""
    return [f for f in _folders(suite_folder) if (f / "run.json").is_file()] if suite_folder.is_dir() else []


def shorten_log(path: Path, keep: int = 2**18) -> None:
    """Cut the middle out of a log that has grown above four times ``keep`` bytes; its writer appends."""
    if not path.is_file() or path.stat().st_size <= 4 * keep:
        return
    with open(path, "r+b") as file:
        file.seek(-keep, os.SEEK_END)
        tail = file.read()
        file.seek(keep)
        file.truncate()
        file.write(b"\n... cut here ...\n" + tail)


def refuse_unwritable(results: Path) -> Path:
    """Raise OSError where ``results`` could not be written; the folder, or its nearest parent that is there."""
    place = next(folder for folder in (results.absolute(), *results.absolute().parents) if folder.exists())
    with tempfile.TemporaryFile(dir=place) as file:
        file.write(b"x" * 4096)
    return place


def check_writable(run: Path) -> None:
    """Raise OSError where a run's cells and logs cannot be written."""
    for folder in (run / "cells", run / "logs"):
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def read_run(folder: Path) -> dict[str, Any]:
    """``run.json`` of a run's folder; raises ValueError where it is damaged."""
    try:
        content = json.loads((folder / "run.json").read_text())
    except ValueError as error:
        raise ValueError(f"{folder / 'run.json'} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{folder / 'run.json'} is damaged: expected an object, got {type(content).__name__}")
    return content


def read_jobs(run: Path) -> dict[str, list[str]]:
    """The jobs that a cluster was given for a run, by number, with the ids of their cells."""
    path = run / "jobs.json"
    jobs: dict[str, list[str]] = json.loads(path.read_text()) if path.is_file() else {}
    return jobs


def write_jobs(run: Path, jobs: Mapping[str, Sequence[str]]) -> None:
    """Keep what ``read_jobs`` gives, whole or not at all."""
    _replace(run / "jobs.json", json.dumps(jobs).encode())


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Within, no other process that asks for it changes what stands in a run's ``run.json``."""
    descriptor = os.open(run, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_run(folder: Path, content: Mapping[str, Any]) -> None:
    """Write ``run.json``, whole or not at all."""
    _replace(folder / "run.json", (json.dumps(content, indent=1, default=str) + "\n").encode())


def write_blocks(run: Path, cell_id: str, blocks: Blocks) -> None:
    """Write the blocks of a cell, whole or not at all."""
    (run / "blocks").mkdir(exist_ok=True)
    _replace(_blocks(run, cell_id), pack(blocks))


def read_blocks(run: Path, cell_id: str) -> Blocks | None:
    """The blocks of a cell; None where it has none. Raises ValueError where they are damaged."""
    try:
        path = _blocks(run, cell_id)  # an id comes from a file that anyone may have written
    except ValueError:
        return None
    if not path.is_file():
        return None
    try:
        return unpack(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _blocks(run: Path, cell_id: str) -> Path:
    return cell_file(run / "blocks", cell_id, ".npz")


def share_cell(source: Path, folder: Path) -> None:
    """Bring a finished cell of another run into ``folder``: linked, or copied where links are not possible."""
    _share(source, folder)
    blocks = _blocks(source.parents[1], source.stem)
    if blocks.is_file():
        (folder.parent / "blocks").mkdir(exist_ok=True)
        _share(blocks, folder.parent / "blocks")


def _share(source: Path, folder: Path) -> None:
    target = folder / source.name
    if target.exists():
        return
    try:
        os.link(source, target)
    except OSError:
        _replace(target, source.read_bytes())


def drop_large_references(run: Path, limit: int = 10**9) -> None:
    """Remove the references of a run that take more than ``limit`` bytes each."""
    references = run / "references"
    for folder in _folders(references) if references.is_dir() else []:
        if sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) > limit:
            shutil.rmtree(folder)


def resolve(run: str | Path, results: str | Path = "results") -> list[Path]:
    """The folders of the runs that ``run`` means.

    A run's folder, that of a suite (its latest run) or of results (the latest of each suite), a run id or ``latest``
    (of all suites); the last two are looked up in ``results``.

    Raises:
        ValueError: there is no such run.
    """
    path, results = Path(run), Path(results)
    if (path / "run.json").is_file():
        return [path]
    if path.is_dir():
        return _latest_runs(path)
    known = {folder.name: folder for suite in _folders(results) for folder in runs(suite)} if results.is_dir() else {}
    if str(run) == "latest" and known:
        return [known[max(known)]]
    if str(run) in known:
        return [known[str(run)]]
    raise ValueError(f"no run {str(run)!r} in {str(results)!r}: {near_misses(str(run), known)}")


def runs_below(path: str | Path) -> list[Path]:
    """Every run in a folder of results, of a suite or of one run, oldest first; raises ValueError for no folder."""
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"no results at {str(path)!r}: expected a folder that `curvbench run` has written")
    if (path / "run.json").is_file():
        return [path]
    return sorted((run for folder in (path, *_folders(path)) for run in runs(folder)), key=lambda run: run.name)


def state(path: Path) -> tuple[int, int, int]:
    """What changes whenever a fragment below ``path`` comes, goes or is replaced: count, bytes and a hash."""
    return _state(_fragments(path))


def _state(files: Sequence[Path]) -> tuple[int, int, int]:
    found = [(file.name, at.st_size, at.st_mtime_ns) for file in files for at in [file.stat()]]
    digest = hashlib.sha256(repr(found).encode()).digest()
    return len(found), sum(size for _, size, _ in found), int.from_bytes(digest[:8])


def read_log(run: Path, cell_id: str) -> str | None:
    """What a cell printed while it ran; None where there is no such file."""
    try:
        path = cell_file(run / "logs", cell_id, ".log")  # an id comes from a file that anyone may have written
    except ValueError:
        return None
    return path.read_text(errors="replace") if path.is_file() else None


def _keep_copy(run: Path, content: _Content, of: tuple[int, int, int]) -> None:
    """Keep the content of a run's fragments in one file, which counts as long as their state is ``of``."""
    faults = [(file.name, fault) for file, fault in content.faults]  # what is set aside has to be said again each time
    metadata = {_STATE: json.dumps([[SCHEMA_VERSION, *of], faults])}
    sink = pa.BufferOutputStream()
    table = _in_order(content.tables, SCHEMA).replace_schema_metadata(metadata)
    pq.write_table(table, sink, write_page_checksum=True)
    with contextlib.suppress(OSError):  # results may be read-only: without a copy they take longer
        _replace(run / _COPY, sink.getvalue().to_pybytes())


def _copy(run: Path, files: Sequence[Path], wanted: pa.Schema) -> _Content | None:
    """The content of ``files``, all fragments of a run, from its copy; None where that is absent, stale or damaged."""
    if len(files) < _MANY or not (run / _COPY).is_file():
        return None
    try:
        with pq.ParquetFile(run / _COPY, page_checksum_verification=True) as file:
            of, faults = json.loads((file.schema_arrow.metadata or {}).get(_STATE, b"[0, 0]"))
            if of != [SCHEMA_VERSION, *_state(files)]:
                return None
            said = [(run / "cells" / name, fault) for name, fault in faults]
            return _Content([file.read(wanted.names).cast(wanted)], said)
    except (pa.ArrowException, OSError, ValueError, TypeError):
        return None


def _by_run(files: Iterable[Path]) -> dict[Path, list[Path]]:
    found: dict[Path, list[Path]] = {}
    for file in files:
        found.setdefault(_run_of(file), []).append(file)
    return found


def _run_of(fragment: Path) -> Path:
    """The folder of the run in whose ``cells/`` a fragment lies."""
    return fragment.parent.parent


def _latest_runs(folder: Path) -> list[Path]:
    latest = [found[-1] for found in (runs(f) for f in (folder, *_folders(folder))) if found]
    if not latest:
        raise ValueError(f"no runs in {str(folder)!r}")
    return latest


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir())


def _common(cell: Cell, context: Context) -> dict[str, Any]:
    columns = ("git_sha", "git_dirty", "torch_version", "device_name")
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": context.run_id,
        "suite": cell.suite,
        "cell_id": context.cell_id,
        "problem": cell.problem.name,
        "problem_args": cell.problem.arguments,
        "probe": cell.probe.name,
        "probe_args": cell.probe.arguments,
        "seed": cell.seed,
        "started_at": context.started_at,
        "device": cell.device,
        "dtype": cell.dtype,
        "threads": cell.threads,
        **{name: context.environment[name] for name in columns},
    }


def _measured(row: Row) -> dict[str, Any]:
    metric = METRICS.get(row.metric, Metric("", "") if not row.metric else None)
    if metric is None:
        raise ValueError(f"unknown metric {row.metric!r}: {near_misses(row.metric, METRICS)}")
    if row.status is Status.OK and row.value is not None and math.isnan(row.value):
        row = replace(row, status=Status.ERROR, value=None, reason="what was measured is not a number")
    return {
        "status": str(row.status),
        "reason": row.reason,
        "metric": row.metric,
        "scope": row.scope,
        "epoch": row.epoch,
        "step": row.step,
        "unit": metric.unit,
        "better": metric.better,
        "value": row.value,
        "samples": list(row.samples),
        "flop_model": FLOP_MODEL if row.metric.startswith("flops.") else "",
        "method": row.method,
    }


def _replace(path: Path, content: bytes) -> None:
    """Write to a temporary name, sync, rename, sync the folder: after a crash there is the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fragments(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(f"no results at {str(path)!r}: expected a Parquet file or a folder")
    return sorted(
        Path(folder, name)
        for folder, _, names in os.walk(path, onerror=_raise)
        for name in names
        if name.endswith(".parquet")
    )


def _raise(error: OSError) -> None:
    raise error


def _wanted(columns: Iterable[str]) -> pa.Schema:
    """The schema of what is read where ``columns`` are asked for."""
    needed = [field for field in SCHEMA if field.name in {*columns, *_ALWAYS}]
    return SCHEMA if len(needed) == len(SCHEMA) else pa.schema(needed, SCHEMA.metadata)


class _Content(NamedTuple):
    """What files hold: the tables of those that are sound, and what is wrong with each of the others."""

    tables: list[pa.Table]
    faults: list[tuple[Path, str]]


def _read_all(files: Sequence[Path], wanted: pa.Schema) -> _Content:
    parts = [files[start : start + _PART] for start in range(0, len(files), _PART)]
    with ThreadPoolExecutor(max_workers=_THREADS) as pool:
        found = list(pool.map(lambda part: _read_part(part, wanted), parts))
    return _Content([table for part in found for table in part.tables], [f for part in found for f in part.faults])


def _read_part(files: Sequence[Path], wanted: pa.Schema) -> _Content:
    """As ``_read_all``. Files are judged together, and each by itself where that finds a fault."""
    content = _try_each(files, lambda file: _read(file, wanted))
    try:
        _sound(pa.concat_tables([wanted.empty_table(), *content.tables]), files[0])
    except ValueError:
        return _try_each(files, lambda file: _sound(_read(file, wanted), file))
    return content


def _try_each(files: Sequence[Path], read: Callable[[Path], pa.Table]) -> _Content:
    content = _Content([], [])
    for file in files:
        try:
            content.tables.append(read(file))
        except NewerSchema:
            raise
        except ValueError as error:
            content.faults.append((file, str(error)))
    return content


def _in_order(tables: Sequence[pa.Table], wanted: pa.Schema) -> pa.Table:
    """The rows of all tables, each cell from the first that holds it, the cell started first on top."""
    whole = pa.concat_tables([wanted.empty_table(), *tables])
    counts = [table.num_rows for table in tables]
    source, cell = pd.Series(np.repeat(np.arange(len(counts)), counts)), _numbered(whole)
    first = (source == source.groupby(cell).transform("min")).to_numpy()
    begun = whole["started_at"].cast(pa.int64()).fill_null(np.iinfo(np.int64).max).to_pandas()
    order = np.lexsort((cell, begun.groupby(cell).transform("first")))
    kept = pa.array(order[first[order]])
    with ThreadPoolExecutor(max_workers=_THREADS) as pool:
        return pa.table(list(pool.map(lambda column: column.take(kept), whole.columns)), schema=wanted)


def _numbered(table: pa.Table) -> np.ndarray:
    """The cell of each row as a number, counted as they come."""
    number = np.zeros(table.num_rows, np.int64)
    for name in _CELL:
        known = table[name].combine_chunks().dictionary_encode()
        number = number * len(known.dictionary) + known.indices.to_numpy()
    return pd.factorize(number)[0]


def _version(table: pa.Table) -> int:
    """The latest schema version that the rows name."""
    column = table["schema_version"]
    known = column.drop_null().to_numpy() if pa.types.is_integer(column.type) else ()
    return int(max(known, default=SCHEMA_VERSION))


def _frame(table: pa.Table) -> pd.DataFrame:
    frame = table.to_pandas(types_mapper=_DTYPES.get)
    return frame.astype({name: kind for name, kind in _NEVER_NULL.items() if name in frame})
