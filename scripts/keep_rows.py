"""Put the rows of runs into ``data/reference``: python scripts/keep_rows.py RUN ...

Keeps the cells that have numbers, the libraries that they had loaded, and the record of the run without what tells of
the machine more than its processor. A later ``curvbench run ... --results data/reference`` on a machine of the same
kind goes on from there.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import Any

from curvbench import store
from curvbench.spec import Status

REFERENCE = Path(__file__).parents[1] / "data" / "reference"
PRIVATE = ("host", "load_average")  # of the environment


def keep(run: Path, folder: Path = REFERENCE) -> int:
    """Copy a run's cells to ``folder``/SUITE/RUN, and return how many there are now."""
    frame = store.load(run)
    failed = set(frame.loc[(frame["metric"].fillna("") == "") | (frame["status"] == Status.ERROR), "cell_id"])
    target = folder / run.parent.name / run.name
    for kind in ("cells", "libraries"):
        (target / kind).mkdir(parents=True, exist_ok=True)
    for file in (run / "cells").glob("*.parquet"):
        if file.stem not in failed:
            shutil.copy(file, target / "cells")
    for file in (run / "libraries").glob("*.json"):
        shutil.copy(file, target / "libraries")
    record = _without_paths(json.loads((run / "run.json").read_text("utf-8")))
    record["environment"] = {k: v for k, v in record["environment"].items() if k not in PRIVATE}
    store.write_run(target, record)
    return len(list((target / "cells").glob("*.parquet")))


def _without_paths(content: Any) -> Any:
    """A record in which no text names a folder of this machine."""
    if isinstance(content, dict):
        return {key: _without_paths(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_without_paths(value) for value in content]
    if not isinstance(content, str):
        return content
    return re.sub(r"(--results|--data) /\S+", r"\1 DIR", content)


def main() -> None:
    """Keep the runs, and say how many cells each has."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    for run in parser.parse_args().runs:
        print(f"{run.parent.name}/{run.name}: {keep(run)} cells")


if __name__ == "__main__":
    main()
