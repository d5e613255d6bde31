"""Time the dashboard in Chromium on a run of 100,000 rows: python scripts/dashboard_speed.py.

The rows are those of the shipped sample under other seeds, one fragment per cell as a run writes them. Each page meets
a server that has shown nothing yet. ``start`` is from the command to the address that it prints. ``first`` is from the
request of a browser that has nothing cached to the page's first table with text in its cells, and ``again`` the same in
a second tab of that browser; ``paint`` is what the browser itself calls its first contentful paint, which is the empty
frame of the page; ``whole`` goes on until every figure is drawn. ``filter`` is from a choice in the sidebar to the
whole page that shows it. Beside the seconds by the clock stand those of the processor, which a busy machine does
not lengthen: of the server, and of all processes of the browser.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from curvbench import store

ROOT = Path(__file__).parents[1]
ROWS = 100_000
TICKS = os.sysconf("SC_CLK_TCK")
LIMITS = {"paint": 2.0, "first": 2.0, "again": 2.0, "filter": 0.5}  # seconds by the clock
WORK = {"first": 1.5, "again": 1.5, "filter": 0.5}  # seconds of the server's processor
PAGES = ("", "tradeoff", "accuracy", "cost")
FLAGS = "no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update"
# A table is drawn on a canvas; what is inside the element is the same table for screen readers.
FIRST_TABLE = """() => [...document.querySelectorAll('[data-testid=stDataFrame] canvas [role=gridcell]')]
  .some(cell => cell.textContent.trim())"""
PAINT = "() => performance.getEntriesByName('first-contentful-paint')[0].startTime"  # milliseconds
# Streamlit runs no more and every figure is drawn.
SETTLED = """() => document.querySelector('[data-test-script-state=notRunning]')
  && !document.querySelector('[data-stale=true], [data-testid=stSkeleton]')
  && [...document.querySelectorAll('[data-testid=stPlotlyChart]')].every(chart => chart.querySelector('.main-svg'))"""


def main() -> None:
    """Generate, serve, look; exit code 1 if a limit is passed."""
    chromium = shutil.which("chromium") or sys.exit("no chromium on the path")
    with tempfile.TemporaryDirectory() as folder:
        rows, cells = generate(Path(folder))
        print(f"{rows} rows in {cells} fragments, {os.cpu_count()} cores")
        slow = 0
        for page in PAGES:
            begun = time.perf_counter()
            with served(Path(folder)) as (address, server, _):
                show(page, "start", time.perf_counter() - begun, processor_seconds(server), 0.0)
                for what, *seconds in timed_steps(f"{address}/{page}", chromium, server):
                    show(page, what, *seconds)
                    slow += seconds[0] > LIMITS.get(what, math.inf) or seconds[1] > WORK.get(what, math.inf)
        sys.exit(slow > 0)


def show(page: str, what: str, seconds: float, server: float, browser: float) -> None:
    """Print a line of the table."""
    limit = f", limit {LIMITS[what]:g} s" if what in LIMITS else ""
    most = f" of at most {WORK[what]:g}" if what in WORK else ""
    work = f"processor: server {server:.2f}{most} s, browser {browser:.2f} s, load average {os.getloadavg()[0]:.1f}"
    print(f"{page or 'overview':10} {what:7} {seconds:5.2f} s{limit} ({work})", flush=True)


def generate(folder: Path) -> tuple[int, int]:
    """A run of ``ROWS`` rows and more; how many rows and cells it has."""
    sample = store.runs_below(ROOT / "data" / "sample")[-1]
    table = pa.Table.from_pandas(store.load(sample), preserve_index=False)
    frame = table.to_pandas()
    target = folder / "mlp" / "r1" / "cells"
    target.mkdir(parents=True)
    rows = cells = seed = 0
    while rows < ROWS:
        for name, cell in frame.groupby("cell_id", sort=False):
            moved = cell.assign(seed=seed, cell_id=f"{name}-{seed}", run_id="r1")
            store.write_cell(target, pa.Table.from_pandas(moved, schema=store.SCHEMA, preserve_index=False))
            rows, cells = rows + len(cell), cells + 1
        seed += 1
    store.write_run(target.parent, store.read_run(sample))
    store.load_run(target.parent)  # as the end of a run does
    return rows, cells


@contextlib.contextmanager
def served(folder: Path) -> Iterator[tuple[str, int, list[str]]]:
    """Address and process of a dashboard on ``folder``, and the lines that it has printed since."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "curvbench", "dashboard", str(folder), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    assert process.stdout is not None
    lines: list[str] = []
    try:
        next(line for line in process.stdout if "URL:" in line)
        reader = threading.Thread(target=lines.extend, args=(process.stdout,))  # a full pipe would stop the server
        reader.start()
        yield f"http://127.0.0.1:{port}", process.pid, lines
    finally:
        process.terminate()
        process.wait()


def timed_steps(address: str, chromium: str, server: int) -> Iterator[tuple[str, float, float, float]]:
    """The name of each timed step, its seconds by the clock, and the processor seconds of server and browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=[f"--{flag}" for flag in FLAGS.split()])
        window = browser.new_context()
        window.set_default_timeout(300_000)
        for what in ("first", "again"):
            page = window.new_page()
            meter = Meter(server)
            page.goto(address)
            page.wait_for_function(FIRST_TABLE)
            yield what, *meter.read()
            yield "paint", page.evaluate(PAINT) / 1000, *meter.read()[1:]
            page.wait_for_function(SETTLED)
            yield "whole", *meter.read()
        meter = Meter(server)
        choose_problem(page)
        yield "filter", *meter.read()
        browser.close()


def choose_problem(page: Any) -> None:
    """Choose another problem in the sidebar, and wait until the page shows it."""
    page.get_by_role("combobox", name=re.compile("^Problem")).click()
    page.get_by_role("option").nth(1).click()
    page.wait_for_function(
        "() => [...document.querySelectorAll('h3, .gtitle')].some(t => t.textContent.includes('mlp[epochs=10]'))",
        polling=50,
    )
    page.wait_for_function(SETTLED)


class Meter:
    """Seconds since its creation: by the clock, of the server's processor, of the browser's."""

    def __init__(self, server: int) -> None:
        self.server = server
        self.start = self._now()

    def read(self) -> tuple[float, float, float]:
        """The three numbers of seconds."""
        clock, server, browser = (now - then for now, then in zip(self._now(), self.start, strict=True))
        return clock, server, browser

    def _now(self) -> tuple[float, float, float]:
        server = processor_seconds(self.server)
        return time.perf_counter(), server, processor_seconds(os.getpid()) - time.process_time() - server


def processor_seconds(root: int) -> float:
    """Processor seconds until now of a process and its descendants."""
    processes: dict[int, tuple[int, float]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # the process has just ended
            fields = path.read_text().rpartition(")")[2].split()
            processes[int(path.parent.name)] = int(fields[1]), (int(fields[11]) + int(fields[12])) / TICKS
    below, seconds = [root], 0.0
    for process in below:
        seconds += processes[process][1]
        below += [child for child, (parent, _) in processes.items() if parent == process]
    return seconds


if __name__ == "__main__":
    main()
