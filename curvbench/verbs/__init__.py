"""The verbs of the command line, one file each; what they share stands here.

A verb's file binds a ``click.Command`` by the verb's name, with ``_`` after it where Python has the word already. What
needs torch is imported within the command.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from curvbench.exits import USAGE

DATA_FOLDER: dict[str, Any] = {"envvar": "CURVBENCH_DATA", "show_envvar": True, "help": "Folder of the data sets."}
Verb = Callable[..., Any]


class BadInput(click.ClickException):
    """What the user gave cannot be used; the text is one line."""

    exit_code = USAGE


def option(*names: str, **settings: Any) -> Callable[[Verb], Verb]:
    """An option of a verb, with its default in the help where it has one."""
    return click.option(*names, **{"show_default": settings.get("default") is not None, **settings})


def folder(*names: str, **settings: Any) -> Callable[[Verb], Verb]:
    """An option that takes a folder."""
    return option(*names, type=click.Path(path_type=Path), metavar="DIR", **settings)


@contextmanager
def users_fault() -> Iterator[None]:
    """Within, a ValueError or OSError comes from what the user gave, an ImportError from an extra: exit code 2."""
    try:
        yield
    except BrokenPipeError:
        raise
    except (ValueError, OSError, ImportError) as error:
        raise BadInput(str(error)) from error
