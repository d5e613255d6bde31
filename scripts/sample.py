"""Make ``data/sample`` again: python scripts/sample.py. Three minutes on one core.

Runs the quick ``suites/training``, ``suites/sweep`` and ``suites/mlp`` and packs each run into one Parquet file, its
``run.json``, and the blocks of a few methods, without what tells of the machine more than its processor.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from curvbench import store

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "data" / "sample"
RUNS = ("suites/training --preset quick", "suites/sweep", "suites/mlp")  # the last is shown first
PICTURED = ("mlp", ("kfac", "ekfac", "unit", "diag", "lngd"))  # the suite and the methods whose blocks are packed
LIMIT = 600_000  # bytes in all, because every clone carries them


def main() -> None:
    """Run, pack, and check the size."""
    with tempfile.TemporaryDirectory() as folder:
        for arguments in RUNS:
            command = [sys.executable, "-m", "curvbench", "run", *arguments.split(), "--results", folder]
            subprocess.run(command, cwd=ROOT, check=True)
        shutil.rmtree(SAMPLE, ignore_errors=True)
        for run in store.runs_below(folder):
            pack(run, SAMPLE / run.relative_to(folder), folder)
    size = sum(file.stat().st_size for file in SAMPLE.rglob("*") if file.is_file())
    print(f"{SAMPLE}: {size / 1000:.0f} kB")
    if size > LIMIT:
        raise SystemExit(f"more than {LIMIT / 1000:.0f} kB: leave something out")


def pack(run: Path, target: Path, temporary: str) -> None:
    """Write the cells of a run into one file, its record, and the blocks of some methods."""
    (target / "cells").mkdir(parents=True)
    frame: pd.DataFrame = store.load(run)
    frame.to_parquet(target / "cells" / "all.parquet", compression="zstd", compression_level=19, index=False)
    suite, pictured = PICTURED
    chosen = frame[(frame["suite"] == suite) & frame["probe"].isin(pictured) & (frame["probe_args"] == "")]
    for cell_id in chosen["cell_id"].unique():
        if blocks := store.read_blocks(run, cell_id):
            store.write_blocks(target, cell_id, blocks)
    record = store.read_run(run)
    record["environment"] = {k: v for k, v in record["environment"].items() if k not in ("host", "load_average")}
    store.write_run(target, _without(record, f" --results {temporary}"))


def _without(content: Any, text: str) -> Any:
    if isinstance(content, dict):
        return {key: _without(value, text) for key, value in content.items()}
    if isinstance(content, list):
        return [_without(value, text) for value in content]
    return content.replace(text, "") if isinstance(content, str) else content


if __name__ == "__main__":
    main()
