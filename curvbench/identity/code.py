"""The code that decides a number, as short hashes."""

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

# Rooms and files at the root that decide no number. Whatever is new decides until it stands here.
NOT_DECISIVE = frozenset(
    {"analysis", "cli", "engines", "identity", "planning", "plot", "registry", "report", "store"}
    | {"__init__.py", "__main__.py", "words.py"}
)
COMPONENTS = ("probes", "problems")  # each cell hashes its own: one more changes nothing


@functools.cache
def code_identity(package: Path = PACKAGE) -> str:
    """Hash over the package's files that decide a number: their names, and what their code does."""
    files = {path.relative_to(package).as_posix(): path for path in package.rglob("*.py")}
    return short_hash({name: content(path) for name, path in files.items() if _decides(Path(name))})


def _decides(file: Path) -> bool:
    """Whether a file of the package, relative to it, decides the numbers of every cell."""
    own = file.parts[0] in COMPONENTS and not file.name.startswith("_")
    return file.parts[0] not in NOT_DECISIVE and not own


def short_hash(content: Any) -> str:
    """Twelve hexadecimal digits that what can be written as JSON decides; other objects count by their repr."""
    text = json.dumps(content, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def component(part: Component) -> dict[str, Any]:
    """What of a probe or a problem decides a number: name, hyperparameters and the code of its class and its bases."""
    kind: type = type(part)
    return {
        "name": part.name,
        "hyperparameters": part.hyperparameters,
        "source": [content(file) for file in _sources(kind)],
    }


def content(path: Path) -> str:
    """Hash over what the code of a file does: docstrings, comments and layout do not count."""
    return file_hash(path)


@functools.cache
def _sources(kind: type) -> tuple[Path, ...]:
    """The files that define a component: its own, and those of its bases that decide numbers."""
    return tuple(dict.fromkeys([source(kind), *filter(_counts, map(_file, kind.__mro__))]))


def _file(kind: type) -> Path:
    return Path(getattr(sys.modules.get(kind.__module__), "__file__", None) or "").resolve()


def _counts(file: Path) -> bool:
    """Whether the file of a base class decides numbers, and ``code_identity`` passes over it."""
    if file.is_relative_to(PACKAGE):
        return not _decides(file.relative_to(PACKAGE))
    return file.is_file() and is_users(file)
