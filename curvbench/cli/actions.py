"""GitHub Actions as the place where the command line runs: its log, and the summary of its job."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import click


def is_here() -> bool:
    """Whether a step of GitHub Actions runs this process."""
    return os.environ.get("GITHUB_ACTIONS") == "true"


def say(commands: Iterable[str]) -> None:
    """Hand workflow commands to GitHub on standard error, so that standard output stays what ``--format`` says."""
    for command in commands:
        click.echo(command, err=True)


def add_to_summary(write: Callable[[int], str], limit: int) -> None:
    """Append ``write(room)`` to the summary of the step, if there is one; ``limit``: the bytes that it may have."""
    name = os.environ.get("GITHUB_STEP_SUMMARY")
    if not name:
        return
    file = Path(name)
    used = file.stat().st_size if file.is_file() else 0
    with file.open("a", encoding="utf-8") as opened:
        opened.write(write(limit - used))


def in_repository(file: str) -> str:
    """A path of the working directory as one of the repository; a path that leads nowhere from here stays as it is."""
    path, root = Path(file), os.environ.get("GITHUB_WORKSPACE")
    if not root or not path.is_file() or not path.resolve().is_relative_to(Path(root).resolve()):
        return file
    return str(path.resolve().relative_to(Path(root).resolve()))
