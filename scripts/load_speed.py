"""Time ``cb.load`` on a run of 10,000 fragments: python scripts/load_speed.py.

The fragments are the shipped sample's cells under other ids, written in turn as a run writes them. ``killed`` is the
folder of a run that died when its copy of the rows was as stale as it can be, ``ended`` that of one that came to its
end, ``no copy`` the fragments alone. Beside the seconds stand two floors, taken in the same process: reading the bytes
of the same files, and Arrow's reading of them with nothing around it.
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
COPIED = 8_751  # fragments in the copy: with one less the copy would be made again at the last fragment
LIMIT = 5.0  # seconds
ROUNDS = 3


def main() -> None:
    """Make the folder and time it; exit code 1 if the rows of a run take longer than ``LIMIT``."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "mlp" / "r1"
        files = generate(run)
        size = sum(file.stat().st_size for file in files)
        load = f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
        print(f"{len(files)} fragments, {size / 1e6:.0f} MB, {load}")
        killed = timed("killed", folder)
        (copy,) = run.glob("*.copy")
        copy.unlink()
        for _ in range(ROUNDS):
            time_action("bytes", lambda: [file.read_bytes() for file in files])
            time_action("Arrow", lambda: [pq.ParquetFile(file).read(use_threads=False) for file in files])
            time_action("no copy", lambda: cb.load(folder))
        store.keep_copy(run)
        ended = timed("ended", folder)
    sys.exit(not max(killed, ended) <= LIMIT)


def timed(name: str, folder: str) -> float:
    """The least seconds of ``cb.load`` in some rounds."""
    return min(time_action(name, lambda: cb.load(folder), f", limit {LIMIT:g} s") for _ in range(ROUNDS))


def time_action(name: str, action: Callable[[], object], limit: str = "") -> float:
    """Run an action, print its seconds by the clock and of the processor, and return the seconds by the clock."""
    start, worked = time.perf_counter(), time.process_time()
    action()
    seconds, work = time.perf_counter() - start, time.process_time() - worked
    each = f"{1000 * seconds / FRAGMENTS:.2f} ms per fragment"
    print(f"{name:10} {seconds:5.2f} s, {each}, processor {work:5.2f} s{limit}", flush=True)
    return seconds


def generate(run: Path) -> list[Path]:
    """Make a run of ``FRAGMENTS`` cells whose copy is as stale as it can be, and return its files."""
    frame = store.load(store.runs_below(ROOT / "data" / "sample")[-1])
    cells = [
        pa.Table.from_pandas(rows, store.SCHEMA, preserve_index=False)
        for _, rows in frame.groupby("cell_id", sort=False)
    ]
    place = store.SCHEMA.get_field_index("cell_id")
    target = run / "cells"
    target.mkdir(parents=True)
    files = []
    for number in range(FRAGMENTS):
        cell = cells[number % len(cells)]
        names = pa.array([f"cell-{number}"] * cell.num_rows)
        files.append(store.write_cell(target, cell.set_column(place, store.SCHEMA.field(place), names)))
        if number + 1 == COPIED:
            store.keep_copy(run)
    return files


if __name__ == "__main__":
    main()
