"""From names to components: the package's folders, entry points and the files of users."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import operator
import pkgutil
import re
import sys
import typing
import warnings
from collections.abc import Iterable, Mapping
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar

from curvbench import hyperparameters
from curvbench.hyperparameters import alias, check, near_misses, read, refuse_unknown, types_of
from curvbench.parts.errata import ERRATA
from curvbench.spec import Component, Probe, Problem, Suite, Training

C = TypeVar("C", bound=Component)

_FORM = re.compile(r"(?P<name>.*?)(\[(?P<arguments>[^\[\]]*)\])?", re.DOTALL)
_FILE = re.compile(r"(?P<path>.+\.py):(?P<name>\w+)", re.DOTALL)
BY_PATH = "curvbench_file_"  # begins the names of modules that are known by their file alone
_files: dict[str, Path] = {}  # by the names of their modules
_suites: set[Path] = set()


def probes() -> dict[str, type[Probe]]:
    """Every probe by name: one per file of ``curvbench/probes``, and those of the entry points ``curvbench.probes``."""
    return _discover("curvbench.probes", Probe)


def problems() -> dict[str, type[Problem]]:
    """Every problem by name: the files of ``curvbench/problems`` and the entry points ``curvbench.problems``."""
    return _discover("curvbench.problems", Problem)


def every_probe() -> list[Probe]:
    """One of each probe that is found, with its defaults, by name."""
    return [kind() for _, kind in sorted(probes().items())]


def probe(name: str, **hyperparameters: Any) -> Probe:
    """The probe called ``name``; raises ValueError for an unknown name or hyperparameter, or a wrong type."""
    return _build(_lookup("probe", name, probes()), name, hyperparameters)


def problem(name: str, **hyperparameters: Any) -> Problem:
    """The problem called ``name``; raises ValueError for an unknown name or hyperparameter, or a wrong type."""
    return _build(_lookup("problem", name, problems()), name, hyperparameters)


def parse_probe(text: str) -> Probe:
    """A probe from ``NAME[key=value,...]`` or ``FILE.py:CLASS[key=value,...]``; raises ValueError."""
    return _parse("probe", text, Probe)  # type: ignore[type-abstract]


def parse_problem(text: str) -> Problem:
    """A problem from ``NAME[key=value,...]`` or ``FILE.py:CLASS[key=value,...]``; raises ValueError."""
    return _parse("problem", text, Problem)  # type: ignore[type-abstract]


def parse_training(text: str, training: Training) -> Training:
    """A training with some fields replaced by ``key=value,...``; raises ValueError."""
    values = _arguments(Training, "training", text)
    types = types_of(Training)
    return dataclasses.replace(training, **{k: check(f"training: {k}", v, types[k]) for k, v in values.items()})


def selector(component: Component) -> str:
    """The text that ``parse_probe`` or ``parse_problem`` turns into ``component`` again."""
    kind = type(component)
    registered = probes() if isinstance(component, Probe) else problems()
    names = [name for name, known in registered.items() if known is kind]
    name = names[0] if names else f"{source(kind)}:{kind.__name__}"
    return f"{name}[{component.arguments}]" if component.arguments else name


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


def describe(name: str, component: type[Component]) -> dict[str, Any]:
    """A component as ``curvbench list --json`` shows it; of a probe its method as well.

    Always name, first line of the docstring, and the hyperparameters: their defaults (None: must be given), what they
    may be, what they mean.
    """
    defaults = {f.name: f.default for f in dataclasses.fields(component)}  # type: ignore[arg-type]
    description = (inspect.getdoc(component) or "").partition("\n")[0]
    known = {
        "name": name,
        "description": description,
        "hyperparameters": {key: None if value is dataclasses.MISSING else value for key, value in defaults.items()},
        "allowed": {key: hyperparameters.describe(annotation) for key, annotation in _narrowed(component).items()},
        "meanings": _meanings(component),
    }
    return known | _method(component, description) if issubclass(component, Probe) else known


def _narrowed(component: type[Component]) -> dict[str, Any]:
    """Annotations of the fields, that of ``fisher_type`` with what the probe takes."""
    kinds = getattr(component, "fisher_types", None)
    return types_of(component) | ({"fisher_type": operator.getitem(Literal, kinds)} if kinds else {})


def _method(probe: type[Probe], description: str) -> dict[str, Any]:
    about = probe.about
    return {
        "represents": about.represents or description,
        "fisher": _fisher(probe),
        "damping": about.damping,
        "cost": dict(about.cost),
        "source": about.source,
        "notes": list(about.notes),
        "errata": [erratum for entry in about.errata for erratum in _errata(entry)],
    }


def _fisher(probe: type[Probe]) -> dict[str, Any]:
    """The default and all types that a probe takes; none for one that uses no Fisher."""
    for key in ("fisher_type", "statistic"):
        default = getattr(probe, key, None)
        if default is None:
            continue
        annotation = types_of(probe).get(key)
        allowed = getattr(probe, "fisher_types", None) or typing.get_args(annotation) or (default,)
        return {"default": default, "types": list(allowed)}
    return {"default": None, "types": []}


def _errata(entry: str) -> list[dict[str, str]]:
    """The erratum of an id, all of a paper (``E-F``), or a probe's own text."""
    ids = [entry] if entry in ERRATA else [i for i in ERRATA if re.fullmatch(rf"{re.escape(entry)}\d+", i)]
    if not ids:
        return [{"id": "", "severity": "", "text": entry}]
    return [{"id": i, **ERRATA[i]._asdict()} for i in ids]


