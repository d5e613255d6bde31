"""A user's folder, as a workflow or a history has to know it: what pip can install of it, and where its suite lies."""

from __future__ import annotations

import ast
import os
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["package", "dependencies", "files"]
SHOWN = 8  # suites in the text of an error
NOT_SOURCES = frozenset({"build", "dist", "node_modules", "results", "site-packages", "__pycache__"})


@dataclass(frozen=True)
class Project:
    """A folder of a user.

    ``folder``: the folder. ``root``: the folder of its git repository, or the folder itself outside git. ``kind``:
    ``package`` if pip can install the folder, ``dependencies`` if its pyproject.toml only names what it needs, and
    ``files`` otherwise. ``suite``: the suite's file, relative to the folder.
    """

    folder: Path
    root: Path
    kind: Kind
    suite: Path

    @property
    def below(self) -> str:
        """The folder relative to the repository with a slash at its end; empty for the repository itself."""
        below = self.folder.relative_to(self.root).as_posix()
        return "" if below == "." else f"{below}/"

    @property
    def requirements(self) -> bool:
        """Whether the folder has a file requirements.txt."""
        return (self.folder / "requirements.txt").is_file()

    @property
    def manifests(self) -> list[str]:
        """The files that name what the folder needs."""
        return [name for name in ("pyproject.toml", "requirements.txt", "setup.py") if (self.folder / name).is_file()]


def of_folder(folder: Path, suite: Path | None = None) -> Project:
    """The project in a folder; ``suite``: its suite, relative to the folder. None means the only one that is there.

    Raises:
        ValueError: there is no suite, or more than one to choose from.
    """
    folder = folder.resolve()
    return Project(folder, _repository(folder) or folder, kind(folder), _suite(folder, suite))


def kind(folder: Path) -> Kind:
    """What pip can do with a folder.

    A pyproject.toml that only configures tools is no package. One that names a project and no builder is none either,
    because pip then lets setuptools guess the modules, which fails where several files lie side by side.
    """
    file = folder / "pyproject.toml"
    content = _toml(file) if file.is_file() else {}
    tools = content.get("tool", {})
    if (folder / "setup.py").is_file() or "build-system" in content or "setuptools" in tools:
        return "package" if tools.get("uv", {}).get("package", True) else "dependencies"
    return "dependencies" if "project" in content else "files"


def suites(folder: Path) -> list[Path]:
    """The Python files below a folder that bind SUITE, relative to the folder; nothing is imported."""
    return sorted(file.relative_to(folder) for file in _sources(folder) if _binds_suite(file))


def branch(folder: Path) -> str:
    """The default branch of the folder's repository, or else the branch that is checked out; main outside git."""
    remote = _git(folder, "symbolic-ref", "--short", "refs/remotes/origin/HEAD")
    return remote.partition("/")[2] or _git(folder, "symbolic-ref", "--short", "HEAD") or "main"


def _suite(folder: Path, suite: Path | None) -> Path:
    if suite is not None:
        path = (folder / suite).resolve()
        file = path if path.is_file() else path.with_name(f"{path.name}.py")
        if not file.is_file() or not file.is_relative_to(folder):
            raise ValueError(f"--suite {suite}: there is no such file in {str(folder)!r}")
        return file.relative_to(folder)
    there = suites(folder)
    if not there:
        begin = "`curvbench init` writes my_suite.py to begin from"
        raise ValueError(f"no Python file in {str(folder)!r} binds SUITE, so that there is nothing to measure: {begin}")
    if len(there) > 1:
        names = ", ".join(map(str, there[:SHOWN])) + ", ..." * (len(there) > SHOWN)
        raise ValueError(f"{len(there)} files bind SUITE: {names}; choose one with --suite FILE")
    return there[0]


def _sources(folder: Path) -> Iterator[Path]:
    """The Python files below a folder, without those of environments, hidden folders and builds."""
    for place, folders, files in os.walk(folder):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and name not in NOT_SOURCES and not Path(place, name, "pyvenv.cfg").exists()
        ]
        yield from (Path(place, name) for name in files if name.endswith(".py"))


def _binds_suite(file: Path) -> bool:
    try:
        content = file.read_bytes()
        return b"SUITE" in content and any(map(_is_suite, ast.parse(content).body))
    except (OSError, SyntaxError, ValueError):  # ValueError: a null byte
        return False


def _is_suite(node: ast.stmt) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return any(isinstance(target, ast.Name) and target.id == "SUITE" for target in targets)


def _repository(folder: Path) -> Path | None:
    return next((place for place in (folder, *folder.parents) if (place / ".git").exists()), None)


def _toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{str(file)!r} is damaged: {error}") from error


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
