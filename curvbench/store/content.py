"""What many fragments hold, joined: their rows, and what is wrong with those that are set aside."""

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

_ALWAYS = (*CELL, "schema_version", "started_at")  # read whatever is asked for
_PART = 100  # files that a thread reads before it asks for more
_THREADS = min(8, os.cpu_count() or 1)


class Content(NamedTuple):
    """The rows of ``files``, so many (``counts``) of each in turn, and what is wrong with others."""

    table: pa.Table
    files: list[Path]
    counts: list[int]
    faults: dict[Path, str]


def wanted(columns: Iterable[str]) -> pa.Schema:
    """The schema of what is read where ``columns`` are asked for."""
    needed = [field for field in SCHEMA if field.name in {*columns, *_ALWAYS}]
    return SCHEMA if len(needed) == len(SCHEMA) else pa.schema(needed, SCHEMA.metadata)


def nothing(schema: pa.Schema) -> Content:
    """The content of no files."""
    return Content(schema.empty_table(), [], [], {})


def joined(parts: Iterable[Content], schema: pa.Schema) -> Content:
    """One content after the other."""
    whole = nothing(schema)
    tables = [whole.table]
    for part in parts:
        tables.append(part.table)
        whole.files.extend(part.files)
        whole.counts.extend(part.counts)
        whole.faults.update(part.faults)
    return whole._replace(table=pa.concat_tables(tables))


def read(files: Sequence[Path], schema: pa.Schema) -> Content:
    """The content of fragments; raises ``NewerSchema`` where a later curvbench has written one."""
    parts = [files[start : start + _PART] for start in range(0, len(files), _PART)]
    with ThreadPoolExecutor(max_workers=_THREADS) as pool:
        return joined(pool.map(lambda part: _read_part(part, schema), parts), schema)


def _read_part(files: Sequence[Path], schema: pa.Schema) -> Content:
    """As ``read``. Files are judged together, and each by itself where that finds a fault."""
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
    # Of many pieces whatever comes later would be slow; and their memory serves the next files.
    return content._replace(table=pa.concat_tables(tables).combine_chunks())


def in_order(content: Content, files: Sequence[Path]) -> pa.Table:
    """The rows of ``files``, each cell from the first of them that holds it, the cell started first on top."""
    whole, place = content.table, {file: number for number, file in enumerate(files)}
    source = pd.Series(np.repeat([place[file] for file in content.files], content.counts))
    cell = _numbered(whole)
    first = (source == source.groupby(cell).transform("min")).to_numpy()
    begun = whole["started_at"].cast(pa.int64()).fill_null(np.iinfo(np.int64).max).to_pandas()
    order = np.lexsort((cell, source, begun.groupby(cell).transform("first")))
    kept = pa.array(order[first[order]])
    with ThreadPoolExecutor(max_workers=_THREADS) as pool:
        return pa.table(list(pool.map(lambda column: column.take(kept), whole.columns)), schema=whole.schema)


def _numbered(table: pa.Table) -> np.ndarray:
    """The cell of each row as a number, counted as they come."""
    number = np.zeros(table.num_rows, np.int64)
    for name in CELL:
        known = table[name].combine_chunks().dictionary_encode()
        number = number * len(known.dictionary) + known.indices.to_numpy()
    return pd.factorize(number)[0]
