"""The files and installed packages beside curvbench that a cell's process has loaded, because they decide its numbers.

A process is watched from its beginning, so that late imports, files loaded by path and files read as text are seen too.
A file counts by its code, a package by its version. Changes are detected without importing anything.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import sys
import sysconfig
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

from curvbench import shipped
from curvbench.identity.syntax import code_hash
from curvbench.registry import BY_PATH

PACKAGE = Path(__file__).resolve().parents[1]
UNKNOWN = "changed while it ran"  # instead of a hash, because nobody knows which content was loaded; equal to no hash
_SITES = ("site-packages", "dist-packages")
_ALWAYS = (
    "__main__",
    "__mp_main__",
    "_distutils_hack",
    "__editable__",
)  # the program and startup modules
Record = dict[str, Any]  # {"files": [{"name", "file", "bytes", "code"}, ...], "packages": {name: version}}, as JSON
NOTHING: Record = {"files": [], "packages": {}}


class _Watch(NamedTuple):
    """What a watched process remembers.

    ``root``: the folder to which names of files are relative. ``seen``: files by the time in nanoseconds of their last
    execution or first read. ``elsewhere``: the records of other processes.
    """

    root: Path
    seen: dict[str, int]
    elsewhere: list[Record]


_watch: _Watch | None = None


def watch(root: Path) -> None:
    """Remember from now on every Python file that this process executes or reads; ``root`` is the suite's folder."""
    global _watch
    if _watch is None:
        sys.addaudithook(_hear)
    _watch = _Watch(root.resolve(), _watch.seen if _watch else {}, [])


def root() -> Path | None:
    """The folder that ``watch`` was given."""
    return _watch.root if _watch else None


def count_in(record: Record) -> None:
    """Add the record of another process that has loaded libraries for the same numbers."""
    if _watch is not None:
        _watch.elsewhere.append(record)


def loaded(earlier: Iterable[Record] = (), without: Iterable[Path] = ()) -> Record:
    """The record of the libraries that this process has loaded so far; ``NOTHING`` if it is not watched.

    The record leaves out curvbench, Python's library and the files ``without``. ``earlier`` records save parsing:
    hashes of the same file contents are taken from them.
    """
    if _watch is None:
        return NOTHING
    names = _names()
    codes = {entry["bytes"]: entry["code"] for record in earlier for entry in record["files"]}
    owners, others = _divided({*names, *_watch.seen})
    users = [file for file in others if os.path.isfile(file) and not any(map(_is_packaged, names.get(file, ())))]
    left_out = {str(path) for path in without}
    entries = [_entry(Path(file), names.get(file, ()), _watch, codes) for file in users if file not in left_out]
    packages = dict(map(_identified, owners))
    packages.pop("curvbench", None)
    return merged([{"files": entries, "packages": packages}, *_watch.elsewhere])


def look_ahead() -> None:
    """Look up the versions of the loaded packages now, so that child processes inherit the answers."""
    for owner in _divided(_names())[0]:
        _identified(owner)


def merged(records: Iterable[Record]) -> Record:
    """Several records as one; a file or package that differs between them is ``UNKNOWN``."""
    files: dict[tuple[str, str], dict[str, str]] = {}
    packages: dict[str, str] = {}
    for record in records:
        for entry in record["files"]:
            other = files.setdefault((entry["name"], entry["file"]), entry)
            if other["code"] != entry["code"]:
                files[entry["name"], entry["file"]] = {**entry, "bytes": "", "code": UNKNOWN}
        for name, version in record["packages"].items():
            packages[name] = version if packages.get(name, version) == version else UNKNOWN
    return {"files": [files[key] for key in sorted(files)], "packages": dict(sorted(packages.items()))}


def changes(record: Record, root: Path | None = None) -> list[str]:
    """The changes since a record was made, each as a line.

    ``root``: the suite's folder. None means the folder that ``watch`` was given.
    """
    base = root or (_watch.root if _watch else Path())
    importlib.invalidate_caches()
    lines = [_file_change(entry, base) for entry in record["files"]]
    lines += [_package_change(name, version) for name, version in record["packages"].items()]
    return [line for line in lines if line]


