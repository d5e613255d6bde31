"""Files of users: probes, problems and suites that are known by their path."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterable, Mapping
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from curvbench.spec import Suite

BY_PATH = "curvbench_file_"  # begins the names of modules that are known by their file alone
_files: dict[str, Path] = {}  # by the names of their modules
_suites: set[Path] = set()


def source(component: type) -> Path:
    """The file in which a class is defined."""
    return Path(inspect.getfile(component)).resolve()


class _Files(MetaPathFinder):
    """Finds the modules of files that ``expect`` was told of."""

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        return importlib.util.spec_from_file_location(name, _files[name]) if name in _files else None


sys.meta_path.append(_Files())


def expect(files: Iterable[Path]) -> None:
    """Let objects that files define be unpickled: each file is loaded when the first of its objects comes."""
    _files.update({_module_name(path): path for path in files})


def load_file(path: str | Path) -> ModuleType:
    """A Python file as a module, under a name that its absolute path decides, so that its objects can be pickled.

    It can import what lies beside it.

    Raises:
        ValueError: the file does not exist or raises on import.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise ValueError(f"no file {str(path)!r}")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    expect([path])
    try:
        return importlib.import_module(_module_name(path))
    except (Exception, SystemExit) as error:
        del _files[_module_name(path)]
        raise ValueError(f"cannot import {str(path)!r}: {_one_line(error)}") from error


def loaded_files() -> list[Path]:
    """The files that ``load_file`` has loaded, in order: what another process has to ``expect`` before unpickling."""
    return list(_files.values())


def loaded_suites() -> set[Path]:
    """The files of the suites among them."""
    return set(_suites)


def load_suite(path: str | Path) -> tuple[str, Suite]:
    """Name and suite of a suite file, given with or without ``.py``.

    Raises:
        ValueError: no such file, it cannot be imported, or it binds no Suite to SUITE.
    """
    file = suite_file(path)
    suite = getattr(load_file(file), "SUITE", None)
    if not isinstance(suite, Suite):
        found = "is not there" if suite is None else f"is of type {type(suite).__name__}"
        raise ValueError(f"{str(file)!r} must bind a curvbench.spec.Suite to SUITE, which {found}")
    _suites.add(file.resolve())
    return file.stem, suite


def suite_file(path: str | Path) -> Path:
    """The file of a suite given with or without ``.py``; raises ValueError, with near misses, where there is none."""
    path = Path(path)
    candidates = (path, path.with_name(f"{path.name}.py")) if path.name else ()
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None:
        raise ValueError(f"no suite {str(path)!r}{_hint(path.stem, _suites_near(path))}")
    return file


def suite_files(path: str | Path) -> list[Path]:
    """The suites of a folder, by name, or ``path`` itself where ``suite_file`` finds one; ValueError for none."""
    path = Path(path)
    is_folder = path.is_dir() and not path.with_name(f"{path.name}.py").is_file()
    found = sorted(file for file in path.glob("*.py") if not file.name.startswith("_")) if is_folder else []
    if not found:
        suite_file(path)
    return found or [path]


def _hint(name: str, known: Mapping[str, str]) -> str:
    """Near misses among the suites, given as they have to be typed."""
    near = [known[key] for key in difflib.get_close_matches(name, sorted(known), n=3)]
    there = f"; there are {', '.join(sorted(known.values()))}" if known else ""
    return f"; did you mean {', '.join(near)}?" if near else there


def _suites_near(path: Path) -> dict[str, str]:
    folders = [folder for folder in (Path("suites"), path.parent, path) if folder.is_dir()]
    files = [file for folder in folders for file in sorted(folder.glob("*.py")) if not file.name.startswith("_")]
    return {file.stem: str(file.with_suffix("")) for file in files}


def _module_name(path: Path) -> str:
    stem = re.sub(r"\W", "_", path.stem)
    return f"{BY_PATH}{stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
