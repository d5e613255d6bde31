"""The verb ``run``: options to a plan, a plan to results, results to tables and an exit code."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import json
import math
import os
import re
import shlex
import textwrap
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
from rich.console import Console

from curvbench import identity, registry, store
from curvbench.analysis import exact, scaling, summary, sweep
from curvbench.cli.display import GOOD, Display, Tally, bar, json_lines, lines
from curvbench.cli.exits import INTERRUPTED, NOTHING_SUCCEEDED, OK, SOME_FAILED, USAGE
from curvbench.engines import MEASURE, REFERENCE, Engine, Event, Observer, Work
from curvbench.engines.inline import InlineEngine
from curvbench.engines.local import LocalEngine
from curvbench.engines.slurm import SlurmEngine
from curvbench.identity import libraries
from curvbench.planning import plan, selection, tuning
from curvbench.spec import Cell, Status, Suite

SUMMARIES = {"errors": sweep, "growth": scaling, "exact": exact}
NARROWEST = 80
COPIED = 32  # cells between two looks at whether the copy of a run is stale
PIPED = 1000  # columns where there is no terminal: nothing is folded


@dataclass(frozen=True)
class Options:
    """The options of ``curvbench run`` as they were given, the whole command, and the module that measures."""

    command: str
    suite: Path
    probes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    seed: str | None = None
    preset: str = "default"
    device: str = "cpu"
    dtype: str | None = None
    damping: float | None = None
    threads: int = 1
    train: str | None = None
    retrain: bool = False
    jobs: int = 1
    timeout: str | None = None
    budget: str | None = None
    engine: str = "local"
    dry_run: bool = False
    force: bool = False
    rerun_failed: str | None = None
    results: Path = Path("results")
    data: Path | None = None
    log_json: bool = False
    measure: str = MEASURE

    @property
    def root(self) -> Path:
        """The folder of the suite."""
        return registry.suite_file(self.suite).resolve().parent


@dataclass(frozen=True)
class Job:
    """Options that have been checked, with what follows from them.

    No cell is started after ``end``, in seconds of the monotonic clock. ``waiting`` cells need what trials choose;
    ``tried`` are those of its plan and of all plans before.
    """

    options: Options
    suite: Suite
    plan: plan.Plan
    timeout: float
    end: float = math.inf
    waiting: tuple[Cell, ...] = ()
    tried: tuning.Tried = field(default_factory=dict)

    def begin(self) -> Path:
        """The run's folder, with its ``run.json``; raises OSError where it cannot be written."""
        folder = self.plan.begin(self.options.command, registry.suite_file(self.options.suite))
        store.check_writable(folder)
        return folder

    @property
    def engine(self) -> Engine:
        if self.options.engine == "slurm":
            return self.slurm
        return InlineEngine() if self.options.engine == "inline" else LocalEngine()

    @property
    def slurm(self) -> SlurmEngine:
        resources, name = self.suite.resources, registry.suite_file(self.options.suite).stem
        asks = self.options.device != "cpu" and not resources.gpus
        return SlurmEngine(replace(resources, gpus=1) if asks else resources, name)

    def work(self, folder: Path) -> Work:
        """What the engine has to do."""
        return Work(
            cells={identity: self.plan.cells[identity] for identity in self.plan.todo},
            folder=folder,
            environment=self.plan.environment,
            reference=importlib.import_module(self.options.measure).reference_identity,
            data=self.options.data,
            timeout=self.timeout,
            budget=None if self.end == math.inf else max(self.end - time.monotonic(), 0.0),
            jobs=self.options.jobs,
            measure=self.options.measure,
            root=self.options.root,
        )

    @property
    def spent(self) -> bool:
        """Whether the budget is; the rounds of a search share it with the trainings that it settles."""
        return time.monotonic() >= self.end

    def rerun_command(self, cell: Cell) -> str:
        """The command that runs one failed cell again."""
        options = self.options
        parts = ["curvbench", "run", str(options.suite), "-p", registry.selector(cell.probe)]
        parts += ["-m", registry.selector(cell.problem), "--seed", str(cell.seed)]
        parts += ["--preset", options.preset] if cell.training else []  # which says how each probe trains
        parts += ["--train", options.train] if options.train else []
        parts += ["--retrain"] if options.retrain else []
        parts += ["--device", cell.device] if cell.device != "cpu" else []
        parts += ["--dtype", cell.dtype] if cell.dtype != self.suite.presets["default"].dtype else []
        usual = self.suite.presets[options.preset if cell.training else "default"].damping
        parts += ["--damping", f"{cell.damping!r}"] if cell.damping != usual else []
        parts += ["--threads", str(cell.threads)] if cell.threads != 1 else []
        parts += ["--results", str(options.results)] if options.results != Path("results") else []
        parts += ["--data", str(options.data)] if options.data and not os.environ.get("CURVBENCH_DATA") else []
        return shlex.join([*parts, "--rerun-failed"])


