"""The verb ``run``: carries out a job, prints its tables and gives its exit code."""

from __future__ import annotations

import itertools
import json
import textwrap
from collections.abc import Collection, Mapping
from pathlib import Path

import pandas as pd
from rich.console import Console

from curvbench import store
from curvbench.analysis import summary
from curvbench.cli.display import GOOD, Display, Tally, bar, json_lines, lines
from curvbench.cli.exits import INTERRUPTED, NOTHING_SUCCEEDED, OK, SOME_FAILED, USAGE
from curvbench.engines import REFERENCE, Event, Observer, Work
from curvbench.planning import plan
from curvbench.planning.job import Job
from curvbench.report import terminal
from curvbench.spec import Status
from curvbench.words import one_line

NARROWEST = 80  # columns: a narrower terminal would fold the numbers
COPY_EVERY = 32  # after this many finished cells the copy of the rows is made again if it is stale
PIPED = 1000  # columns without a terminal, so that nothing is folded
LEGEND_WIDTH = 100  # columns


def show(job: Job) -> int:
    """Print whether each cell would be run, and the script of the jobs on a cluster; return the exit code.

    Raises:
        OSError: results cannot be written.
    """
    console = _console()
    parent = store.refuse_unwritable(job.options.results)
    if job.plan.todo and job.options.engine == "slurm":
        _say(console, job.slurm.script(job.work(parent)))
    for cell_id, cell in job.plan.cells.items():
        fate = "run" if cell_id in job.plan.todo else "share" if cell_id in job.plan.shared else "there"
        _say(console, f"{fate:5} {cell_id} {one_line(cell.label)}")
    place = job.plan.continued or "a new run"
    _say(console, f"{len(job.plan.todo)} of {len(job.plan.cells)} cells would be run in {place}")
    if job.waiting:
        _say(console, f"{len(job.waiting)} cells would then be trained with the settings that these choose")
    return OK


def execute(job: Job, folder: Path) -> int:
    """Print the choices of a search, run the cells left to do, print the results, and return the exit code."""
    console = _console()
    if job.choices and not job.options.log_json:
        _show_choices(job, console)
    try:
        if job.plan.todo:
            work = job.work(folder)
            with _display(job, work, console) as display:
                job.engine.run(work, _copying(folder, display))
    except KeyboardInterrupt:
        return _interrupted(job, folder, console)
    finally:
        store.drop_temporary(folder)
        if not store.in_use(folder):  # another run needs them
            store.drop_large_references(folder)
    frame = store.load_run(folder)
    statuses = store.statuses(frame)
    endings = [statuses[cell] for cell in job.plan.cells if cell in statuses]
    code = USAGE if endings and _is_unusable(job, frame) else exit_code(endings)
    if job.options.log_json:
        not_run = len(job.plan.cells) - len(endings)
        print(json.dumps({"event": "done", "run": str(folder), "exit_code": code, "not_run": not_run}))
    else:
        _report(job, folder, frame, statuses, console)
    return code


def _show_choices(job: Job, console: Console) -> None:
    search = job.suite.presets[job.options.preset].search
    assert search is not None, "only a search chooses"
    for line in ["", f"chosen by {search.metric}:", *map(str, job.choices)]:
        _say(console, line)


def _copying(folder: Path, observe: Observer) -> Observer:
    """An observer that also keeps a copy of the rows, so that a run can be read fast while it runs or if it dies."""
    finished = itertools.count(1)

    def observe_and_copy(event: Event) -> None:
        observe(event)
        if event.kind == "finished" and next(finished) % COPY_EVERY == 0:
            store.keep_copy(folder)

    return observe_and_copy


def exit_code(statuses: Collection[Status]) -> int:
    """0: no cell failed and one succeeded; 3: some cells failed; 4: none succeeded."""
    if Status.OK not in statuses:
        return NOTHING_SUCCEEDED
    return OK if GOOD.issuperset(statuses) else SOME_FAILED


