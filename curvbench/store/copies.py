"""The copy of a run: the rows of its many fragments in one file, with the size and time of each fragment.

The copy only saves time. A fragment counts as copied as long as its size and time are unchanged; others are read.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curvbench import shipped
from curvbench.store import content, files, fragments
from curvbench.store.content import Content
from curvbench.store.schema import SCHEMA, SCHEMA_VERSION

_NAME, _INDEX = "rows.copy", b"curvbench_fragments"
_MANY = 32  # fragments from which on reading them takes longer than reading the copy
_STALE = 8  # a copy is made again once one fragment in 8 is missing from it


class _Entry(NamedTuple):
    """A sound fragment when it was copied: size, time and number of rows. Damaged ones are read again every time."""

    name: str
    size: int
    time: int
    rows: int


def copied(run: Path, of: Sequence[Path], schema: pa.Schema) -> tuple[Content, list[Path]]:
    """The content that the copy of a run has of the fragments ``of``, and the fragments that it lacks."""
    try:
        content_copied = _current(run, of, schema) if len(of) >= _MANY else content.nothing(schema)
    except Exception:  # absent, or damaged in any way: the fragments are read, and say the same
        content_copied = content.nothing(schema)
    files_copied = set(content_copied.files)
    return content_copied, [path for path in of if path not in files_copied]


def _current(run: Path, of: Sequence[Path], schema: pa.Schema) -> Content:
    """The content of the fragments ``of`` that have not changed since they were copied."""
    with _opened(run) as file:
        entries, stamps = _entries(file), _stamps(of)
        table = fragments.sound(file.read(schema.names).cast(schema), run / _NAME)
    _refuse_shifted(table, entries)
    paths = [run / "cells" / entry.name for entry in entries]
    is_current = [stamps.get(path) == (entry.size, entry.time) for path, entry in zip(paths, entries, strict=True)]
    if not all(is_current):
        table = table.filter(pa.array(np.repeat(is_current, [entry.rows for entry in entries])))
    current = [(path, entry.rows) for path, entry, same in zip(paths, entries, is_current, strict=True) if same]
    return Content(table, [path for path, _ in current], [rows for _, rows in current], {})


def _refuse_shifted(table: pa.Table, entries: Sequence[_Entry]) -> None:
    """Raise ValueError if a fragment that is named after its cell would get rows of another cell."""
    cells = table["cell_id"].to_pandas()
    names = np.repeat([entry.name.removesuffix(".parquet") for entry in entries], [entry.rows for entry in entries])
    own, known = cells.to_numpy() == names, set(names)
    if (~own & (cells.isin(known).to_numpy() | np.isin(names, list(known & set(cells))))).any():
        raise ValueError("rows of another cell")


def keep(run: Path) -> None:
    """Make the copy of a run of many cells again if many fragments are new; reading the rows reports any faults."""
    with contextlib.suppress(OSError, fragments.NewerSchema):  # results may be read-only; reading then takes longer
        of = fragments.below(run / "cells") if (run / "cells").is_dir() else []
        is_shipped = run.resolve().is_relative_to(shipped.DATA)  # what is shipped stays as it was made
        if len(of) >= _MANY and not is_shipped and _STALE * len(_changed(run, of)) >= len(of):
            _write(run, of)


def _write(run: Path, of: Sequence[Path]) -> None:
    stamps = _stamps(of)  # taken before reading, so that a fragment that changes meanwhile does not count as copied
    unchanged, rest = copied(run, of, SCHEMA)
    rows = content.joined([unchanged, content.read(rest, SCHEMA)], SCHEMA)
    entries = [_Entry(file.name, *stamps[file], count) for file, count in zip(rows.files, rows.counts, strict=True)]
    metadata = {_INDEX: json.dumps([SCHEMA_VERSION, entries])}
    sink = pa.BufferOutputStream()
    pq.write_table(rows.table.replace_schema_metadata(metadata), sink, write_page_checksum=True)
    files.replace(run / _NAME, sink.getvalue().to_pybytes())


def _changed(run: Path, of: Sequence[Path]) -> list[Path]:
    """The fragments of ``of`` that are not in the copy, or have changed since."""
    try:
        with _opened(run) as file:
            recorded = {run / "cells" / entry.name: (entry.size, entry.time) for entry in _entries(file)}
    except Exception:  # as ``copied``
        return list(of)
    stamps = _stamps(of)
    return [path for path in of if recorded.get(path) != stamps[path]]


def _opened(run: Path) -> pq.ParquetFile:
    return pq.ParquetFile(pa.BufferReader(files.read(run / _NAME, inside=run)), page_checksum_verification=True)


def _entries(file: pq.ParquetFile) -> list[_Entry]:
    version, listed = json.loads(file.schema_arrow.metadata[_INDEX])
    entries = [_Entry(*entry) for entry in listed]
    if version != SCHEMA_VERSION or sum(entry.rows for entry in entries) != file.metadata.num_rows:
        raise ValueError("made by another version, or damaged")
    if len({entry.name for entry in entries}) < len(entries) or any(entry.rows < 0 for entry in entries):
        raise ValueError("damaged")
    return entries


def _stamps(of: Sequence[Path]) -> dict[Path, tuple[int, int]]:
    """Size and time of fragments."""
    return {path: files.size_and_time(path) for path in of}
