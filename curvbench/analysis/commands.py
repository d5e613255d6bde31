"""The command that measures one stored cell again."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def repeat(cell: Mapping[str, Any], suite_file: str, record: Mapping[str, Any]) -> str:
    """``curvbench run ...`` for a cell given by its columns.

    ``suite_file`` is made relative to the working directory. ``record``: the content of the run's ``run.json``, which
    alone holds the damping, the files of a user's probe or problem, and the command of the run with its preset.
    """
    command = str(record.get("command", ""))
    if command.startswith("curvbench measure "):  # the problem is that of the file which the whole command names
        return f"{command} -p {shlex.quote(_label(cell, 'probe', record))} --force"
    parts = ["curvbench", "run", _near(suite_file)]
    parts += ["-p", _label(cell, "probe", record), "-m", _label(cell, "problem", record), "--seed", str(cell["seed"])]
    parts += _of_the_run(command)
    for option, default in (("dtype", None), ("parameters", None), ("device", "cpu"), ("threads", 1)):
        parts += [f"--{option}", str(cell[option])] if cell[option] != default else []
    damping = record.get("identity", {}).get("damping")
    parts += ["--damping", str(damping)] if damping is not None else []
    return shlex.join([*parts, "--force"])


def _of_the_run(command: str) -> list[str]:
    """The options of a run's command that decide the same numbers in every one of its cells."""
    try:
        words = shlex.split(command)
    except ValueError:  # the command in a record that was edited
        words = []
    parts = []
    for names in (("--preset",), ("--train", "-t")):
        values = [value for name, value in itertools.pairwise(words) if name in names]
        values += [word.partition("=")[2] for word in words if word.startswith(f"{names[0]}=")]
        parts += [names[0], values[-1]] if values else []
    return [*parts, *(["--retrain"] if "--retrain" in words else [])]


def _label(cell: Mapping[str, Any], kind: str, record: Mapping[str, Any]) -> str:
    arguments = cell[f"{kind}_args"]
    sources = {entry.get("id"): entry.get("sources", {}) for entry in record.get("cells", [])}
    file = sources.get(cell.get("cell_id"), {}).get(kind, {}).get("file")
    name = f"{file}:{cell[kind]}" if file else str(cell[kind])
    return f"{name}[{arguments}]" if arguments else name


def _near(file: str) -> str:
    path = Path(file)
    inside = path.is_absolute() and path.is_relative_to(Path.cwd())
    return str(path.relative_to(Path.cwd()) if inside else path)