def _is_unusable(job: Job, frame: pd.DataFrame) -> bool:
    """Whether every cell failed because its problem is bad input: NaN in the data, no covered layer, one class."""
    rows = frame[frame["cell_id"].isin(list(job.plan.cells))]
    lacks_data = job.suite.original and (rows["status"] == Status.SKIPPED).all()  # data that only the user has
    return bool(lacks_data or rows["reason"].fillna("").str.startswith(f"{REFERENCE}ValueError: ").all())


def _console() -> Console:
    console = Console()
    console.width = max(console.width, NARROWEST) if console.is_terminal else PIPED
    return console


def _say(console: Console, text: str = "") -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _filled(console: Console, text: str, initial_indent: str = "", subsequent_indent: str = "") -> str:
    """A text in lines of whole words: as wide as a terminal, and of ``LEGEND_WIDTH`` in a file."""
    width = min(console.width, LEGEND_WIDTH) if console.is_terminal else LEGEND_WIDTH
    return textwrap.fill(
        text,
        width,
        initial_indent=initial_indent,
        subsequent_indent=subsequent_indent,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _display(job: Job, work: Work, console: Console) -> Display:
    tally = Tally(len(work.cells), len(set(map(work.reference, work.cells.values()))))
    if job.options.log_json:
        return json_lines(tally)
    return bar(console, tally) if console.is_terminal else lines(lambda text: _say(console, text), tally)


def _interrupted(job: Job, folder: Path, console: Console) -> int:
    finished_count = len(store.cell_statuses(folder).keys() & job.plan.cells.keys())
    if not job.options.log_json:
        total = len(job.plan.cells)
        _say(
            console, f"interrupted: {finished_count} of {total} cells have rows in {folder}; the same command continues"
        )
        if job.options.engine == "slurm":
            _say(console, f"its jobs go on; to end them: scancel {' '.join(store.read_jobs(folder))}")
    return INTERRUPTED


def _report(job: Job, folder: Path, frame: pd.DataFrame, statuses: Mapping[str, Status], console: Console) -> None:
    total = len(job.plan.cells)
    not_run = total - len(statuses.keys() & job.plan.cells.keys())
    if not job.plan.todo:
        _say(console, f"nothing to do: all {total} cells are in {folder}")
    selected = {cell.problem.label for cell in job.plan.cells.values()}
    ending = terminal.ENDINGS[job.suite.summary]
    for line in terminal.verdicts(frame, selected, provisional=not_run > 0) if ending.has_verdict else ():
        _say(console, _filled(console, line, subsequent_indent="  "))
    for title, table in ending.tables(frame, selected):
        _say(console)
        _say(console, _filled(console, title))
        terminal.show(console, table)
    _say(console)
    _say(console, _filled(console, ending.legend(frame)))
    rows = frame[frame["cell_id"].isin(list(job.plan.cells))]
    for line in summary.digest(rows, _commands(job, statuses)):
        _say(console, line)
    if not_run:
        _say(console, f"{not_run} of {total} cells were not run: {_why_not(job)}")
    if job.waiting and job.is_budget_spent:
        _say(console, f"{len(job.waiting)} cells wait for the settings that these choose: the budget was spent")
    _say(console, f"results: {folder}")


def _why_not(job: Job) -> str:
    return "the budget was spent" if job.options.budget else "their jobs ended before; the same command runs them"


def _commands(job: Job, statuses: Mapping[str, Status]) -> dict[str, str]:
    again = plan.FAILED | plan.AGAIN
    failed = {i: cell for i, cell in job.plan.cells.items() if statuses.get(i) in again}
    if job.waiting or len(failed) > 1:
        return dict.fromkeys(failed, _repeated(job.options.command))
    return {i: job.rerun_command(cell) for i, cell in failed.items()}


def _repeated(command: str) -> str:
    """The command that runs all failed cells again: that of the run, which takes up what has succeeded."""
    return command if "--rerun-failed" in command else f"{command} --rerun-failed"