def prepare(options: Options) -> Job:
    """Check the options and plan the run; raises ValueError or OSError for what cannot be used."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", options.device):
        raise ValueError(f"--device must be cpu, cuda or cuda:i, got {options.device!r}")
    if options.engine == "inline" and (options.timeout or options.jobs > 1):
        raise ValueError("--engine inline has no time limit and no jobs: leave out --timeout and --jobs")
    if options.engine == "slurm" and options.budget:
        raise ValueError("--engine slurm keeps no budget: the suite's resources say how long a job may take")
    if options.engine == "slurm" and importlib.util.find_spec("submitit") is None:
        raise ValueError("--engine slurm needs submitit: pip install 'curvbench[slurm]'")
    rerun = _rerun(options)
    timeout = selection.duration(options.timeout or "1h")
    end = time.monotonic() + selection.duration(options.budget) if options.budget else math.inf
    if options.engine == "inline":
        libraries.watch(options.root)
    name, suite = registry.load_suite(options.suite)
    cells = _cells(options, name, suite)
    search = None if options.train else suite.presets[options.preset].search
    first = tuning.trials(cells, search) if search else {}
    environment = identity.environment(options.device, registry.suite_file(options.suite))
    made = plan.make(first or cells, options.results, environment, options.force, rerun, options.root)
    tried = {cell_id: first[cell] for cell_id, cell in made.cells.items() if search}
    return Job(options, suite, made, timeout, end, tuple(cells) if search else (), tried)


def settled(job: Job, folder: Path) -> Job:
    """The job of further trials after those in ``folder``, or of the cells that waited, with what these chose.

    Raises:
        ValueError: no trial of a probe succeeded.
    """
    search = job.suite.presets[job.options.preset].search
    assert search is not None, "cells wait for a search alone"
    frame, rerun = store.load(folder), _rerun(job.options)
    if more := tuning.trials(job.waiting, search, job.tried, frame):
        made = plan.make(
            more, job.options.results, job.plan.environment, rerun=rerun, root=job.options.root, goes_on=folder
        )
        if job.options.force:  # the run was begun by the first trials
            made = replace(made, shared={}, todo=(*made.todo, *made.shared))
        return replace(job, plan=made, tried={**job.tried, **{i: more[cell] for i, cell in made.cells.items()}})
    choices = tuning.choose(job.tried, search, frame)
    if not job.options.log_json:
        console = _console()
        for line in ["", f"chosen by {search.metric}:", *map(str, choices)]:
            _say(console, line)
    cells = tuning.settled(job.waiting, choices)
    made = plan.make(cells, job.options.results, job.plan.environment, job.options.force, rerun, job.options.root)
    return replace(job, plan=made, waiting=())


def _rerun(options: Options) -> Collection[Status]:
    """Statuses whose cells are run again."""
    return selection.failed_statuses(options.rerun_failed, plan.FAILED) if options.rerun_failed else ()


def show(job: Job) -> int:
    """Print every cell and whether it would be run, and the script of its jobs on a cluster; the exit code.

    Raises:
        OSError: results could not be written.
    """
    console = _console()
    place = store.refuse_unwritable(job.options.results)
    if job.plan.todo and job.options.engine == "slurm":
        _say(console, job.slurm.script(job.work(place)))
    for cell_id, cell in job.plan.cells.items():
        fate = "run" if cell_id in job.plan.todo else "share" if cell_id in job.plan.shared else "there"
        _say(console, f"{fate:5} {cell_id} {' '.join(cell.label.split())}")
    _say(console, f"{len(job.plan.todo)} of {len(job.plan.cells)} cells would be run in {_place(job)}")
    if job.waiting:
        _say(console, f"{len(job.waiting)} cells would then be trained with what these choose")
    return OK


def execute(job: Job, folder: Path) -> int:
    """Run what is left to do, print tables, failures and the folder; the exit code."""
    console = _console()
    try:
        if job.plan.todo:
            work = job.work(folder)
            with _display(job, work, console) as display:
                job.engine.run(work, _copying(folder, display))
    except KeyboardInterrupt:
        return _interrupted(job, folder, console)
    finally:
        store.drop_large_references(folder)
    frame = store.load_run(folder)
    statuses = store.statuses(frame)
    mine = [statuses[cell] for cell in job.plan.cells if cell in statuses]
    code = USAGE if mine and _unusable(job, frame) else exit_code(mine)
    if job.options.log_json:
        print(json.dumps({"event": "done", "run": str(folder), "exit_code": code, "not_run": _not_run(job, mine)}))
    else:
        _report(job, folder, frame, statuses, console)
    return code


def _copying(folder: Path, observe: Observer) -> Observer:
    """An observer that also keeps the copy of the rows, so that a run is read fast while it goes on, and if it dies."""
    finished = itertools.count(1)

    def both(event: Event) -> None:
        observe(event)
        if event.kind == "finished" and next(finished) % COPIED == 0:
            store.keep_copy(folder)

    return both


def exit_code(statuses: Collection[Status]) -> int:
    """0: every cell is answered and one succeeded; 3: some failed; 4: none succeeded."""
    if Status.OK not in statuses:
        return NOTHING_SUCCEEDED
    return OK if GOOD.issuperset(statuses) else SOME_FAILED


def _unusable(job: Job, frame: pd.DataFrame) -> bool:
    """Whether every cell failed because its problem is bad input: NaN in the data, no covered layer, one class."""
    mine = frame[frame["cell_id"].isin(list(job.plan.cells))]
    absent = job.suite.original and (mine["status"] == Status.SKIPPED).all()  # data that only the user has
    return bool(absent or mine["reason"].fillna("").str.startswith(f"{REFERENCE}ValueError: ").all())


def _cells(options: Options, name: str, suite: Suite) -> list[Cell]:
    return selection.select(
        name,
        selection.preset(suite, options.preset),
        options.probes,
        options.problems,
        options.seed,
        options.device,
        options.dtype,
        options.threads,
        options.train,
        suite.presets.get(suite.original),
        options.retrain,
        options.damping,
    )


def _console() -> Console:
    console = Console()
    console.width = max(console.width, NARROWEST) if console.is_terminal else PIPED
    return console


def _say(console: Console, text: str = "") -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _display(job: Job, work: Work, console: Console) -> Display:
    tally = Tally(len(work.cells), len(set(map(work.reference, work.cells.values()))))
    if job.options.log_json:
        return json_lines(tally)
    return bar(console, tally) if console.is_terminal else lines(lambda text: _say(console, text), tally)


def _place(job: Job) -> str:
    return str(job.plan.continued or "a new run")


def _not_run(job: Job, finished: Collection[object]) -> int:
    return len(job.plan.cells) - len(finished)


def _interrupted(job: Job, folder: Path, console: Console) -> int:
    kept = len(store.cell_statuses(folder).keys() & job.plan.cells.keys())
    if not job.options.log_json:
        total = len(job.plan.cells)
        _say(console, f"interrupted: {kept} of {total} cells have rows in {folder}; the same command continues")
        if job.options.engine == "slurm":
            _say(console, f"its jobs go on; to end them: scancel {' '.join(store.read_jobs(folder))}")
    return INTERRUPTED


def _report(job: Job, folder: Path, frame: pd.DataFrame, statuses: Mapping[str, Status], console: Console) -> None:
    total = len(job.plan.cells)
    not_run = _not_run(job, statuses.keys() & job.plan.cells.keys())
    if not job.plan.todo:
        _say(console, f"nothing to do: all {total} cells are in {folder}")
    selected = {cell.problem.label for cell in job.plan.cells.values()}
    ending = SUMMARIES[job.suite.summary]
    for title, table in ending.tables(frame, selected):
        _say(console)
        _say(console, title)
        summary.show(console, table)
    _say(console)
    _say(console, textwrap.fill(ending.legend(frame), 100))
    failed = frame[frame["cell_id"].isin(list(job.plan.cells))]
    for line in summary.digest(failed, _commands(job, statuses)):
        _say(console, line)
    if not_run:
        _say(console, f"{not_run} of {total} cells were not run: {_why_not(job)}")
    if job.waiting and job.spent:
        _say(console, f"{len(job.waiting)} cells wait for what these choose: the budget was spent")
    _say(console, f"results: {folder}")


def _why_not(job: Job) -> str:
    return "the budget was spent" if job.options.budget else "their jobs ended before; the same command runs them"


def _commands(job: Job, statuses: Mapping[str, Status]) -> dict[str, str]:
    again = plan.FAILED | plan.AGAIN
    failed = {i: cell for i, cell in job.plan.cells.items() if statuses.get(i) in again}
    return {i: _repeated(job.options.command) if job.waiting else job.rerun_command(cell) for i, cell in failed.items()}


def _repeated(command: str) -> str:
    """The command that runs failed trials again: the same, for a choice is made among all of them."""
    return command if "--rerun-failed" in command else f"{command} --rerun-failed"
