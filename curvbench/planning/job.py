"""A job: the checked options of a run and its plan; in a search also the next round of trials."""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import re
import shlex
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from curvbench import identity, registry, store
from curvbench.cells.given import Given
from curvbench.engines import MEASURE, Engine, Work
from curvbench.engines.dask import DaskEngine
from curvbench.engines.inline import InlineEngine
from curvbench.engines.local import LocalEngine
from curvbench.engines.ray import RayEngine
from curvbench.engines.slurm import SlurmEngine
from curvbench.identity import libraries
from curvbench.planning import plan, selection, tuning
from curvbench.spec import Cell, Parameters, Status, Suite

CLUSTERS = {"slurm": "submitit", "dask": "distributed", "ray": "ray"}  # engines, and the packages of their extras
ADDRESSED = ("dask", "ray")


@dataclass(frozen=True)
class Options:
    """The options of ``curvbench run`` as given, the whole command, and ``measure``, the module that measures."""

    command: str
    suite: Path
    probes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    seed: str | None = None
    preset: str = "default"
    device: str = "cpu"
    dtype: str | None = None
    damping: float | None = None
    parameters: Parameters | None = None
    threads: int = 1
    train: str | None = None
    retrain: bool = False
    jobs: int = 1
    timeout: str | None = None
    budget: str | None = None
    engine: str = "local"
    address: str | None = None
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
    """Checked options, and what follows from them.

    No cell is started after ``end``, in seconds of the monotonic clock. ``waiting``: the cells whose settings a search
    still has to choose. ``tried``: the trials of this job's plan and of all plans before. ``choices``: the settings
    that the search has chosen; it is empty until the search has ended, and in a run without a search.
    """

    options: Options
    suite: Suite
    plan: plan.Plan
    timeout: float
    end: float = math.inf
    waiting: tuple[Cell, ...] = ()
    tried: tuning.Trials = field(default_factory=dict)
    choices: tuple[tuning.Choice, ...] = ()

    def begin(self) -> tuple[Job, Path]:
        """Write ``run.json`` and return the job in its run, and the run's folder.

        If another run of the same cells began after this job was planned, this job joins it.

        Raises:
            OSError: the folder cannot be written.
        """
        with store.alone(self.plan.suite_folder):
            job = self._joined()
            folder = job.plan.begin(self.options.command, registry.suite_file(self.options.suite))
        store.check_writable(folder)
        return job, folder

    def _joined(self) -> Job:
        runs = store.runs(self.plan.suite_folder)
        if self.plan.continued or self.options.force or not runs or runs[-1] == self.plan.latest:
            return self
        cells, results, environment = self.plan.cells.values(), self.options.results, self.plan.environment
        rerun = _rerun(self.options)
        return replace(self, plan=plan.make(cells, results, environment, rerun=rerun, root=self.options.root))

    @property
    def engine(self) -> Engine:
        """The engine that the options name."""
        address, size = self.options.address, self.suite.resources.cells
        match self.options.engine:
            case "slurm":
                return self.slurm
            case "dask":
                return DaskEngine(address, size)
            case "ray":
                return RayEngine(address, size)
            case "inline":
                return InlineEngine()
            case _:
                return LocalEngine()

    @property
    def slurm(self) -> SlurmEngine:
        """The Slurm engine with the suite's resources, and with one GPU if the suite names none and cells need one."""
        resources, name = self.suite.resources, registry.suite_file(self.options.suite).stem
        needs_gpu = self.options.device != "cpu" and not resources.gpus
        return SlurmEngine(replace(resources, gpus=1) if needs_gpu else resources, name)

    def work(self, folder: Path) -> Work:
        """The cells left to run, and all that an engine needs to run them."""
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
            seen=self.plan.seen,
        )

    @property
    def is_budget_spent(self) -> bool:
        """Whether the budget is spent. All rounds of a search and the trainings after them share one budget."""
        return time.monotonic() >= self.end

    def rerun_command(self, cell: Cell) -> str:
        """The command that runs one failed cell again."""
        options = self.options
        if isinstance(cell.problem, Given):  # its batch is the file's, which the whole command names
            return f"{options.command} --rerun-failed"
        parts = ["curvbench", "run", str(options.suite), "-p", registry.selector(cell.probe)]
        parts += ["-m", registry.selector(cell.problem), "--seed", str(cell.seed)]
        # a preset has the meters and the precision of a measurement, and says how each probe trains
        parts += ["--preset", options.preset] if cell.training or options.preset != "default" else []
        parts += ["--train", options.train] if options.train else []
        parts += ["--retrain"] if options.retrain else []
        parts += ["--device", cell.device] if cell.device != "cpu" else []
        preset = self.suite.presets[options.preset]
        parts += ["--dtype", cell.dtype] if cell.dtype != preset.dtype else []
        parts += ["--damping", f"{cell.damping!r}"] if cell.damping != preset.damping else []
        parts += ["--parameters", cell.parameters] if cell.parameters != preset.parameters else []
        parts += ["--threads", str(cell.threads)] if cell.threads != 1 else []
        parts += ["--results", str(options.results)] if options.results != Path("results") else []
        parts += ["--data", str(options.data)] if options.data and not os.environ.get("CURVBENCH_DATA") else []
        return shlex.join([*parts, "--rerun-failed"])


