"""The verb ``run``: measure or train the cells of a suite."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from curvbench.cli.exits import INTERRUPTED, OK, USAGE
from curvbench.cli.verbs import DATA_FOLDER, BadInput, folder, option, users_fault
from curvbench.spec import MOST_THREADS

if TYPE_CHECKING:
    from curvbench.planning.job import Options

ENGINES = ("local", "slurm", "dask", "ray", "inline")


@click.command()
@click.argument("suite", type=click.Path(path_type=Path))
@option("-p", "probes", multiple=True, metavar="PROBE[key=value,...]", help="Probe instead of the suite's; repeatable.")
@option("-m", "problems", multiple=True, metavar="PROBLEM[...]", help="Problem instead of the suite's; repeatable.")
@option("--seed", metavar="SEEDS", help="Seeds instead of the suite's: 3, 0-4 or 0,2.")
@option("--preset", default="default", help="Size of the suite.")
@option("--device", default="cpu", metavar="cpu|cuda[:i]", help="Where to measure.")
@option("--dtype", type=click.Choice(["float32", "float64"]), help="Precision instead of the preset's.")
@option("--damping", type=float, metavar="NUMBER", help="Damping of the exact and the compared steps: 1e-3.")
@option("--parameters", type=click.Choice(["all", "weights"]), help="What is covered, instead of the preset's.")
@option("--threads", type=click.IntRange(1, MOST_THREADS), default=1, help="Threads of torch per cell.")
@option("-t", "--train", metavar="key=value,...", help="Training or drift instead of the suite's: lr=0.1,epochs=5.")
@option("--retrain", is_flag=True, help="Train all snapshots here; do not use the shipped ones.")
@option("--jobs", type=click.IntRange(1), default=1, help="Cells at a time; on a cluster, cells at a time of each job.")
@option("--timeout", metavar="DURATION", help="Time limit of a cell: 90s, 10m, 2h. The default is 1h.")
@option("--budget", metavar="DURATION", help="Start no cell after this time.")
@option("--engine", type=click.Choice(ENGINES), default="local", help="Where cells run: docs/tutorials/cluster.md.")
@option("--address", help="Scheduler of Dask or head of Ray. Without it, workers on this machine.")
@option("--dry-run", is_flag=True, help="Show which cells would be run.")
@option("--force", is_flag=True, help="Run every cell again, in a new run.")
@option("--rerun-failed", metavar="[=STATUS,...]", help="Run failed cells again, all or e.g. oom,timeout.")
@folder("--results", default=Path("results"), help="Folder of the results.")
@folder("--data", **DATA_FOLDER)
@option("--log-json", is_flag=True, help="One JSON object per event on standard output, nothing else.")
@click.pass_obj
def run(arguments: list[str], /, **given: Any) -> int:
    """Measure or train the cells of SUITE, a Python file with or without .py, or a folder of them.

    PROBE and PROBLEM are names that `curvbench list` shows, or FILE.py:CLASS for your own. torch_optim:MODULE.CLASS is
    an optimizer of torch. Cells that are in the results already are not run again. Exit codes: 0 all cells succeeded, 2
    bad input, 3 some failed, 4 nothing succeeded, 130 interrupted.
    """
    from curvbench import registry
    from curvbench.planning import job
    from curvbench.planning.selection import NoPreset

    command = shlex.join(["curvbench", *arguments])
    with users_fault():
        files = registry.suite_files(given.pop("suite"))
    code, skipped = OK, 0  # exit codes rise with severity
    for file in files:
        try:
            code = max(code, _run(job.Options(command=command, suite=file, **given)))
        except BadInput as error:  # the other suites of a folder may still run
            lacks_preset = isinstance(error.__cause__, NoPreset)
            skipped += lacks_preset
            if skipped == len(files) or len(files) == 1:
                raise
            click.echo(f"curvbench: {file.stem}{' skipped' * lacks_preset}: {error.format_message()}", err=True)
            code = max(code, OK if lacks_preset else USAGE)
        if code == INTERRUPTED:
            break
    return code


def _run(options: Options) -> int:
    """Run one suite. With a search, its trials are run first, then the trainings with the chosen settings."""
    from curvbench.cli.runner import execute, show
    from curvbench.planning.job import prepare, settled

    with users_fault():
        job = prepare(options)
        if options.dry_run:
            return show(job)
        job, folder = job.begin()
    code = execute(job, folder)
    while job.waiting and code != INTERRUPTED and not job.is_budget_spent:
        with users_fault():
            job = settled(job, folder)
            job, folder = job.begin()
        code = execute(job, folder)
    return code
