"""The verbs of the command line, one file each, and what they share.

A verb's file binds a ``click.Command`` to the verb's name, with ``_`` after it if Python uses the word. Modules that
need torch are imported within the command.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from curvbench.cli.exits import USAGE

DATA_FOLDER: dict[str, Any] = {"envvar": "CURVBENCH_DATA", "show_envvar": True, "help": "Folder of the data sets."}
THRESHOLD = "How much metrics with this prefix may change: error=1e-3, time.wall=0.2; repeatable."
Verb = Callable[..., Any]


class BadInput(click.ClickException):
    """The user's input cannot be used; the text is one line."""

    exit_code = USAGE


def option(*names: str, **settings: Any) -> Callable[[Verb], Verb]:
    """An option of a verb; the help shows its default if it has one."""
    return click.option(*names, **{"show_default": settings.get("default") is not None, **settings})


class Folder(click.Path):
    """A path; an empty text, which a variable that is not set leaves behind, is not the working directory."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("expected a folder, got an empty text; the working directory is .", param, ctx)
        return super().convert(value, param, ctx)


def folder(*names: str, **settings: Any) -> Callable[[Verb], Verb]:
    """An option that takes a folder."""
    return option(*names, type=Folder(path_type=Path), metavar="DIR", **settings)


def raw(verb: Verb) -> Verb:
    """The option of verbs that write CSV."""
    return option("--raw", is_flag=True, help="CSV with texts as they are, also those that a spreadsheet executes.")(
        verb
    )


def written(output: Path | None, text: str, what: str) -> None:
    """Write a text into a file of the user's choice and say so, or on the terminal."""
    if output is None:
        click.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8", errors="backslashreplace")
        click.echo(f"{what}: {output}")


def compared(verb: Verb) -> Verb:
    """The options of verbs that compare rows with other rows."""
    options = [
        option("-p", "probes", multiple=True, metavar="PROBE", help="Only this probe, by label or name; repeatable."),
        option("-m", "problems", multiple=True, metavar="PROBLEM", help="Only this problem; repeatable."),
        option(
            "--metric", "metrics", multiple=True, metavar="PREFIX", help="Only metrics with this prefix; repeatable."
        ),
        option("--threshold", "thresholds", multiple=True, metavar="METRIC=SHARE", help=THRESHOLD),
        option("--all-runs", is_flag=True, help="Every run of a folder or revision, as rounds taken in turn."),
        folder("--results", default=Path("results"), help="Folder in which ids, `latest` and revisions are looked up."),
    ]
    for add in reversed(options):
        verb = add(verb)
    return verb


@contextmanager
def left_out() -> Iterator[list[str]]:
    """The texts of what is set aside within, each once; they are shown as warnings all the same."""
    from curvbench.store import SetAside

    texts: list[str] = []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            yield texts
        finally:
            texts += dict.fromkeys(str(warning.message) for warning in said if warning.category is SetAside)
    for warning in {str(warning.message): warning for warning in said}.values():
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


@contextmanager
def users_fault() -> Iterator[None]:
    """Within, these errors come from the input, an ImportError from a missing extra: exit code 2."""
    try:
        yield
    except BrokenPipeError:
        raise
    except (ValueError, OSError, ImportError, MemoryError) as error:
        raise BadInput(str(error)) from error