def prepare(options: Options) -> Job:
    """Check the options and plan the run of their suite; raises as ``planned``."""
    return planned(options, *registry.load_suite(options.suite))


def planned(options: Options, name: str, suite: Suite) -> Job:
    """Check the options and plan the run of a suite of this name.

    Raises:
        ValueError, OSError: an option cannot be used.
    """
    if not re.fullmatch(r"cpu|cuda(:\d+)?", options.device):
        raise ValueError(f"--device must be cpu, cuda or cuda:i, got {options.device!r}")
    if options.engine == "inline" and (options.timeout or options.jobs > 1):
        raise ValueError("--engine inline has no time limit and no jobs: leave out --timeout and --jobs")
    if options.engine in CLUSTERS and options.budget:
        raise ValueError(f"--engine {options.engine} keeps no budget, because the cluster decides when a cell begins")
    if options.address and options.engine not in ADDRESSED:
        raise ValueError(f"--address is for --engine {' and '.join(ADDRESSED)}, got --engine {options.engine}")
    if (needed := CLUSTERS.get(options.engine)) and importlib.util.find_spec(needed) is None:
        raise ValueError(f"--engine {options.engine} needs {needed}: pip install 'curvbench[{options.engine}]'")
    rerun = _rerun(options)
    timeout = selection.duration("1h" if options.timeout is None else options.timeout)
    end = time.monotonic() + selection.duration(options.budget) if options.budget is not None else math.inf
    if options.engine == "inline":
        libraries.watch(options.root)
    cells = _cells(options, name, suite)
    search = None if options.train else suite.presets[options.preset].search
    trials = tuning.next_trials(cells, search) if search else {}
    environment = identity.environment(options.device, registry.suite_file(options.suite))
    first_plan = plan.make(trials or cells, options.results, environment, options.force, rerun, options.root)
    tried = {cell_id: trials[cell] for cell_id, cell in first_plan.cells.items() if search}
    return Job(options, suite, first_plan, timeout, end, tuple(cells) if search else (), tried)


def settled(job: Job, folder: Path) -> Job:
    """The job that follows ``job`` in a search: its next trials, or the waiting cells with the chosen settings.

    ``folder``: the run in which all trials so far were measured.

    Raises:
        ValueError: no trial of a probe succeeded.
    """
    search = job.suite.presets[job.options.preset].search
    assert search is not None, "cells wait for a search alone"
    frame, rerun = store.load(folder), _rerun(job.options)
    if trials := tuning.next_trials(job.waiting, search, job.tried, frame):
        return _with_trials(job, trials, folder)
    choices = tuning.choose(job.tried, search, frame)
    cells = tuning.settled(job.waiting, choices)
    last_plan = plan.make(cells, job.options.results, job.plan.environment, job.options.force, rerun, job.options.root)
    return replace(job, plan=last_plan, waiting=(), choices=tuple(choices))


def _with_trials(job: Job, trials: Mapping[Cell, tuning.Trial], folder: Path) -> Job:
    """The job of further trials, in the run that its first trials began."""
    options = job.options
    next_plan = plan.make(
        trials, options.results, job.plan.environment, rerun=_rerun(options), root=options.root, goes_on=folder
    )
    if options.force:  # cells of older runs are not shared
        next_plan = replace(next_plan, shared={}, todo=(*next_plan.todo, *next_plan.shared))
    new = {cell_id: trials[cell] for cell_id, cell in next_plan.cells.items()}
    return replace(job, plan=next_plan, tried={**job.tried, **new})


def _rerun(options: Options) -> Collection[Status]:
    """The statuses whose cells are run again."""
    return selection.failed_statuses(options.rerun_failed, plan.FAILED) if options.rerun_failed is not None else ()


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
        suite.originals,
        options.retrain,
        options.damping,
        options.parameters,
    )
