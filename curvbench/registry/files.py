"""Files of users: probes, problems and suites that are loaded by path."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterable, Mapping
from contextlib import chdir
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType

from curvbench.registry import patience
from curvbench.spec import Suite
from curvbench.words import one_line

BY_PATH = "curvbench_file_"  # the beginning of the module names of files that are loaded by path
OPTIMIZER = "torch_optim:"  # the beginning of the names of probes that are optimizers of torch
_files: dict[str, Path] = {}  # by module name
_suites: set[Path] = set()


def source(component: type) -> Path:
    """The file in which a class is defined."""
    return Path(inspect.getfile(component)).resolve()


class _Beside(SourceFileLoader):
    """Runs a file in its own folder, so that relative paths in it mean the same from everywhere."""

    def exec_module(self, module: ModuleType) -> None:
        with chdir(Path(self.path).parent):
            super().exec_module(module)


class _Files(MetaPathFinder):
    """Finds the modules of files that ``expect`` was given."""

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        if name not in _files:
            return None
        file = _files[name]
        return importlib.util.spec_from_file_location(name, file, loader=_Beside(name, str(file)))


sys.meta_path.append(_Files())


def expect(files: Iterable[Path]) -> None:
    """Let objects that these files define be unpickled; a file is loaded when its first object is unpickled."""
    _files.update({_module_name(path): path for path in files})


def load_file(path: str | Path) -> ModuleType:
    """A Python file as a module, named after the absolute path, so that objects of the file can be pickled.

    The file can import the files beside it, and relative paths in it are relative to its folder while it is loaded.

    Raises:
        ValueError: the file does not exist, is no Python file, raises on import, or takes too long.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise ValueError(f"no file {str(path)!r}")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    if path.suffix != ".py":
        raise ValueError(f"expected a Python file, got {str(path)!r}")
    expect([path])
    try:
        with patience.limited():
            return importlib.import_module(_module_name(path))
    except BaseException as error:
        del _files[_module_name(path)]
        if patience.is_of_user(error):
            raise
        raise ValueError(f"cannot import {str(path)!r}: {on_one_line(error)}") from error


def loaded_files() -> list[Path]:
    """The files that ``load_file`` has loaded, in order; another process has to ``expect`` them before unpickling."""
    return list(_files.values())


def loaded_by_path(module: str) -> Path | None:
    """The file that ``load_file`` has loaded as a module of this name; None for every other module."""
    return _files.get(module)


def loaded_suites() -> set[Path]:
    """The files that ``load_suite`` has loaded."""
    return set(_suites)


def load_suite(path: str | Path) -> tuple[str, Suite]:
    """Name and suite of a suite file, given with or without ``.py``.

    Raises:
        ValueError: the file does not exist, cannot be imported, or binds no Suite to SUITE.
    """
    file = suite_file(path)
    if file.suffix != ".py":
        raise ValueError(f"expected a suite, which is a Python file, got {str(file)!r}")
    if not file.stem.strip(". ") or not file.stem.isprintable():
        raise ValueError(f"the name of a suite names the folder of its results, which {file.stem!r} cannot: rename it")
    suite = getattr(load_file(file), "SUITE", None)
    if not isinstance(suite, Suite):
        fault = "is not there" if suite is None else f"is of type {type(suite).__name__}"
        raise ValueError(f"{str(file)!r} must bind a curvbench.spec.Suite to SUITE, which {fault}")
    _suites.add(file.resolve())
    return file.stem, suite


def suite_file(path: str | Path) -> Path:
    """The file of a suite given with or without ``.py``; raises ValueError with near misses if there is none."""
    path = Path(path)
    candidates = (path, path.with_name(f"{path.name}.py")) if path.name else ()
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None:
        raise ValueError(f"no suite {str(path)!r}{_hint(path.stem, _suites_near(path))}")
    return file


def suite_files(path: str | Path) -> list[Path]:
    """The suites of a folder, by name, or ``path`` itself if it is a suite; raises ValueError if there is none."""
    path = Path(path)
    is_folder = path.is_dir() and not path.with_name(f"{path.name}.py").is_file()
    files = sorted(file for file in path.glob("*.py") if not file.name.startswith("_")) if is_folder else []
    if not files:
        suite_file(path)
    return files or [path]


def _hint(name: str, suites: Mapping[str, str]) -> str:
    """The near misses of a name among the suites, or all suites, as a user types them."""
    near = [suites[key] for key in difflib.get_close_matches(name, sorted(suites), n=3)]
    if near:
        return f"; did you mean {', '.join(near)}?"
    return f"; there are {', '.join(sorted(suites.values()))}" if suites else ""


def _suites_near(path: Path) -> dict[str, str]:
    folders = [folder for folder in (Path("suites"), path.parent, path) if folder.is_dir()]
    files = [file for folder in folders for file in sorted(folder.glob("*.py")) if not file.name.startswith("_")]
    return {file.stem: str(file.with_suffix("")) for file in files}


def _module_name(path: Path) -> str:
    stem = re.sub(r"\W", "_", path.stem)
    return f"{BY_PATH}{stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"


def on_one_line(error: BaseException) -> str:
    """Type and text of an error on one line."""
    return f"{type(error).__name__}: {one_line(error)}"
