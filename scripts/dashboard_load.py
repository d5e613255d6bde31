"""Look at the dashboard from many windows while its results change: python scripts/dashboard_load.py.

Half of the rows are one run, the others are earlier runs of its suite, a sweep, trainings and experiments of papers;
every eighth cell has hostile texts in all its columns, and so have ``run.json``, logs, blocks and the names of folders.
Windows of one Chromium come one after another, each in a context of its own, and stay open: ``first`` is from the
request to the first table with text in its cells. Then all of them visit every page at once. Meanwhile fragments are
added, cut, replaced and removed, and runs come and go. What a hostile text would have executed counts itself. The
exit code is 1 if a bound is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import re
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from curvbench import store
from curvbench.spec.pictures import Blocks, Spectrum
from dashboard_speed import (
    FIRST_TABLE,
    FLAGS,
    ROOT,
    SETTLED,
    processor_seconds,
    served,
)

FIRST, MEMORY = 10.0, 2e9  # bounds: seconds to the first table, bytes of the server
PATIENCE = 180.0  # seconds until a page counts as one that never settles
PAUSE = 2.0  # seconds between two changes of the results
PAGES = sorted(path.stem for path in (ROOT / "dashboard" / "page").glob("*.py"))
HOSTILE = (
    "<script>run()</script>",
    "<img src=x onerror=run()>",
    "[a](javascript:run()) ![b](javascript:run()) <javascript:run()>",
    "<a href='javascript:run()'>a</a>",
    r"$\href{javascript:run()}{x}$ $$\unicode{x}$$ \(y\)",
    "`code` **b** :red[c] :material/home: # d \n\n- e\n\n|f|g|\n|-|-|",
    "</script></style><script>run()</script>%{x} {y} {{z}} %s",
    "0123456789" * 1000,
    "nul \0 tab \t line \n return \r escape \x1b[31m bell \a turned \u202e mark \ufeff",
    "=HYPERLINK('javascript:run()')",
    "\"'></textarea></title><svg onload=run()><iframe src='javascript:run()'></iframe>",
    "[" * 200 + "{" * 200 + ",=,=" * 50,
)
# What a window counts before any script of a page: calls of run(). Dialogs are counted apart.
COUNT = "window.executed = 0; window.run = () => { window.executed += 1 }"
# Elements that only a hostile text can have made.
PLANTED = """() => document.querySelectorAll(
  '[onerror], [onload], [src=x], [src^="javascript:"], [href^="javascript:"], [*|href^="javascript:"]').length
  + document.querySelectorAll('[data-testid=stMarkdownContainer] :is(a:not([href^="#"]), img, table, .katex)').length
  + [...document.scripts].filter(script => script.text.includes('run()')).length"""
ITS_OWN = re.compile(r"/_stcore/(health|host-config)$")  # Streamlit asks below a page's address first


def main() -> None:
    """Generate, serve, look, count."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--windows", type=int, default=20)
    wanted = parser.parse_args()
    chromium = shutil.which("chromium") or sys.exit("no chromium on the path")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = generate(folder, wanted.rows)
        with served(folder) as (address, server, printed), changing(folder) as changes:
            seen = asyncio.run(look(address, chromium, wanted.windows))
            memory, seconds = peak_memory(server), processor_seconds(server)
    seen.faults["tracebacks printed"] = Counter(line.strip() for line in printed if "Traceback" in line)
    print(f"{rows} rows, {wanted.windows} windows, {sum(changes.values())} changes: {dict(changes)}")
    print(
        f"first table: median {statistics.median(seen.first):.2f} s, worst {max(seen.first):.2f} s, limit {FIRST:g} s"
    )
    print(f"server: at most {memory / 1e9:.2f} GB, limit {MEMORY / 1e9:g} GB, {seconds:.0f} s of processor")
    for what, texts in seen.faults.items():
        print(
            f"{what}: {sum(texts.values())}", *(f"  {count} x {text}" for text, count in texts.most_common(8)), sep="\n"
        )
    sys.exit(max(seen.first) > FIRST or memory > MEMORY or any(seen.faults.values()))


def generate(folder: Path, rows: int) -> int:
    """Runs of ``rows`` rows and more in all; how many they have."""
    mlp, sweep, training = (
        next(run for run in store.runs_below(ROOT / "data" / "sample") if run.parent.name == suite)
        for suite in ("mlp", "sweep", "training")
    )
    write = Counter[str]()
    for source, place, share in (
        (training, "cwngd_t1_mnist/20250101T000000Z-a", 0.01),
        (training, "training/20250102T000000Z-a", 0.04),
        (sweep, "sweep/20250103T000000Z-a", 0.1),
        (mlp, "mlp/20250104T000000Z-a", 0.25),
        (mlp, f"mlp/20250105T000000Z-{HOSTILE[1]} $x$ [a](b) `c`", 0.1),
        (mlp, "mlp/20250106T000000Z-a", 0.5),
    ):
        write[place] = write_run(source, folder / place, int(share * rows))
    return sum(write.values())


