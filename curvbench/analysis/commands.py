"""The command that measures one stored cell again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def repeat(cell: Mapping[str, Any], suite_file: str, record: Mapping[str, Any]) -> str:
    """``curvbench run ...`` for a cell given by its columns.

    ``suite_file`` is made relative to the working directory. ``record``: the content of the run's ``run.json``, which
    alone holds the damping. A probe or problem from a user's file is named by its class, and ``-p`` needs the file
    before it.
    """
    parts = ["curvbench", "run", _near(suite_file)]
    parts += ["-p", _label(cell, "probe"), "-m", _label(cell, "problem"), "--seed", str(cell["seed"])]
    for option, default in (("dtype", None), ("device", "cpu"), ("threads", 1)):
        parts += [f"--{option}", str(cell[option])] if cell[option] != default else []
    damping = record.get("identity", {}).get("damping")
    parts += ["--damping", str(damping)] if damping is not None else []
    return shlex.join([*parts, "--force"])


def _label(cell: Mapping[str, Any], kind: str) -> str:
    arguments = cell[f"{kind}_args"]
    return f"{cell[kind]}[{arguments}]" if arguments else str(cell[kind])


def _near(file: str) -> str:
    path = Path(file)
    inside = path.is_absolute() and path.is_relative_to(Path.cwd())
    return str(path.relative_to(Path.cwd()) if inside else path)
