"""The verb ``measure``: hold methods against the exact Fisher on a model of one's own."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from curvbench.cli.verbs import folder, option, users_fault

if TYPE_CHECKING:
    from curvbench.planning.job import Job


@click.command()
@click.argument("program", metavar="FILE.py:NAME")
@option("-p", "probes", multiple=True, metavar="PROBE[key=value,...]", help="Method instead of the ten; repeatable.")
@option("--seed", type=int, default=0, help="Seed of torch when NAME is called.")
@option("--device", default="cpu", metavar="cpu|cuda[:i]", help="Where to measure.")
@option("--dtype", type=click.Choice(["float32", "float64"]), help="Precision instead of the model's own.")
@option("--damping", type=float, metavar="NUMBER", help="Damping of the exact and the compared steps: 1e-3.")
@option("--parameters", type=click.Choice(["all", "weights"]), help="What is covered: all parameters, if not given.")
@option("--mc-samples", type=click.IntRange(1), help="Drawn labels per sample instead of the exact Fisher.")
@option("--memory", metavar="SIZE", help="Leave out methods that keep more between steps: 500MB, 2GB.")
@option("--threads", type=click.IntRange(1), default=1, help="Threads of torch per method.")
@option("--jobs", type=click.IntRange(1), default=1, help="Methods at a time.")
@option("--timeout", metavar="DURATION", help="Time limit of a method: 90s, 10m, 2h. The default is 1h.")
@option("--budget", metavar="DURATION", help="Start no method after this time.")
@option("--engine", type=click.Choice(["local", "inline"]), default="local", help="Processes, or this process.")
@option("--dry-run", is_flag=True, help="Show what would be measured.")
@option("--force", is_flag=True, help="Measure every method again, in a new run.")
@option("--rerun-failed", metavar="[=STATUS,...]", help="Measure failed methods again, all or e.g. oom,timeout.")
@folder("--results", default=Path("results"), help="Folder of the results.")
@option("--log-json", is_flag=True, help="One JSON object per event on standard output, nothing else.")
@click.pass_obj
def measure(arguments: list[str], /, **given: Any) -> int:
    """Measure methods on the model, batch and loss that NAME in FILE.py gives.

    NAME is a function, called once, or an object: (model, inputs, targets, loss), (model, loader, loss), a dict with
    these names, or a Problem. `curvbench init --problem` writes such a file. Methods that are in the results already
    are not measured again. Exit codes are those of `curvbench run`.
    """
    from curvbench.cli.runner import execute, show

    is_shown = given["dry_run"]
    with users_fault():
        job = _job(shlex.join(["curvbench", *arguments]), **given)
        if is_shown:
            return show(job)
        job, run = job.begin()
    return execute(job, run)


def _job(
    command: str,
    program: str,
    probes: tuple[str, ...],
    seed: int,
    memory: str | None,
    mc_samples: int | None,
    **given: Any,
) -> Job:
    from curvbench.comparison import SUITE, suite_of
    from curvbench.comparison import program as programs
    from curvbench.planning.job import Options, planned

    file, _ = programs.parts(program)
    problem = programs.problem_of(program, seed, given["dtype"], mc_samples)
    if given["engine"] == "local":
        programs.refuse_unsent(problem, program)
    suite = suite_of(problem, probes or None, size(memory) if memory else None, given["parameters"] or "all")
    return planned(Options(command=command, suite=file, **given), SUITE, suite)


def size(text: str) -> float:
    """Bytes in ``500MB`` or ``2GB``; raises ValueError."""
    units = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "B": 1.0}
    for unit, factor in units.items():
        number = text.strip().removesuffix(unit)
        if number != text.strip():
            try:
                return float(number) * factor
            except ValueError:
                break
    raise ValueError(f"expected a size such as 500MB or 2GB, got {text!r}")
