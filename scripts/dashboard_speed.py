"""Time the dashboard in Chromium on a run of 100,000 rows: python scripts/dashboard_speed.py.

The rows are those of the shipped sample under other seeds, one fragment per cell as a run writes them. ``first`` is
from the request to the page with its figures, in a server that has read the folder for no one yet; ``again`` the same
in a second window; ``filter`` from a choice in the sidebar to the page that shows it. Beside each stand the processor
seconds that the server spent on it, which a busy machine does not lengthen.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from curvbench import store

ROOT = Path(__file__).parents[1]
ROWS = 100_000
LIMITS = {"first": 2.0, "again": 2.0, "filter": 1.0}
PAGES = ("", "tradeoff", "accuracy", "cost")
FLAGS = "no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update"


def main() -> None:
    """Generate, serve, look; exit code 1 if a limit is passed."""
    chromium = shutil.which("chromium") or sys.exit("no chromium on the path")
    with tempfile.TemporaryDirectory() as folder:
        rows, cells = generate(Path(folder))
        print(f"{rows} rows in {cells} fragments, load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        slow = 0
        for page in PAGES:
            with served(Path(folder)) as (address, server):  # each page meets a server that has cached nothing
                for what, (seconds, work) in looked(f"{address}/{page}", chromium, server).items():
                    limit = f"limit {LIMITS[what]:g} s, server's processor {work:.2f} s"
                    print(f"{page or 'overview':10} {what:7} {seconds:5.2f} s ({limit})", flush=True)
                    slow += seconds > LIMITS[what]
        sys.exit(slow > 0)


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


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, int]]:
    """Address and process of a dashboard on ``folder``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "curvbench", "dashboard", str(folder), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    assert process.stdout is not None
    try:
        next(line for line in process.stdout if "URL:" in line)
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        process.terminate()
        process.wait()


def looked(address: str, chromium: str, server: int) -> dict[str, tuple[float, float]]:
    """Seconds until the page stands, and of the server: for the first window, another one, and after a filter."""
    from playwright.sync_api import sync_playwright

    found = {}
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=[f"--{flag}" for flag in FLAGS.split()])
        for what in ("first", "again"):
            page = browser.new_page()
            found[what] = timed(server, opened, page, address)
        found["filter"] = timed(server, filtered, page)
        browser.close()
    return found


def opened(page: Any, address: str) -> None:
    """Go there and wait for the end of the script's run."""
    page.goto(address)
    page.wait_for_selector("h2")
    settled(page)


def filtered(page: Any) -> None:
    """Choose another problem in the sidebar, and wait until the page names it."""
    page.get_by_role("combobox", name=re.compile("^Problem")).click()
    page.get_by_role("option").nth(1).click()
    page.wait_for_function(
        "() => document.querySelector('[data-testid=stMain]').textContent.includes('mlp[epochs=10]')", polling=50
    )
    settled(page)


def settled(page: Any) -> None:
    """Wait until Streamlit runs no more and every figure is drawn."""
    page.wait_for_function(
        """() => document.querySelector('[data-test-script-state=notRunning]')
          && !document.querySelector('[data-stale=true], [data-testid=stSkeleton]')
          && [...document.querySelectorAll('[data-testid=stPlotlyChart]')].every(c => c.querySelector('.main-svg'))"""
    )


def timed(server: int, action: Callable[..., object], *arguments: object) -> tuple[float, float]:
    """Seconds of an action by the clock, and of the server's processor."""
    start, worked = time.perf_counter(), processor_seconds(server)
    action(*arguments)
    return time.perf_counter() - start, processor_seconds(server) - worked


def processor_seconds(process: int) -> float:
    """What Linux has counted for a process until now."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
