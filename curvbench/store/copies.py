"""The copy of a run: the rows of its many fragments in one file, which says for each what it was made of.

It only saves time. A fragment counts as copied as long as it has the size and the time that it had; others are read.
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

from curvbench.store import content, files, fragments
from curvbench.store.content import Content
from curvbench.store.schema import SCHEMA, SCHEMA_VERSION

_NAME, _INDEX = "rows.copy", b"curvbench_fragments"
_MANY = 32  # fragments that take longer to read than one file to find
_STALE = 8  # a copy is made anew when one in so many fragments is not in it
_DAMAGED = (pa.ArrowException, OSError, ValueError, TypeError, KeyError)


class _Entry(NamedTuple):
    """A fragment as it was when it was copied, how many rows of it follow, or what was wrong with it."""

    name: str
    size: int
    time: int
    rows: int
    fault: str | None


def known(run: Path, of: Sequence[Path], schema: pa.Schema) -> tuple[Content, list[Path]]:
    """What the copy of a run holds of some of its fragments, and those that it does not hold as they are now."""
    try:
        held = _held(run, of, schema) if len(of) >= _MANY else content.nothing(schema)
    except _DAMAGED:  # an absent one too
        held = content.nothing(schema)
    copied = {*held.files, *held.faults}
    return held, [path for path in of if path not in copied]


def _held(run: Path, of: Sequence[Path], schema: pa.Schema) -> Content:
    with _opened(run) as file:
        entries, seen = _entries(file), _seen(of)
        table = file.read(schema.names).cast(schema)
    paths = [run / "cells" / entry.name for entry in entries]
    as_now = [seen.get(path) == (entry.size, entry.time) for path, entry in zip(paths, entries, strict=True)]
    if not all(as_now):
        table = table.filter(pa.array(np.repeat(as_now, [entry.rows for entry in entries])))
    kept = [(path, entry) for path, entry, now in zip(paths, entries, as_now, strict=True) if now]
    sound = [(path, entry.rows) for path, entry in kept if entry.fault is None]
    faults = {path: entry.fault for path, entry in kept if entry.fault is not None}
    return Content(table, [path for path, _ in sound], [rows for _, rows in sound], faults)


def keep(run: Path) -> None:
    """Make the copy of a run of many cells anew if much has come since; whoever reads the rows says what is wrong."""
    with contextlib.suppress(OSError, fragments.NewerSchema):  # results may be read-only: then reading takes longer
        of = fragments.below(run / "cells") if (run / "cells").is_dir() else []
        if len(of) >= _MANY and _STALE * len(_news(run, of)) >= len(of):
            _write(run, of)


def _write(run: Path, of: Sequence[Path]) -> None:
    seen = _seen(of)  # before they are read: one that changes meanwhile is not taken for copied
    held, rest = known(run, of, SCHEMA)
    whole = content.joined([held, content.read(rest, SCHEMA)], SCHEMA)
    entries = [_Entry(file.name, *seen[file], rows, None) for file, rows in zip(whole.files, whole.counts, strict=True)]
    entries += [_Entry(file.name, *seen[file], 0, fault) for file, fault in whole.faults.items()]
    metadata = {_INDEX: json.dumps([SCHEMA_VERSION, entries])}
    sink = pa.BufferOutputStream()
    pq.write_table(whole.table.replace_schema_metadata(metadata), sink, write_page_checksum=True)
    files.replace(run / _NAME, sink.getvalue().to_pybytes())


def _news(run: Path, of: Sequence[Path]) -> list[Path]:
    """Those of some fragments that the copy does not hold as they are now."""
    try:
        with _opened(run) as file:
            held = {run / "cells" / entry.name: (entry.size, entry.time) for entry in _entries(file)}
    except _DAMAGED:
        return list(of)
    seen = _seen(of)
    return [path for path in of if held.get(path) != seen[path]]


def _opened(run: Path) -> pq.ParquetFile:
    return pq.ParquetFile(run / _NAME, page_checksum_verification=True)


def _entries(file: pq.ParquetFile) -> list[_Entry]:
    version, listed = json.loads(file.schema_arrow.metadata[_INDEX])
    entries = [_Entry(*entry) for entry in listed]
    if version != SCHEMA_VERSION or sum(entry.rows for entry in entries) != file.metadata.num_rows:
        raise ValueError("made by another version, or damaged")
    return entries


def _seen(of: Sequence[Path]) -> dict[Path, tuple[int, int]]:
    """Size and time of fragments."""
    return {path: (at.st_size, at.st_mtime_ns) for path in of for at in [path.stat()]}
