"""Files of users, which are loaded by path."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterable
from contextlib import chdir
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType

from curvbench.registry import patience
from curvbench.words import one_line

BY_PATH = "curvbench_file_"  # the beginning of the module names of files that are loaded by path
OPTIMIZER = "torch_optim:"  # the beginning of the names of probes that are optimizers of torch
_files: dict[str, Path] = {}  # by module name


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


def _module_name(path: Path) -> str:
    stem = re.sub(r"\W", "_", path.stem)
    return f"{BY_PATH}{stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"


def on_one_line(error: BaseException) -> str:
    """Type and text of an error on one line."""
    return f"{type(error).__name__}: {one_line(error)}"
