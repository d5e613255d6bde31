"""Suites by name: files here, the suites that are shipped, and those of other installed packages."""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
import importlib.util
import shlex
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

from curvbench import shipped
from curvbench.registry import plugins
from curvbench.registry.files import load_file, on_one_line
from curvbench.spec import Suite
from curvbench.words import near_misses

GROUP = "curvbench.suites"
_loaded: set[Path] = set()


def loaded_suites() -> set[Path]:
    """The files that ``load_suite`` has loaded."""
    return set(_loaded)


def load_suite(path: str | Path) -> tuple[str, Suite]:
    """Name and suite of what ``suite_file`` finds; the suite of another package is named as its entry point.

    Raises:
        ValueError: there is no such suite, or its file cannot be imported or binds no Suite to SUITE.
    """
    file = suite_file(path)
    name = next((name for name, (of_package, _) in _installed().items() if of_package == file), "")
    if file.suffix != ".py":
        raise ValueError(f"expected a suite, which is a Python file, got {str(file)!r}")
    if not file.stem.strip(". ") or not file.stem.isprintable():
        raise ValueError(f"the name of a suite names the folder of its results, which {file.stem!r} cannot: rename it")
    module = _import(_installed()[name][1], file) if name else load_file(file)
    suite = getattr(module, "SUITE", None)
    if not isinstance(suite, Suite):
        fault = "is not there" if suite is None else f"is of type {type(suite).__name__}"
        expected = f"{str(file)!r} must bind a curvbench.spec.Suite to SUITE"
        raise ValueError(f"{expected}, which {fault}{_instead(file)}")
    _loaded.add(file.resolve())
    return name or file.stem, suite


def suite_file(path: str | Path) -> Path:
    """The file of a suite, with or without ``.py``: ``path``, ``suites/path``, a shipped one, or another package's.

    Raises:
        ValueError: there is none; the text has the near misses here and among the shipped suites.
    """
    path = Path(path)
    file = find_suite(path)
    if file is None:
        raise ValueError(f"no suite {str(path)!r}{_hint(path)}")
    return file


def find_suite(path: str | Path) -> Path | None:
    """The file that ``suite_file`` finds. None means that there is no such suite."""
    files = (_file(place) for place in _places(Path(path)))
    return next((file for file in files if file), None) or _installed().get(str(path), (None, ""))[0]


def suite_files(path: str | Path) -> list[Path]:
    """The suites of a folder, by name, or ``path`` itself if it is a suite; raises ValueError if there is none."""
    for place in _places(Path(path)):
        if _file(place):
            break
        if files := sorted(file for file in place.glob("*.py") if not file.name.startswith("_")):
            return [spelled(file) for file in files]
    suite_file(path)
    return [Path(path)]


def spelled(file: Path) -> Path:
    """The path or name that means this suite from the working directory; the absolute path if none does."""
    file = file.resolve()
    paths = [file.relative_to(shipped.ROOT)] if file.is_relative_to(shipped.SUITES) else []
    paths += [Path(name) for name, (of_package, _) in _installed().items() if of_package == file]
    paths += [file.relative_to(Path.cwd())] if file.is_relative_to(Path.cwd()) else []
    found = ((path, find_suite(path)) for path in paths)
    return next((path for path, other in found if other and other.resolve() == file), file)


def packaged_suites() -> dict[str, Path]:
    """The files of the suites that are shipped, by name, and of those that other packages bring."""
    files = [file for file in shipped.SUITES.rglob("*.py") if not file.name.startswith("_") and _binds_suite(file)]
    named = {file.relative_to(shipped.SUITES).with_suffix("").as_posix(): file for file in files}
    ordered = dict(sorted(named.items(), key=lambda item: ("/" in item[0], item[0])))
    return ordered | {name: file for name, (file, _) in _installed().items() if name not in named}


def packaged_suite(name: str) -> Path:
    """The file of a suite that is shipped or that another package brings, whatever lies in the working directory.

    Raises:
        ValueError: there is none; the text has the near misses.
    """
    known = packaged_suites()
    key = Path(name).with_suffix("").as_posix().removeprefix("suites/")
    if key not in known:
        raise ValueError(f"no shipped suite {name!r}: {near_misses(key, known)}")
    return known[key]


def title(file: Path) -> str:
    """The first line of the docstring of a file, which is not run; empty if there is none."""
    return (ast.get_docstring(_parsed(file)) or "").partition("\n")[0]


def _places(path: Path) -> list[Path]:
    """The places without ``.py`` at which a suite or a folder of suites may lie, in order."""
    if path.is_absolute() or ".." in path.parts or not path.name:
        return [path]
    return [path, shipped.ROOT / path] if path.parts[0] == "suites" else [path, "suites" / path, shipped.SUITES / path]


def _file(place: Path) -> Path | None:
    candidates = (place, place.with_name(f"{place.name}.py")) if place.name else ()
    return next((file for file in candidates if file.suffix == ".py" and file.is_file()), None)


@functools.cache
def _installed() -> dict[str, tuple[Path, str]]:
    """File and module of every suite that other packages bring."""
    return plugins.load(GROUP, _module, {file.stem for file in shipped.SUITES.glob("*.py")})


def _module(entry: EntryPoint) -> tuple[Path, str]:
    """File and module of an entry point; the module is found without running it."""
    spec = importlib.util.find_spec(entry.module)
    if spec is None or not spec.has_location or (entry.attr or "SUITE") != "SUITE":
        raise ValueError("expected the name of a module that binds SUITE")
    return Path(str(spec.origin)).resolve(), entry.module


def _import(module: str, file: Path) -> ModuleType:
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"cannot import {str(file)!r}: {on_one_line(error)}") from error


def _instead(file: Path) -> str:
    """The command for the shipped suite of the name of a file that is none."""
    other = next((other for name, other in packaged_suites().items() if Path(name).name == file.stem), file)
    is_other = other.resolve() != file.resolve()
    return f"; the shipped suite runs by: curvbench run {shlex.quote(str(spelled(other)))}" if is_other else ""


def _hint(path: Path) -> str:
    """The near misses of a name here, and those among the shipped suites, as a user types them."""
    folders = [folder for folder in (Path("suites"), path.parent, path) if folder.is_dir()]
    files = [file for folder in folders for file in sorted(folder.glob("*.py")) if not file.name.startswith("_")]
    here = {file.stem: str(file.with_suffix("")) for file in files}
    packaged = {Path(name).name: name for name in packaged_suites()}
    near = {"here": _near(path.stem, here), "shipped": _near(path.stem, packaged)}
    if words := [f"{', '.join(names)} ({kind})" for kind, names in near.items() if names]:
        return f"; did you mean {' or '.join(words)}?"
    there = f"; here are {', '.join(sorted(here.values()))}" if here else ""
    return f"{there}; `curvbench list --suites` shows the shipped ones"


def _near(name: str, names: Mapping[str, str]) -> list[str]:
    return [names[key] for key in difflib.get_close_matches(name, sorted(names), n=3)]


def _binds_suite(file: Path) -> bool:
    """Whether a file assigns to SUITE, found without running it."""
    return any("SUITE" in map(ast.unparse, _targets(node)) for node in _parsed(file).body)


def _targets(node: ast.stmt) -> list[ast.expr]:
    if isinstance(node, ast.Assign):
        return node.targets
    return [node.target] if isinstance(node, ast.AnnAssign) else []


def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_bytes())
