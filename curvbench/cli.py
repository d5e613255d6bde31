"""The command line. Whatever needs torch is imported by the verbs that need it."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from curvbench.engines import Engine
    from curvbench.engines.plan import Plan
    from curvbench.spec import Cell, Status, Suite

MEASURE = "curvbench.measure"
TIMEOUT = "1h"
OK, USAGE, SOME_FAILED, NOTHING_SUCCEEDED, INTERRUPTED = 0, 2, 3, 4, 130


class BadInput(click.ClickException):
    """What the user gave cannot be used; the text is one line."""

    exit_code = USAGE


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point ``curvbench``: runs a verb and exits with its code."""
    warnings.showwarning = _show_warning
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = cli.main(_with_values(arguments), prog_name="curvbench", standalone_mode=False)
    except click.ClickException as error:
        code = _complain(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        code = _complain("interrupted; what was finished is kept", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = OK
    except OSError as error:
        code = _complain(str(error), USAGE)
    sys.exit(code if isinstance(code, int) else OK)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="curvbench")
def cli() -> None:
    """Measure curvature approximations of neural networks against the exact Fisher matrix."""


@dataclass(frozen=True)
class Options:
    """The options of ``run``, as they were given."""

    suite: Path
    probes: tuple[str, ...]
    problems: tuple[str, ...]
    seed: str | None
    preset: str
    device: str
    dtype: str | None
    threads: int
    jobs: int
    timeout: str | None
    budget: str | None
    engine: str
    dry_run: bool
    force: bool
    rerun_failed: str | None
    results: Path
    data: Path | None
    log_json: bool


@cli.command()
@click.argument("suite", type=click.Path(path_type=Path))
@click.option("-p", "--probe", "probes", multiple=True, metavar="PROBE[key=value,...]", help="Instead of the suite's probes. Repeatable. FILE.py:CLASS[...] takes your own.")
@click.option("-m", "--problem", "problems", multiple=True, metavar="PROBLEM[key=value,...]", help="Instead of the suite's problems. Repeatable.")
@click.option("--seed", metavar="SEEDS", help="Instead of the suite's seeds: 3, 0-4 or 0,2.")
@click.option("--preset", default="default", show_default=True, help="Size of the suite.")
@click.option("--device", default="cpu", show_default=True, metavar="cpu|cuda[:i]", help="Where to measure.")
@click.option("--dtype", type=click.Choice(["float32", "float64"]), help="Instead of the preset's precision.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of torch per cell.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Cells at a time.")
@click.option("--timeout", metavar="DURATION", help=f"Time limit of a cell: 90s, 10m, 2h.  [default: {TIMEOUT}]")
@click.option("--budget", metavar="DURATION", help="Start no cell after this time.")
@click.option("--engine", type=click.Choice(["local", "inline"]), default="local", show_default=True, help="A process per cell, or everything in this one.")
@click.option("--dry-run", is_flag=True, help="Show the cells and what would be done.")
@click.option("--force", is_flag=True, help="Run every cell again, in a new run.")
@click.option("--rerun-failed", metavar="[=STATUS,...]", help="Run failed cells again: all, or those with a status (oom,timeout).")
@click.option("--results", type=click.Path(path_type=Path), default=Path("results"), show_default=True, help="Folder of the results.")
@click.option("--data", type=click.Path(path_type=Path), envvar="CURVBENCH_DATA", help="Folder of the data sets.  [env: CURVBENCH_DATA]")
@click.option("--log-json", is_flag=True, help="One JSON object per event on standard output, nothing else.")
def run(**given: Any) -> int:
    """Measure the cells of SUITE, a Python file with or without .py.

    Cells that are in the results already are not run again.
    """
    options = Options(**given)
    with _usage():
        suite, plan = _plan(options)
        engine, limits = _engine(options)
        if not options.dry_run:
            _check_writable(options.results)
    if options.dry_run:
        return _show_plan(plan)
    folder = plan.begin(_command_line(), _suite_file(options.suite))
    try:
        _work(options, plan, folder, engine, limits)
    finally:
        _conclude(options, suite, plan, folder)
    return _exit_code(plan, folder)


@cli.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def list_(as_json: bool) -> None:
    """Show the probes and problems with their hyperparameters and defaults."""
    from curvbench import registry

    with _usage():
        found = {"probes": registry.probes(), "problems": registry.problems()}
    described = {kind: [_describe(*item) for item in known.items()] for kind, known in found.items()}
    click.echo(json.dumps(described, indent=1, default=str) if as_json else _listing(described))


@cli.command()
@click.argument("name")
@click.option("--data", "root", type=click.Path(path_type=Path), envvar="CURVBENCH_DATA", help="Folder of the data sets.  [env: CURVBENCH_DATA]")
def data(name: str, root: Path | None) -> None:
    """Download the data set NAME from its authors."""
    if root is None:
        raise BadInput("say where to put it: --data DIR, or set CURVBENCH_DATA")
    from curvbench.data import download

    with _usage(), click.progressbar(length=1, label=name, file=sys.stderr) as bar:

        def progress(done: int, total: int) -> None:
            bar.length = max(total, 1)
            bar.update(done - bar.pos)

        folder = download(name, root, progress)
    click.echo(f"{name} is in {folder}")


@contextmanager
def _usage() -> Iterator[None]:
    """Within, a ValueError or OSError is the user's: one line, exit code 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise BadInput(str(error)) from error


def _complain(text: str, code: int) -> int:
    click.echo(f"curvbench: {' '.join(text.split())}", err=True)
    return code


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    click.echo(f"curvbench: warning: {' '.join(str(message).split())}", err=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _with_values(arguments: Sequence[str] | None) -> list[str]:
    """``--rerun-failed`` alone means all; click would take the next argument for its value."""
    given = sys.argv[1:] if arguments is None else arguments
    return ["--rerun-failed=all" if argument == "--rerun-failed" else argument for argument in given]


def _command_line() -> str:
    return shlex.join(["curvbench", *sys.argv[1:]])


def _suite_file(path: Path) -> Path:
    return path if path.is_file() else path.with_name(f"{path.name}.py")


def _plan(options: Options) -> tuple[Suite, Plan]:
    from curvbench import identity, registry, selection
    from curvbench.engines import plan

    if not (options.device == "cpu" or options.device.partition(":")[0] == "cuda" and _index_fits(options.device)):
        raise ValueError(f"--device must be cpu, cuda or cuda:i, got {options.device!r}")
    rerun = selection.failed_statuses(options.rerun_failed, plan.FAILED) if options.rerun_failed else frozenset()
    name, suite = registry.load_suite(options.suite)
    environment = identity.environment(options.device)
    cells = selection.select(
        name,
        selection.preset(suite, options.preset),
        options.probes,
        options.problems,
        options.seed,
        options.device,
        options.dtype,
        options.threads,
    )
    return suite, plan.make(cells, options.results, environment, options.force, rerun)
