"""What decides a cell's numbers beside curvbench: the files and installed packages that its process has loaded.

A process is watched from its beginning, so that what a cell loads late, by its path, or from a text that it reads is
seen too. A file counts by what its code does, a package by its version. Whether all is as it was is found out without
importing anything.
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

from curvbench.identity.syntax import code_hash
from curvbench.registry import BY_PATH

PACKAGE = Path(__file__).resolve().parents[1]
UNKNOWN = "changed while it ran"  # instead of a hash: what was loaded is not known, and nothing is equal to it
_SITES = ("site-packages", "dist-packages")
_ALWAYS = ("__main__", "__mp_main__", "_distutils_hack", "__editable__")  # the program, and what begins with Python
Record = dict[str, Any]  # {"files": [{"name", "file", "bytes", "code"}, ...], "packages": {name: version}}, as JSON
NOTHING: Record = {"files": [], "packages": {}}


class _Watch(NamedTuple):
    """``root``: names of files are relative to it. ``seen``: files, and when they were last executed or first read."""

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
    """Let what another process has loaded for the same numbers count as loaded here."""
    if _watch is not None:
        _watch.elsewhere.append(record)


def loaded(known: Iterable[Record] = (), but: Iterable[Path] = ()) -> Record:
    """What this process has loaded so far, nothing where it is not watched.

    Of curvbench itself, of Python's library and of the files ``but`` nothing is said. What stands in ``known`` records
    need not be parsed again.
    """
    if _watch is None:
        return NOTHING
    names = _names()
    codes = {entry["bytes"]: entry["code"] for record in known for entry in record["files"]}
    owners, own = _divided({*names, *_watch.seen})
    users = [file for file in own if os.path.isfile(file) and not any(map(_owned, names.get(file, ())))]
    apart = {str(path) for path in but}
    entries = [_entry(Path(file), names.get(file, ()), _watch, codes) for file in users if file not in apart]
    packages = dict(map(_identified, owners))
    packages.pop("curvbench", None)
    return merged([{"files": entries, "packages": packages}, *_watch.elsewhere])


def look_ahead() -> None:
    """Find out now what ``loaded`` would find out of the packages that this process has; its children know it then."""
    for owner in _divided(_names())[0]:
        _identified(owner)


def merged(records: Iterable[Record]) -> Record:
    """All of several records; where they differ in a file it is ``UNKNOWN``."""
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
    """What of a record is not as it was, each as a line; ``root`` as ``watch`` has it, or that which it was given."""
    base = root or (_watch.root if _watch else Path())
    importlib.invalidate_caches()
    found = [_file_change(entry, base) for entry in record["files"]]
    found += [_package_change(name, version) for name, version in record["packages"].items()]
    return [change for change in found if change]


def file_hash(path: Path) -> str:
    """Hash over what a Python file does; over its bytes where it is something else, or cannot be parsed here."""
    source = path.read_bytes()
    try:
        return code_hash(source) if path.suffix == ".py" else _digest(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return _digest(source)


def find(name: str) -> Path | None:
    """The file that ``import name`` would load now, as far as it can be told without importing anything."""
    top, *rest = name.split(".")
    spec = _spec(top)
    file = Path(spec.origin) if spec and spec.has_location and spec.origin else None
    places = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    for part in rest:
        file, places = _below(places, part)
    return file


def is_users(file: Path) -> bool:
    """Whether a file is neither Python's nor curvbench's, and no installed package's."""
    return not _is_pythons(str(file)) and _owner(str(file)) is None


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    """The audit hook: everything that imports, executes or opens a file comes by here."""
    if event == "exec" and _watch is not None:
        code = arguments[0]
        if isinstance(code, CodeType) and not code.co_filename.startswith("<"):
            _watch.seen[os.path.abspath(code.co_filename)] = time.time_ns()
    elif event == "open" and _watch is not None:
        path = arguments[0]
        if isinstance(path, str) and path.endswith(".py"):
            _watch.seen.setdefault(os.path.abspath(path), time.time_ns())


def _names() -> dict[str, list[str]]:
    """The files of all modules that a cell may have asked for, and the names under which they are loaded."""
    found: dict[str, list[str]] = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and not name.startswith(_ALWAYS):
            found.setdefault(file if os.path.isabs(file) else os.path.abspath(file), []).append(name)
    return found


