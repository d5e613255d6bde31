"""Fragments: the rows of one cell in one Parquet file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curvbench.spec import Status
from curvbench.store import files
from curvbench.store.schema import CELL, EARLIER, LEAN, SCHEMA, SCHEMA_VERSION
from curvbench.words import one_line

NEVER_NULL = {"schema_version": "int64", "seed": "int64", "threads": "int64"}
_STATUSES = frozenset(map(str, Status))
_LATEST = 9_000_000_000_000_000  # microseconds: the year 2255, after which nanoseconds overflow
_PLAUSIBLE = 1000  # schema versions: a larger number is damage, not a later curvbench
# Columns in which every row has a value, and those of them whose value is never an empty text.
_COMPLETE = (
    *NEVER_NULL,
    *CELL,
    *("problem", "problem_args", "probe", "probe_args", "status", "reason", "metric", "scope", "unit", "better"),
    *("started_at", "device", "dtype", "parameters", "flop_model"),
)
_NAMED = (*CELL, "problem", "probe")


class NewerSchema(ValueError):
    """A fragment was written by a later version of curvbench."""


def write_cell(folder: Path, table: pa.Table) -> Path:
    """Write a cell's fragment into ``folder`` atomically, and return its path.

    Raises:
        ValueError: the cell's id is no plain file name.
    """
    path = files.cell_file(folder, table["cell_id"][0].as_py())
    sink = pa.BufferOutputStream()
    # Dictionaries and statistics would slow the reader of some kilobytes; checksums find bits that flip on a disk.
    pq.write_table(table.cast(LEAN), sink, use_dictionary=False, write_statistics=False, write_page_checksum=True)
    files.replace(path, sink.getvalue().to_pybytes())
    return path


def write_rows(path: Path, rows: pd.DataFrame) -> None:
    """Write rows, as ``load`` gives them, atomically into one small Parquet file, which ``load`` reads again."""
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pandas(rows[SCHEMA.names], SCHEMA, preserve_index=False)
    pq.write_table(table, sink, compression="zstd", compression_level=19)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.replace(path, sink.getvalue().to_pybytes())


def read_cell(path: Path) -> pa.Table:
    """A fragment in ``SCHEMA``; columns that came after the version of the file are null or as ``EARLIER`` says.

    Raises:
        ValueError: the file is truncated, or no fragment of curvbench.
        NewerSchema: a later curvbench has written it.
    """
    return sound(read(path, SCHEMA), path)


def read(path: Path, wanted: pa.Schema) -> pa.Table:
    """The columns ``wanted`` of a fragment, which include the cell's names. ``sound`` checks the table."""
    content = files.read(path)  # not mapped, because a file that is cut meanwhile would end the process
    reads_all = wanted is SCHEMA  # then the file need not be asked for its columns first
    try:
        file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True, pre_buffer=False)
        # Threads cost more than they save on some kilobytes.
        table = file.read(None if reads_all else wanted.names, use_threads=False)
        if reads_all and table.schema.equals(SCHEMA):
            return table
        stored = table.schema.names if reads_all else file.schema_arrow.names
    except Exception as error:  # damaged content makes Arrow raise errors of every kind
        raise ValueError(f"not readable as Parquet ({one_line(error)})") from error
    fits = stored == SCHEMA.names and table.schema.equals(wanted)
    return table if fits else _fitted(table, stored, wanted, path)


def _fitted(table: pa.Table, stored: Sequence[str], wanted: pa.Schema, path: Path) -> pa.Table:
    """The table of a file with the columns ``stored``, in the schema ``wanted``; raises as ``read_cell``."""
    if twice := [name for name in SCHEMA.names if stored.count(name) > 1]:
        raise ValueError(f"no fragment of curvbench: the column {twice[0]} is there twice")
    missing = [name for name in SCHEMA.names if name not in stored]
    if missing and not ("schema_version" in stored and _version(table) < SCHEMA_VERSION):
        raise ValueError(f"no fragment of curvbench: {len(missing)} columns missing ({', '.join(missing[:3])})")
    _refuse_newer(table, path)
    for name in set(missing).intersection(wanted.names):
        value = pa.scalar(EARLIER.get(name), SCHEMA.field(name).type)
        table = table.append_column(SCHEMA.field(name), pa.repeat(value, table.num_rows))
    try:
        return table.select(wanted.names).cast(wanted)
    except pa.ArrowException as error:
        raise ValueError(f"no fragment of curvbench: {str(error).splitlines()[0]}") from error


