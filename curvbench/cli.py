"""The command line. What needs torch is imported by the verbs that need it."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click

OK, USAGE, INTERRUPTED = 0, 2, 130
Verb = Callable[..., Any]


class BadInput(click.ClickException):
    """What the user gave cannot be used; the text is one line."""

    exit_code = USAGE


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point ``curvbench``: runs a verb and exits with its code."""
    warnings.showwarning = _show_warning
    signal.signal(signal.SIGTERM, _interrupt)
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = cli.main(_with_values(given), prog_name="curvbench", standalone_mode=False, obj=given)
    except click.ClickException as error:
        code = _complain(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        code = _complain("interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = OK
    except OSError as error:
        code = _complain(str(error), USAGE)
    sys.exit(code if isinstance(code, int) else OK)


def _option(*names: str, **settings: Any) -> Callable[[Verb], Verb]:
    return click.option(*names, **{"show_default": settings.get("default") is not None, **settings})


def _folder(*names: str, **settings: Any) -> Callable[[Verb], Verb]:
    return _option(*names, type=click.Path(path_type=Path), metavar="DIR", **settings)


_data_folder = {"envvar": "CURVBENCH_DATA", "show_envvar": True, "help": "Folder of the data sets."}


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="curvbench")
def cli() -> None:
    """Measure curvature approximations of neural networks against the exact Fisher matrix."""


@cli.command()
@click.argument("suite", type=click.Path(path_type=Path))
@_option("-p", "probes", multiple=True, metavar="PROBE[key=value,...]", help="Instead of the suite's; repeatable.")
@_option("-m", "problems", multiple=True, metavar="PROBLEM[...]", help="Instead of the suite's; repeatable.")
@_option("--seed", metavar="SEEDS", help="Instead of the suite's seeds: 3, 0-4 or 0,2.")
@_option("--preset", default="default", help="Size of the suite.")
@_option("--device", default="cpu", metavar="cpu|cuda[:i]", help="Where to measure.")
@_option("--dtype", type=click.Choice(["float32", "float64"]), help="Instead of the preset's precision.")
@_option("--threads", type=click.IntRange(1), default=1, help="Threads of torch per cell.")
@_option("-t", "--train", metavar="key=value,...", help="Of the training, instead of the suite's: lr=0.1,epochs=5.")
@_option("--jobs", type=click.IntRange(1), default=1, help="Cells at a time.")
@_option("--timeout", metavar="DURATION", help="Time limit of a cell: 90s, 10m, 2h. Without it: 1h.")
@_option("--budget", metavar="DURATION", help="Start no cell after this time.")
@_option("--engine", type=click.Choice(["local", "inline"]), default="local", help="A process per cell, or none.")
@_option("--dry-run", is_flag=True, help="Show what would be done.")
@_option("--force", is_flag=True, help="Run every cell again, in a new run.")
@_option("--rerun-failed", metavar="[=STATUS,...]", help="Run failed cells again, all or e.g. oom,timeout.")
@_folder("--results", default=Path("results"), help="Folder of the results.")
@_folder("--data", **_data_folder)
@_option("--log-json", is_flag=True, help="One JSON object per event on standard output, nothing else.")
@click.pass_obj
def run(arguments: list[str], /, **given: Any) -> int:
    """Measure or train the cells of SUITE, a Python file with or without .py.

    PROBE and PROBLEM are names that `curvbench list` shows, or FILE.py:CLASS for your own. Cells that are in the
    results already are not run again. Exit codes: 0 all cells succeeded, 2 bad input, 3 some failed, 4 nothing
    succeeded, 130 interrupted.
    """
    from curvbench import runner

    options = runner.Options(command=shlex.join(["curvbench", *arguments]), **given)
    with _users_fault():
        job = runner.prepare(options)
        if options.dry_run:
            return runner.show(job)
        folder = job.begin()
    return runner.execute(job, folder)


@cli.command(name="list")
@_option("--json", "as_json", is_flag=True, help="As JSON.")
def list_(as_json: bool) -> None:
    """Show the probes and problems with their hyperparameters and defaults."""
    from curvbench import registry

    with _users_fault():
        found: dict[str, Any] = {"probes": registry.probes(), "problems": registry.problems()}
    described = {kind: [registry.describe(*item) for item in known.items()] for kind, known in found.items()}
    click.echo(json.dumps(described, indent=1, default=str) if as_json else _listing(described))


@cli.command()
@click.argument("name")
@_folder("--data", "root", **_data_folder)
def data(name: str, root: Path | None) -> None:
    """Download the data set NAME from its authors."""
    if root is None:
        raise BadInput("say where the data sets are to be: --data DIR, or set CURVBENCH_DATA")
    from curvbench.download import download

    with _users_fault():
        folder = download(name, root, _show_transfer if sys.stderr.isatty() else None)
    click.echo(f"{name} is in {folder}")


@cli.command()
@click.argument("run")
@_option("--format", "form", type=click.Choice(["html", "markdown", "latex"]), default="html", help="Of the report.")
@_option("--output", type=click.Path(path_type=Path), metavar="FILE", help="Where to write; without it, the terminal.")
@_folder("--results", default=Path("results"), help="Folder in which a run id or `latest` is looked up.")
def report(run: str, form: str, output: Path | None, results: Path) -> None:
    """Write RUN as one HTML page that needs no network, or as tables in Markdown or LaTeX.

    RUN is a run's folder, a folder of results (the latest run of each suite), a run id, or `latest`.
    """
    from curvbench import report as reports
    from curvbench import store

    with _users_fault():
        text = reports.write(reports.read(store.resolve(run, results)), form)
        if output is None:
            click.echo(text, nl=False)
            return
        output.write_text(text)
    click.echo(f"report: {output}")


@cli.command()
@click.argument("results", type=click.Path(path_type=Path), required=False)
@_option("--port", type=click.IntRange(1, 65535), help="Port on loopback; without it, the first free one from 8501 on.")
def dashboard(results: Path | None, port: int | None) -> None:
    """Look at RESULTS, or at the shipped sample, in a browser on this machine."""
    if results is not None and not results.is_dir():
        raise BadInput(f"no results at {str(results)!r}: expected a folder that `curvbench run` has written")
    app = Path(__file__).parents[1] / "dashboard" / "app.py"
    if not app.is_file():
        raise BadInput("the dashboard is in curvbench's checkout: clone it and pip install -e '.[dashboard]'")
    if any(importlib.util.find_spec(name) is None for name in ("streamlit", "plotly")):
        raise BadInput("the dashboard needs streamlit and plotly: pip install 'curvbench[dashboard]'")
    import plotly.graph_objects  # noqa: F401  (what the first page would wait for)
    from streamlit.web.cli import main as streamlit

    import curvbench.plot  # noqa: F401

    if results is not None:
        os.environ["CURVBENCH_RESULTS"] = str(results.resolve())
    options = {"server.address": "127.0.0.1", "server.headless": "true", "browser.gatherUsageStats": "false"}
    options |= {"client.toolbarMode": "viewer", **({"server.port": str(port)} if port else {})}
    streamlit(["run", str(app), *(word for key, value in options.items() for word in (f"--{key}", value))])


@contextmanager
def _users_fault() -> Iterator[None]:
    """Within, a ValueError or OSError comes from what the user gave, an ImportError from an extra: exit code 2."""
    try:
        yield
    except BrokenPipeError:
        raise
    except (ValueError, OSError, ImportError) as error:
        raise BadInput(str(error)) from error


def _show_transfer(file: str, done: int, total: int) -> None:
    of = f" of {total / 1e6:.1f}" if total > 0 else ""
    click.echo(f"\r{file}: {done / 1e6:.1f}{of} MB", nl=done == total, err=True)


def _complain(text: str, code: int) -> int:
    click.echo(f"curvbench: {' '.join(text.split())}", err=True)
    return code


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    _complain(f"warning: {message}", OK)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _with_values(arguments: list[str]) -> list[str]:
    """``--rerun-failed`` alone means all of them; click has no option whose value may be left out before others."""
    return ["--rerun-failed=all" if argument == "--rerun-failed" else argument for argument in arguments]


def _listing(described: dict[str, list[dict[str, Any]]]) -> str:
    lines = []
    for kind, components in described.items():
        width = max((len(c["name"]) for c in components), default=0)
        lines.append(kind)
        for c in components:
            lines.append(f"  {c['name']:{width}}  {c['description']}")
            lines += [f"  {'':{width}}    {name}={value}" for name, value in c["hyperparameters"].items()]
    return "\n".join(lines)