def _divided(files: Iterable[str]) -> tuple[set[Distribution], list[str]]:
    """The packages to which some files belong, and those that belong to none, nor to Python or curvbench."""
    others = [file for file in sorted(files) if not _is_pythons(file)]
    owners = {file: _owner(file) for file in others}
    return {owner for owner in owners.values() if owner}, [file for file in others if owners[file] is None]


def _is_pythons(file: str) -> bool:
    """Whether a file is Python's own or curvbench's."""
    if file.startswith(f"{PACKAGE}{os.sep}"):
        return True
    return file.startswith(_own_places()) and not any(f"{os.sep}{site}{os.sep}" in file for site in _SITES)


@functools.cache
def _own_places() -> tuple[str, ...]:
    paths = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), os.path.dirname(os.__file__)}
    return tuple(f"{place}{os.sep}" for path in paths for place in {path, os.path.realpath(path)})


def _owned(name: str) -> bool:
    """Whether a module is part of an installed package, which may make files as it runs."""
    file = getattr(sys.modules.get(name.partition(".")[0]), "__file__", None)
    return isinstance(file, str) and _owner(os.path.abspath(file)) is not None


@functools.cache
def _owner(file: str) -> Distribution | None:
    """The distribution that has installed a file."""
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
    """What pip has installed into a folder, by the names that can be imported.

    A project's own folder may hold metadata too, of a package that is under work there: that is not installed.
    """
    site = Path(place).name in _SITES
    found: dict[str, Distribution] = {}
    for one in distributions(path=[place]):
        listed = one.read_text("RECORD")
        if listed or site:
            tops = (listed or one.read_text("top_level.txt") or one.name).splitlines()
            found |= {line.partition("/")[0].partition(",")[0].partition(".")[0]: one for line in tops}
    return found


@functools.cache
def _identified(package: Distribution) -> tuple[str, str]:
    """Name and version as they were when this process first asked."""
    return package.name, _version(package)


def _version(package: Distribution) -> str:
    """The version; of what came from a folder or a commit with a hash of its files, for the version may stay."""
    if not package.read_text("direct_url.json"):
        return package.version
    return f"{package.version}+{_digest((package.read_text('RECORD') or '').encode())}"


def _entry(file: Path, names: Iterable[str], watch: _Watch, codes: Mapping[str, str]) -> dict[str, str]:
    real = file.resolve()
    named = [name for name in names if not name.startswith(BY_PATH)]
    name = next((name for name in named if (found := find(name)) and found.resolve() == real), "")
    content = _digest(file.read_bytes())
    at = file.stat()
    fresh = max(at.st_mtime_ns, at.st_ctime_ns) > watch.seen.get(str(file), sys.maxsize)
    code = UNKNOWN if fresh else codes.get(content) or file_hash(file)
    return {"name": name, "file": _relative(file, watch.root), "bytes": "" if fresh else content, "code": code}


def _relative(file: Path, root: Path) -> str:
    """A file of the suite's project as seen from the suite, wherever the project lies; another by its whole path."""
    for path in (file, file.resolve()):
        if path.is_relative_to(_project(root)):
            return Path(os.path.relpath(path, root)).as_posix()
    return file.as_posix()


@functools.cache
def _project(root: Path) -> Path:
    """The checkout that holds the suite, or its folder."""
    return next((place for place in (root, *root.parents) if (place / ".git").exists()), root)


def _file_change(entry: Mapping[str, str], root: Path) -> str:
    """Why an entry does not stand for what would be loaded now; empty where it does."""
    found = find(entry["name"]) if entry["name"] else None
    file = found if found and found.is_file() else root / entry["file"]
    said = f"{entry['name'] or 'file'} {{}}: {entry['file']}"
    if entry["code"] == UNKNOWN:
        return said.format(UNKNOWN)
    if not file.is_file():
        return said.format("is gone")
    same = _digest(file.read_bytes()) == entry["bytes"] or file_hash(file) == entry["code"]
    return "" if same else said.format("changed")


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
    """The file of a module in the first of some folders of its package that has it, and the folders of its own."""
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
