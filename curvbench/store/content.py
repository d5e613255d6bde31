"""The rows of many fragments, joined, and the faults of fragments that are set aside."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from curvbench.store import fragments
from curvbench.store.schema import CELL, SCHEMA

_ALWAYS = (*CELL, "schema_version", "started_at")  # columns that are read in any case
_PART = 100  # files that a thread reads before it asks for more
_THREADS = min(8, os.cpu_count() or 1)


class Content(NamedTuple):
    """The rows of ``files`` in turn, with the number of rows of each in ``counts``, and the faults of other files."""

    table: pa.Table
    files: list[Path]
    counts: list[int]
    faults: dict[Path, str]


def wanted(columns: Iterable[str]) -> pa.Schema:
    """The schema of the columns that are read if ``columns`` are asked for."""
    needed = [field for field in SCHEMA if field.name in {*columns, *_ALWAYS}]
    return SCHEMA if len(needed) == len(SCHEMA) else pa.schema(needed, SCHEMA.metadata)


def nothing(schema: pa.Schema) -> Content:
    """The content of no files."""
    return Content(schema.empty_table(), [], [], {})


def joined(parts: Iterable[Content], schema: pa.Schema) -> Content:
    """Several contents as one, in order."""
    content = nothing(schema)
    tables = [content.table]
    for part in parts:
        tables.append(part.table)
        content.files.extend(part.files)
        content.counts.extend(part.counts)
        content.faults.update(part.faults)
    return content._replace(table=pa.concat_tables(tables))


def read(files: Sequence[Path], schema: pa.Schema) -> Content:
    """The content of fragments; raises ``NewerSchema`` if a later curvbench has written one."""
    parts = [files[start : start + _PART] for start in range(0, len(files), _PART)]
    with ThreadPoolExecutor(max_workers=_THREADS) as pool:
        return joined(pool.map(lambda part: _read_part(part, schema), parts), schema)


def _read_part(files: Sequence[Path], schema: pa.Schema) -> Content:
    """As ``read``. The files are checked together, and each by itself if the check of all finds a fault."""
    content = _try_each(files, lambda file: fragments.read(file, schema), schema)
    try:
        fragments.sound(content.table, files[0])
    except ValueError:
        return _try_each(files, lambda file: fragments.sound(fragments.read(file, schema), file), schema)
    return content


def _try_each(files: Sequence[Path], read_one: Callable[[Path], pa.Table], schema: pa.Schema) -> Content:
    tables, content = [schema.empty_table()], nothing(schema)
    for file in files:
        try:
            tables.append(read_one(file))
            content.files.append(file)
            content.counts.append(tables[-1].num_rows)
        except fragments.NewerSchema:
            raise
        except ValueError as error:
            content.faults[file] = str(error)
    # One piece, because many pieces slow down every later step and hold memory that the next files could use.
    return content._replace(table=pa.concat_tables(tables).combine_chunks())


def in_order(content: Content, files: Sequence[Path]) -> pa.Table:
    """The rows of ``files``, oldest cell first; a cell that several files hold comes from the first of them."""
    table, place = content.table, {file: number for number, file in enumerate(files)}
    source = pd.Series(np.repeat([place[file] for file in content.files], content.counts))
    cell = _cell_numbers(table)
    first = (source == source.groupby(cell).transform("min")).to_numpy()
    start = table["started_at"].cast(pa.int64()).fill_null(np.iinfo(np.int64).max).to_pandas()
    order = np.lexsort((cell, source, start.groupby(cell).transform("first")))
    rows = pa.array(order[first[order]])
    with ThreadPoolExecutor(max_workers=_THREADS) as pool:
        return pa.table(list(pool.map(lambda column: column.take(rows), table.columns)), schema=table.schema)


def _cell_numbers(table: pa.Table) -> np.ndarray:
    """The cell of each row as a number, in order of appearance."""
    number = np.zeros(table.num_rows, np.int64)
    for name in CELL:
        codes = table[name].combine_chunks().dictionary_encode()
        number = number * len(codes.dictionary) + codes.indices.to_numpy()
    return pd.factorize(number)[0]
