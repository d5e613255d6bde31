"""Short hashes over the code that decides a number."""

from __future__ import annotations

import functools
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from curvbench.identity.libraries import PACKAGE, file_hash, is_users
from curvbench.registry import source
from curvbench.spec import Component

# Rooms and files at the root that cannot change a measured number. A new room or file counts until it stands here.
NOT_DECISIVE = frozenset(
    {
        "analysis",
        "cli",
        "comparison",
        "engines",
        "identity",
        "planning",
        "plot",
        "prediction",
        "registry",
        "report",
        "shipped",
        "store",
    }
    | {"__init__.py", "__main__.py", "words.py"}
)
COMPONENTS = (
    "probes",
    "problems",
)  # each cell hashes its own probe and problem: a new one changes no other cell


OF_TEXTS = "spec/metrics.py"  # what metrics are called
OF_MEASUREMENTS = "meters"  # which a training does not use, but for its clock and counts
CLOCKS = frozenset({"__init__.py", "clock.py", "dispatch.py", "flop_formulas.py", "flop_model.py", "flops.py"})


@functools.cache
def code_identity(package: Path = PACKAGE, measures: bool = True) -> str:
    """Hash over the names and the code of the package's files that decide a number.

    ``measures``: whether probes are measured, and not trained alone, which most meters cannot change.
    """
    files = {path.relative_to(package).as_posix(): path for path in package.rglob("*.py")}
    return short_hash({name: content(path) for name, path in files.items() if _counts_for(Path(name), measures)})


def _counts_for(file: Path, measures: bool) -> bool:
    is_left_out = not measures and file.parts[0] == OF_MEASUREMENTS and file.name not in CLOCKS
    return _decides(file) and not is_left_out and file.as_posix() != OF_TEXTS


def _decides(file: Path) -> bool:
    """Whether a file of the package, relative to it, decides the numbers of every cell."""
    is_component = file.parts[0] in COMPONENTS and not file.name.startswith("_")
    return file.parts[0] not in NOT_DECISIVE and not is_component


def short_hash(content: Any) -> str:
    """First 12 hexadecimal digits of SHA-256 over the JSON of ``content``; other objects count by their repr."""
    text = json.dumps(content, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def component(part: Component) -> dict[str, Any]:
    """Everything of a probe or problem that decides a number: name, hyperparameters, code of its class and bases."""
    kind: type = type(part)
    values, files = part.hyperparameters, [*_sources(kind), *filter(_counts, part.other_sources)]
    return {
        "name": part.name,
        "hyperparameters": {k: component(v) if isinstance(v, Component) else v for k, v in values.items()},
        "source": [content(file) for file in files],
    }


def content(path: Path) -> str:
    """Hash over the code of a file without docstrings, comments and layout."""
    return file_hash(path)


@functools.cache
def _sources(kind: type) -> tuple[Path, ...]:
    """The files that define a component: that of its class, and those of bases that ``code_identity`` leaves out."""
    return tuple(dict.fromkeys([source(kind), *filter(_counts, map(_file, kind.__mro__))]))


def _file(kind: type) -> Path:
    return Path(getattr(sys.modules.get(kind.__module__), "__file__", None) or "").resolve()


def _counts(file: Path) -> bool:
    """Whether a base class stands in a file that decides numbers and that ``code_identity`` leaves out."""
    if file.is_relative_to(PACKAGE):
        return not _decides(file.relative_to(PACKAGE))
    return file.is_file() and is_users(file)