def write_run(source: Path, target: Path, rows: int) -> int:
    """A run of ``rows`` rows and more like those of ``source`` under other seeds, an eighth of its cells hostile."""
    cells = [cell for _, cell in store.load(source).groupby("cell_id", sort=False)]
    record, written, hostile = store.read_run(source), 0, itertools.cycle(HOSTILE)
    (target / "cells").mkdir(parents=True)
    (target / "logs").mkdir()
    for number, cell in enumerate(itertools.cycle(cells)):
        if written >= rows:
            break
        name = f"{number:06}"
        moved = cell.assign(seed=number // len(cells), cell_id=name, run_id=target.name, suite=target.parent.name)
        text = next(hostile) if number % 8 == 5 else None
        write_fragment(target / "cells" / f"{name}.parquet", moved if text is None else poisoned(moved, text))
        written += len(cell)
        if text is not None:
            (target / "logs" / f"{name}.log").write_text(text)
            store.write_blocks(target, name, blocks(text))
    poison = {f"{key} {text}"[:300]: text for key, text in zip("abcdefghijkl", HOSTILE, strict=True)}
    known = [{"id": f"{k:06}", "hyperparameters": {"probe": poison}} for k in range(20)]
    environment = record["environment"] | {"platform": HOSTILE[0], "device_name": HOSTILE[1], "git_sha": HOSTILE[4]}
    commands = [{"command": text} for text in HOSTILE]
    texts = {"suite_file": HOSTILE[2], "label": HOSTILE[3], "note": HOSTILE[5], "tags": list(HOSTILE)}
    store.write_run(target, record | {"cells": known, "environment": environment, "commands": commands} | texts)
    store.load_run(target)  # as the end of a run does
    return written


def poisoned(cell: pd.DataFrame, text: str) -> pd.DataFrame:
    """The rows of a cell with a hostile text in each column of texts, in some rows only where pages group by it."""
    at, texts = np.arange(len(cell)), [str(name) for name in cell if pd.api.types.is_string_dtype(cell[name])]
    half: dict[str, Any] = {
        name: cell[name].where(at % 2 == 0, text) for name in ("metric", "scope", "reason", "method")
    }
    whole: dict[str, Any] = dict.fromkeys(
        set(texts) - {"metric", "scope", "reason", "method", "status", "cell_id"}, text
    )
    named: dict[str, Any] = {"status": np.where(at % 5 == 0, "error", cell["status"])}
    if len(text) % 2:  # as a method of a problem that others have, which is what most pages show
        whole |= {name: cell[name] for name in ("problem", "problem_args")}
    else:  # a cell without a log or blocks, because these are files with its name
        named["cell_id"] = cell["cell_id"] + text
    return cell.assign(**half, **whole, **named)


def write_fragment(path: Path, cell: pd.DataFrame) -> None:
    """A fragment, whatever its cell is called."""
    pq.write_table(pa.Table.from_pandas(cell, schema=store.SCHEMA, preserve_index=False), path)


def blocks(text: str) -> Blocks:
    """Small blocks of a layer with a hostile name."""
    return Blocks(text, 2, np.eye(4), np.eye(4) / 2, {text: Spectrum(np.ones(2), np.ones(2))})


@contextlib.contextmanager
def changing(folder: Path) -> Iterator[Counter[str]]:
    """Results that change within, and how often each change was made."""
    made, over = Counter[str](), threading.Event()

    def change() -> None:
        random.seed(0)
        for number in itertools.count():
            act = list(CHANGES.values())[number % len(CHANGES)]
            act(folder, number)
            made[list(CHANGES)[number % len(CHANGES)]] += 1
            if over.wait(PAUSE):
                return

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield made
    finally:
        over.set()
        thread.join()


def cells_of(folder: Path) -> list[Path]:
    """The sound fragments of the latest run."""
    return sorted(next(iter(folder.glob("mlp/20250106*/cells"))).glob("0*.parquet"))


def grow(folder: Path, number: int) -> None:
    """A cell ends."""
    source = random.choice(cells_of(folder))
    cell = pq.read_table(source).to_pandas().assign(cell_id=f"new-{number}", seed=number)
    write_fragment(source.with_name(f"new-{number}.parquet"), cell)


def turn_hostile(folder: Path, number: int) -> None:
    """A fragment gets hostile texts."""
    source = random.choice(cells_of(folder))
    cell = pq.read_table(source).to_pandas()
    write_fragment(source, poisoned(cell, f"{HOSTILE[number % len(HOSTILE)]} {number}"))


def damage(folder: Path, number: int) -> None:
    """A fragment is cut, or is something else."""
    source = random.choice(cells_of(folder))
    content = source.read_bytes()
    source.unlink()
    target = source.with_name(f"broken-{number}.parquet")
    if number % 3 == 0:
        target.write_bytes(content[: len(content) // 2])
    elif number % 3 == 1:
        target.symlink_to("nowhere")
    else:
        target.mkdir()


def damage_record(folder: Path, number: int) -> None:
    """The record of the latest run is damaged, or sound again."""
    path = next(iter(folder.glob("mlp/20250106*/run.json")))
    record = json.loads((path.parent.parent / "20250104T000000Z-a" / "run.json").read_text())
    bad: tuple[dict[str, Any], ...] = (
        {"cells": [1, {}], "environment": [], "commands": {}},
        {"suite_file": 3, "cells": None},
        {},
    )
    path.write_text("{" if number % 4 == 3 else json.dumps(record | bad[number % 3]))


def come(folder: Path, number: int) -> None:
    """A run begins."""
    target = folder / "mlp" / f"20260101T{number:06}Z-{'<b>' if number % 2 else 'c'}"
    (target / "cells").mkdir(parents=True)
    for source in random.sample(cells_of(folder), 3):
        shutil.copy(source, target / "cells" / source.name)


def go(folder: Path, number: int) -> None:
    """The runs that came are removed, some of their files first."""
    for run in folder.glob("mlp/20260101*"):
        shutil.rmtree(run)


def vanish(folder: Path, number: int) -> None:
    """Fragments are removed."""
    for path in random.sample(cells_of(folder), 2):
        path.unlink()


CHANGES: dict[str, Callable[[Path, int], None]] = {
    change.__name__: change for change in (grow, turn_hostile, come, damage, grow, damage_record, vanish, go)
}


class Seen:
    """Seconds to the first table of each window, and what went wrong, by kind."""

    def __init__(self) -> None:
        self.first: list[float] = []
        kinds = ("tracebacks shown", "executed", "elements planted", "errors in the console", "pages without an end")
        self.faults = {kind: Counter[str]() for kind in kinds}

    def heard(self, message: Any) -> None:
        """A line of the console."""
        if message.type == "error" and not ITS_OWN.search(message.location.get("url", "")):
            self.faults["errors in the console"][message.text[:200]] += 1

    async def until(self, tab: Any, script: str, name: str) -> None:
        """Wait for what a script asks of a page."""
        try:
            await tab.wait_for_function(script)
        except Exception as error:
            self.faults["pages without an end"][f"{name}: {str(error).splitlines()[0]}"] += 1

    async def check(self, tab: Any, name: str) -> None:
        """Count what is wrong on a page."""
        shown = await tab.locator("[data-testid=stException]").all_inner_texts()
        self.faults["tracebacks shown"].update(f"{name}: {text[:1500]}" for text in shown)
        for kind, script in (("executed", "() => window.executed"), ("elements planted", PLANTED)):
            if count := await tab.evaluate(script):
                self.faults[kind][name] += count


async def look(address: str, chromium: str, windows: int) -> Seen:
    """Open the windows one after another, then visit every page in all of them at once."""
    from playwright.async_api import async_playwright

    seen = Seen()
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=chromium, args=[f"--{flag}" for flag in FLAGS.split()])
        tabs = [await opened(browser, address, seen) for _ in range(windows)]
        await asyncio.gather(*(walk(tab, place, seen) for place, tab in enumerate(tabs)))
        await browser.close()
    return seen


async def opened(browser: Any, address: str, seen: Seen) -> Any:
    """A window that shows its first table."""
    context = await browser.new_context(viewport={"width": 1280, "height": 2400})  # a table out of sight is not drawn
    await context.add_init_script(COUNT)
    tab = await context.new_page()
    tab.set_default_timeout(1000 * PATIENCE)
    tab.on("dialog", lambda dialog: seen.faults["executed"].update([dialog.message]))
    tab.on("pageerror", lambda error: seen.faults["errors in the console"].update([str(error)[:200]]))
    tab.on("console", seen.heard)
    begun = time.perf_counter()
    await tab.goto(address)
    await seen.until(tab, FIRST_TABLE, "first table")
    seen.first.append(time.perf_counter() - begun)
    print(
        f"first table after {seen.first[-1]:.2f} s, load average {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True
    )
    return tab


async def walk(tab: Any, place: int, seen: Seen) -> None:
    """Visit every page, from another one on in each window; every other window chooses a hostile problem first."""
    if place % 2:
        await tab.get_by_role("combobox", name=re.compile("^Problem")).click()
        options = tab.get_by_role("option")
        await options.nth(place % max(1, await options.count())).click()
    for name in PAGES[place % len(PAGES) :] + PAGES[: place % len(PAGES)]:
        await tab.locator(f'[data-testid=stSidebarNavLink][href$="/{"" if name == "overview" else name}"]').click()
        await tab.wait_for_timeout(500)
        await seen.until(tab, SETTLED, name)
        await seen.check(tab, name)


def peak_memory(process: int) -> float:
    """The most bytes that a process has held in memory at once."""
    status = Path(f"/proc/{process}/status").read_text()
    return 1024 * float(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])


if __name__ == "__main__":
    main()