def _meanings(component: type[Component]) -> dict[str, str]:
    """What docstrings say of the fields: what follows a name and a colon, up to the next one or the paragraph's end."""
    names = [f.name for f in dataclasses.fields(component)]  # type: ignore[arg-type]
    found: dict[str, str] = {}
    for base in reversed(component.__mro__):
        for paragraph in inspect.cleandoc(base.__doc__ or "").split("\n\n"):
            pieces = re.split(rf"``({'|'.join(names)})``: ", " ".join(paragraph.split())) if names else []
            found |= {name: text.strip(" .;") for name, text in zip(pieces[1::2], pieces[2::2], strict=True)}
    return {name: found.get(name, "") for name in names}


def _hint(name: str, known: Mapping[str, str]) -> str:
    """Near misses among the suites, given as they have to be typed."""
    near = [known[key] for key in difflib.get_close_matches(name, sorted(known), n=3)]
    there = f"; there are {', '.join(sorted(known.values()))}" if known else ""
    return f"; did you mean {', '.join(near)}?" if near else there


def _suites_near(path: Path) -> dict[str, str]:
    folders = [folder for folder in (Path("suites"), path.parent, path) if folder.is_dir()]
    files = [file for folder in folders for file in sorted(folder.glob("*.py")) if not file.name.startswith("_")]
    return {file.stem: str(file.with_suffix("")) for file in files}


@functools.cache
def _discover(package: str, base: type[C]) -> dict[str, type[C]]:
    names = [info.name for info in pkgutil.iter_modules(importlib.import_module(package).__path__)]
    shipped = {name: _only(f"{package}.{name}", base) for name in names if not name.startswith("_")}
    return dict(sorted((shipped | _plugins(package, base)).items()))


def _only(module: str, base: type[C]) -> type[C]:
    found = _defined(importlib.import_module(module), base)
    if len(found) != 1:
        raise TypeError(f"{module} must define one {base.__name__}, found {len(found)}")
    return found[0]


def _defined(module: ModuleType, base: type[C]) -> list[type[C]]:
    classes = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, base)]
    return [c for c in classes if c.__module__ == module.__name__ and not inspect.isabstract(c)]


def _plugins(group: str, base: type[C]) -> dict[str, type[C]]:
    """The entry points of a group. A broken one of somebody else's package must not stop ours."""
    found = {}
    for entry in entry_points(group=group):
        try:
            component = entry.load()
        except Exception as error:
            warnings.warn(f"entry point {entry.name} = {entry.value} set aside: {_one_line(error)}", stacklevel=2)
            continue
        if isinstance(component, type) and issubclass(component, base):
            found[entry.name] = component
        else:
            warnings.warn(f"entry point {entry.name} = {entry.value} set aside: no {base.__name__}", stacklevel=2)
    return found


def _module_name(path: Path) -> str:
    stem = re.sub(r"\W", "_", path.stem)
    return f"{BY_PATH}{stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _lookup(kind: str, name: str, known: Mapping[str, type[C]]) -> type[C]:
    if name not in known:
        raise ValueError(f"unknown {kind} {name!r}: {near_misses(name, known)}")
    return known[name]


def _parse(kind: str, text: str, base: type[C]) -> C:
    form = _FORM.fullmatch(text)
    assert form is not None
    name, file = form["name"].strip(), _FILE.fullmatch(form["name"].strip())
    if file:
        component = _from_file(kind, file, base)
    elif re.search(r"[\[\],]|\.py$", name):
        expected = "NAME[key=value,...] or FILE.py:CLASS[key=value,...]"
        raise ValueError(f"cannot read the {kind} {text!r}: expected {expected}")
    else:
        component = _lookup(kind, name, probes() if base is Probe else problems())  # type: ignore[arg-type]
    values = _arguments(component, name, form["arguments"] or "")
    return _build(component, name, values)


def _from_file(kind: str, file: re.Match[str], base: type[C]) -> type[C]:
    known = {c.__name__: c for c in _defined(load_file(file["path"]), base)}
    if file["name"] not in known:
        raise ValueError(f"no {kind} {file['name']!r} in {file['path']!r}: {near_misses(file['name'], known)}")
    return known[file["name"]]


def _arguments(component: type[Component], name: str, text: str) -> dict[str, Any]:
    """``key=value,...`` with every value read as the field's annotation says."""
    types = types_of(component)
    values = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise ValueError(f"{name}[{text}]: expected key=value, got {part!r}")
        refuse_unknown(name, key, types)
        if key in values:
            raise ValueError(f"{name}[{text}]: {key} is given twice")
        values[key] = read(f"{name}: {key}", alias(key, value), types[key])
    return values


def _build(component: type[C], name: str, values: Mapping[str, Any]) -> C:
    types = types_of(component)
    for key in values:
        refuse_unknown(name, key, types)
    checked = {key: check(f"{name}: {key}", alias(key, value), types[key]) for key, value in values.items()}
    label = f"{name}[{','.join(f'{key}={value}' for key, value in checked.items())}]" if checked else name
    try:
        return component(**checked)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{label}: {str(error).removeprefix(f'{name}: ')}") from error
