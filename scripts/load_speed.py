"""Time ``cb.load`` on a folder of 10,000 fragments: python scripts/load_speed.py.

The fragments are the shipped sample's cells under other ids. Beside the seconds stands the floor, taken in turn in the
same process: reading the bytes of the same files, and Arrow's reading of them without anything around it. Last comes
the time where the end of a run has kept a copy of its rows.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import curvbench as cb
from curvbench import store

ROOT = Path(__file__).parents[1]
FRAGMENTS = 10_000
LIMIT = 5.0  # seconds
ROUNDS = 3


def main() -> None:
    """Make the folder and time it; exit code 1 if the best round takes longer than ``LIMIT``."""
    with tempfile.TemporaryDirectory() as folder:
        files = generate(Path(folder))
        size = sum(file.stat().st_size for file in files)
        load = f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
        print(f"{len(files)} fragments, {size / 1e6:.0f} MB, {load}")
        best = min(timed(folder, files) for _ in range(ROUNDS))
        store.load_run(files[0].parents[1])
        print(f"{'copy':10} {told(lambda: cb.load(folder))[1]}")
    sys.exit(not best <= LIMIT)


def timed(folder: str, files: list[Path]) -> float:
    """Seconds of ``cb.load``; prints them beside the floors."""
    print(f"{'bytes':10} {told(lambda: [file.read_bytes() for file in files])[1]}")
    print(f"{'Arrow':10} {told(lambda: [pq.ParquetFile(file).read(use_threads=False) for file in files])[1]}")
    seconds, text = told(lambda: cb.load(folder))
    print(f"{'cb.load':10} {text}, limit {LIMIT:g} s", flush=True)
    return seconds


def told(action: Callable[[], object]) -> tuple[float, str]:
    """Seconds of an action by the clock, and in words, with those of the processor."""
    start, worked = time.perf_counter(), time.process_time()
    action()
    seconds, work = time.perf_counter() - start, time.process_time() - worked
    return seconds, f"{seconds:5.2f} s, {1000 * seconds / FRAGMENTS:.2f} ms per fragment, processor {work:5.2f} s"


def generate(folder: Path) -> list[Path]:
    """A run of ``FRAGMENTS`` cells; its files."""
    frame = store.load(store.runs_below(ROOT / "data" / "sample")[-1])
    cells = [
        pa.Table.from_pandas(rows, store.SCHEMA, preserve_index=False)
        for _, rows in frame.groupby("cell_id", sort=False)
    ]
    place = store.SCHEMA.get_field_index("cell_id")
    target = folder / "mlp" / "r1" / "cells"
    target.mkdir(parents=True)
    files = []
    for number in range(FRAGMENTS):
        cell = cells[number % len(cells)]
        names = pa.array([f"cell-{number}"] * cell.num_rows)
        files.append(store.write_cell(target, cell.set_column(place, store.SCHEMA.field(place), names)))
    return files


if __name__ == "__main__":
    main()