def libraries(path: Path) -> str | None:
    """The name of the record of libraries of a fragment's cell. None means that the fragment names none."""
    table = read(path, pa.schema([SCHEMA.field(name) for name in ("schema_version", "libraries")]))
    name: str | None = table["libraries"][0].as_py() if table.num_rows else None
    return name


def sound(table: pa.Table, path: Path) -> pa.Table:
    """The table, checked: every reader relies on it.

    Raises:
        ValueError: a text is not UTF-8, a value is missing, a time is out of range, or a status is unknown.
        NewerSchema: a later curvbench has written the rows.
    """
    _refuse_newer(table, path)
    try:
        table.validate(full=True)
    except pa.ArrowException as error:
        raise ValueError(f"no fragment of curvbench: {one_line(error)}") from error
    if empty := [name for name in _COMPLETE if name in table.schema.names and table[name].null_count]:
        raise ValueError(f"no fragment of curvbench: rows without {empty[0]}")
    if nameless := [
        name for name in _NAMED if name in table.schema.names and pc.any(pc.equal(table[name], "")).as_py()
    ]:
        raise ValueError(f"no fragment of curvbench: rows without {nameless[0]}")
    ends = pc.min_max(table["started_at"].cast(pa.int64()))
    if table.num_rows and not 0 <= ends["min"].as_py() <= ends["max"].as_py() < _LATEST:
        raise ValueError("no fragment of curvbench: a time in started_at is out of range")
    statuses = table["status"].unique().to_pylist() if "status" in table.schema.names else []
    if unknown := [status for status in statuses if status not in _STATUSES]:
        raise ValueError(f"no fragment of curvbench: unknown status {unknown[0]!r}")
    return table


def _refuse_newer(table: pa.Table, path: Path) -> None:
    if (newest := _version(table)) > _PLAUSIBLE:
        raise ValueError(f"no fragment of curvbench: schema version {newest}")
    if newest > SCHEMA_VERSION:
        version = f"schema version {newest}, this curvbench reads up to {SCHEMA_VERSION}"
        raise NewerSchema(f"{path} was written in {version}: update it")


def _version(table: pa.Table) -> int:
    """The latest schema version that the rows name."""
    column = table["schema_version"]
    versions = column.drop_null().to_numpy() if pa.types.is_integer(column.type) else ()
    return int(max(versions, default=SCHEMA_VERSION))


def below(path: Path) -> list[Path]:
    """Every fragment in a folder and in the folders below it; raises ValueError if there is no such folder."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(f"no results at {str(path)!r}: expected a Parquet file or a folder")
    os.scandir(path).close()  # raises OSError if nothing at all can be read
    folders = sorted(os.walk(path, onerror=_set_aside))  # by text, because thousands of paths would compare slowly
    for folder, inner, names in folders:
        _name_what_is_left_out(Path(folder), inner, names)
    return [
        Path(folder, name)
        for folder, inner, names in folders
        for name in sorted([*inner, *names])
        if name.endswith(".parquet")
    ]


def _name_what_is_left_out(folder: Path, inner: Sequence[str], names: Sequence[str]) -> None:
    for name in names:
        if "." not in name:  # a file with an ending was never meant to be a folder
            files.name_lost_folder(folder / name)
    for name in inner:
        if (folder / name).is_symlink() and not name.endswith(".parquet"):
            files.set_aside(folder / name, "it is a link to a folder, and none is followed")


def _set_aside(error: OSError) -> None:
    files.set_aside(Path(os.fsdecode(error.filename)), f"it cannot be read ({error.strerror})")