def file_hash(path: Path) -> str:
    """Hash over the code of a Python file; over the bytes of another file, or of one that cannot be parsed."""
    source = path.read_bytes()
    try:
        return code_hash(source) if path.suffix == ".py" else _digest(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return _digest(source)


def find(name: str) -> Path | None:
    """The file that ``import name`` would load, found without importing anything. None means that none is found."""
    top, *rest = name.split(".")
    spec = _spec(top)
    file = Path(spec.origin) if spec and spec.has_location and spec.origin else None
    places = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    for part in rest:
        file, places = _below(places, part)
    return file


def is_users(file: Path) -> bool:
    """Whether a file belongs to the user: not to Python, curvbench or an installed package."""
    return not _is_pythons(str(file)) and _owner(str(file)) is None


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    """The audit hook, which Python calls whenever it executes code or opens a file."""
    if event == "exec" and _watch is not None:
        code = arguments[0]
        if isinstance(code, CodeType) and not code.co_filename.startswith("<"):
            _watch.seen[os.path.abspath(code.co_filename)] = time.time_ns()
    elif event == "open" and _watch is not None:
        path = arguments[0]
        if isinstance(path, str) and path.endswith(".py"):
            _watch.seen.setdefault(os.path.abspath(path), time.time_ns())


def _names() -> dict[str, list[str]]:
    """The files of the loaded modules, each with the names of its modules."""
    names_by_file: dict[str, list[str]] = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and not name.startswith(_ALWAYS):
            names_by_file.setdefault(file if os.path.isabs(file) else os.path.abspath(file), []).append(name)
    return names_by_file


def _divided(files: Iterable[str]) -> tuple[set[Distribution], list[str]]:
    """The packages of some files, and the files that belong to no package, to Python or to curvbench."""
    others = [file for file in sorted(files) if not _is_pythons(file)]
    owners = {file: _owner(file) for file in others}
    return {owner for owner in owners.values() if owner}, [file for file in others if owners[file] is None]


@functools.cache
def _is_pythons(file: str) -> bool:
    """Whether a file is Python's own or curvbench's."""
    if _is_shipped(file):
        return False
    if file.startswith(f"{PACKAGE}{os.sep}"):
        return True
    return file.startswith(_places_of_python()) and not any(f"{os.sep}{site}{os.sep}" in file for site in _SITES)


def _is_shipped(file: str) -> bool:
    """Whether a file is a shipped suite or lies beside one: it counts as a file of the user's, wherever it lies."""
    return file.startswith(f"{shipped.SUITES}{os.sep}")


@functools.cache
def _places_of_python() -> tuple[str, ...]:
    paths = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), os.path.dirname(os.__file__)}
    return tuple(f"{place}{os.sep}" for path in paths for place in {path, os.path.realpath(path)})


def _is_packaged(name: str) -> bool:
    """Whether a module's top package is installed: its files elsewhere are written by the package as it runs."""
    file = getattr(sys.modules.get(name.partition(".")[0]), "__file__", None)
    return isinstance(file, str) and _owner(os.path.abspath(file)) is not None


@functools.cache
def _owner(file: str) -> Distribution | None:
    """The distribution that has installed a file. None means that no distribution has."""
    if _is_shipped(file):
        return None
    for place in _places(tuple(sys.path)):
        if file.startswith(place):
            top = file[len(place) :].partition(os.sep)[0].partition(".")[0]
            return _installed(place, os.stat(place).st_mtime_ns).get(top)
    return None


@functools.lru_cache(1)
def _places(path: Sequence[str]) -> list[str]:
    """The folders in which installed packages may lie, the innermost first."""
    folders = {f"{os.path.abspath(place)}{os.sep}" for place in path if os.path.isdir(place)}
    return sorted(folders, key=len, reverse=True)


@functools.cache
def _installed(place: str, time: int) -> Mapping[str, Distribution]:
    """The distributions that pip has installed into a folder, by the names that can be imported.

    The folder of a project may hold metadata of the package under development, which is not installed there.
    """
    is_site = Path(place).name in _SITES
    by_name: dict[str, Distribution] = {}
    for package in distributions(path=[place]):
        record = package.read_text("RECORD")
        if record or is_site:
            tops = (record or package.read_text("top_level.txt") or package.name).splitlines()
            by_name |= {line.partition("/")[0].partition(",")[0].partition(".")[0]: package for line in tops}
    return by_name


