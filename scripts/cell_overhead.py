"""The overhead of a cell: `python scripts/cell_overhead.py [--cells N] [--turns N]`.

Cells that do nothing run in this process and through the local engine, in turn. Per cell, from the end of the first to
that of the last: seconds on the wall, and CPU seconds of this process, of the fork server and of its children.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from multiprocessing import forkserver
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fake_measure import Fake, Toy, reference_identity  # type: ignore[import-not-found]  # noqa: E402

from curvbench import store  # noqa: E402
from curvbench.engines import Engine, Event, Work  # noqa: E402
from curvbench.engines.inline import InlineEngine  # noqa: E402
from curvbench.engines.local import LocalEngine  # noqa: E402
from curvbench.spec import Cell  # noqa: E402

ENVIRONMENT = {"git_sha": None, "git_dirty": None, "torch_version": "2", "device_name": "a cpu", "code": "0" * 12}


def cpu_seconds() -> float:
    """CPU seconds of this process, of its fork server and of the server's children that have ended."""
    pid = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    if pid is None:
        return time.process_time()
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return time.process_time() + sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def seconds_per_cell(engine: Engine, cells: int) -> tuple[float, float]:
    """Wall and CPU seconds."""
    marks: list[tuple[float, float]] = []

    def observe(event: Event) -> None:
        if event.kind == "finished" and event.task.kind == "cell":
            marks.append((time.monotonic(), cpu_seconds()))

    with tempfile.TemporaryDirectory() as results:
        work = {f"cell{k}": Cell("s", Toy(), Fake("ok", float(k)), 0) for k in range(cells)}
        folder = store.new_run(Path(results) / "s", "0" * 12)
        engine.run(Work(work, folder, ENVIRONMENT, reference_identity, measure="fake_measure"), observe)
    (wall, cpu), *_, (last_wall, last_cpu) = marks
    return (last_wall - wall) / (cells - 1), (last_cpu - cpu) / (cells - 1)


def main() -> None:
    """Print a line per turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=50)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    for turn in range(options.turns):
        wall, cpu = seconds_per_cell(LocalEngine(), options.cells)
        inline_wall, inline_cpu = seconds_per_cell(InlineEngine(), options.cells)
        print(f"turn {turn}: local {wall:.3f} s wall, {cpu:.3f} s CPU", end="; ")
        print(f"inline {inline_wall:.3f} s, {inline_cpu:.3f} s", end="; ")
        print(f"local over inline {wall - inline_wall:.3f} s wall, {cpu - inline_cpu:.3f} s CPU")


if __name__ == "__main__":
    main()