@functools.cache
def _identified(package: Distribution) -> tuple[str, str]:
    """Name and version of a package when this process first asked."""
    return package.name, _version(package)


def _version(package: Distribution) -> str:
    """The version of a package, with a hash of its files if it came from a folder or commit of the same version."""
    if not package.read_text("direct_url.json"):
        return package.version
    return f"{package.version}+{_digest((package.read_text('RECORD') or '').encode())}"


def _entry(file: Path, names: Iterable[str], watch: _Watch, codes: Mapping[str, str]) -> dict[str, str]:
    state = _State.of(file)
    importable = tuple(name for name in names if not name.startswith(BY_PATH))
    name, place = _found(file, importable, watch.root, tuple(sys.path), state)
    content = _content(file, state)
    has_changed = max(state.modified, state.changed) > watch.seen.get(str(file), sys.maxsize)
    code = UNKNOWN if has_changed else codes.get(content) or _code(file, state)
    return {"name": name, "file": place, "bytes": "" if has_changed else content, "code": code}


class _State(NamedTuple):
    """What tells one content of a file from another without reading it; times in nanoseconds."""

    modified: int
    changed: int
    size: int

    @classmethod
    def of(cls, file: Path) -> _State:
        found = file.stat()
        return cls(found.st_mtime_ns, found.st_ctime_ns, found.st_size)


# Each cell of a process asks for the same files again, which takes longer than a small cell if it is not remembered.
@functools.cache
def _found(file: Path, names: Sequence[str], root: Path, path: Sequence[str], state: _State) -> tuple[str, str]:
    """The name with which a file is imported from ``path``, or nothing, and its place seen from ``root``."""
    real = file.resolve()
    name = next((name for name in names if (origin := find(name)) and origin.resolve() == real), "")
    return name, _relative(file, root)


@functools.cache
def _content(file: Path, state: _State) -> str:
    return _digest(file.read_bytes())


@functools.cache
def _code(file: Path, state: _State) -> str:
    return file_hash(file)


def _relative(file: Path, root: Path) -> str:
    """The path of a file of the suite's project, relative to the suite; the absolute path of any other file."""
    for path in (file, file.resolve()):
        if path.is_relative_to(_project(root)):
            return Path(os.path.relpath(path, root)).as_posix()
    return file.as_posix()


@functools.cache
def _project(root: Path) -> Path:
    """The checkout that holds the suite's folder, or this folder itself."""
    return next((place for place in (root, *root.parents) if (place / ".git").exists()), root)


def _file_change(entry: Mapping[str, str], root: Path) -> str:
    """A line that says how a file has changed since its entry was made; empty if it has not."""
    origin = find(entry["name"]) if entry["name"] else None
    file = origin if origin and origin.is_file() else root / entry["file"]
    line = f"{entry['name'] or 'file'} {{}}: {entry['file']}"
    if entry["code"] == UNKNOWN:
        return line.format(UNKNOWN)
    if not file.is_file():
        return line.format("is gone")
    is_same = _digest(file.read_bytes()) == entry["bytes"] or file_hash(file) == entry["code"]
    return "" if is_same else line.format("changed")


def _package_change(name: str, version: str) -> str:
    try:
        now = _version(distribution(name))
    except PackageNotFoundError:
        return f"{name} {version} is not installed any more"
    return "" if now == version else f"{name} changed ({version}, now {now})"


def _spec(top: str) -> ModuleSpec | None:
    finders = [finder.find_spec for finder in sys.meta_path if hasattr(finder, "find_spec")]
    return next((spec for find_spec in finders if (spec := find_spec(top, None)) is not None), None)


def _below(places: Iterable[Path], part: str) -> tuple[Path | None, list[Path]]:
    """The file of a module in the first of its package's folders that has one, and the module's own folders."""
    folders = []
    for place in places:
        for suffix in (".py", *EXTENSION_SUFFIXES):
            if (package := place / part / f"__init__{suffix}").is_file():
                return package, [place / part]
            if (module := place / f"{part}{suffix}").is_file():
                return module, []
        folders += [place / part] if (place / part).is_dir() else []
    return None, folders


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
