"""From names to components: the package's folders, entry points and the files of users."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import inspect
import pkgutil
import re
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from curvbench.registry import plugins
from curvbench.registry.fields import alias, is_given_as_probe, read, refuse_unknown
from curvbench.registry.files import OPTIMIZER, load_file, source
from curvbench.spec import DIGITS, Component, Drift, Probe, Problem, Training
from curvbench.spec.components import as_text
from curvbench.spec.fields import types_of
from curvbench.spec.labels import escaped, split_arguments, split_label, unescaped
from curvbench.words import near_misses, one_line, refuse_type

C = TypeVar("C", bound=Component)
_FILE = re.compile(r"(?P<path>.+\.py):(?P<name>\w+)", re.DOTALL)


def probes() -> dict[str, type[Probe]]:
    """Every probe by name: one per file of ``curvbench/probes``, and those of the entry points ``curvbench.probes``."""
    return _discover("curvbench.probes", Probe)


def problems() -> dict[str, type[Problem]]:
    """Every problem by name: the files of ``curvbench/problems`` and the entry points ``curvbench.problems``."""
    return _discover("curvbench.problems", Problem)


def every_probe() -> list[Probe]:
    """Every probe with its defaults, in the order of names."""
    return [kind() for _, kind in sorted(probes().items())]


def probe(name: str, **hyperparameters: Any) -> Probe:
    """The probe called ``name``; raises ValueError for an unknown name or hyperparameter, or a wrong type.

    A hyperparameter that is a probe itself may be given by its label. ``torch_optim:MODULE.NAME`` is a probe of an
    optimizer of torch, as ``from_optimizer`` makes it.
    """
    refuse_type("name", name, str, "give the name of a probe, which `curvbench list` shows")
    if name.startswith(OPTIMIZER):
        return _adapter().of(name.removeprefix(OPTIMIZER), hyperparameters)
    return _build(_lookup("probe", name, probes()), name, hyperparameters)


def problem(name: str, **hyperparameters: Any) -> Problem:
    """The problem called ``name``; raises ValueError for an unknown name or hyperparameter, or a wrong type."""
    refuse_type("name", name, str, "give the name of a problem, which `curvbench list` shows")
    return _build(_lookup("problem", name, problems()), name, hyperparameters)


def parse_probe(text: str) -> Probe:
    """A probe from ``NAME[key=value,...]`` or ``FILE.py:CLASS[key=value,...]``; raises ValueError.

    A value may be a probe itself, as in ``cg[preconditioner=kfac[damping=0.1]]``. A backslash before a comma, a bracket
    or a backslash in a value makes it a letter. ``torch_optim:MODULE.NAME``, and the class of an optimizer or a
    function in a file, are optimizers of torch.
    """
    return _parse("probe", text, Probe)  # type: ignore[type-abstract]


def parse_problem(text: str) -> Problem:
    """A problem from ``NAME[key=value,...]`` or ``FILE.py:CLASS[key=value,...]``; raises ValueError."""
    return _parse("problem", text, Problem)  # type: ignore[type-abstract]


def parse_training(text: str, training: Training) -> Training:
    """A training with some fields replaced by ``key=value,...``; raises ValueError."""
    values = _arguments(Training, "training", text)
    return dataclasses.replace(training, **values)


def parse_drift(text: str, drift: Drift) -> Drift:
    """A drift with some fields replaced by ``key=value,...``; raises ValueError."""
    return dataclasses.replace(drift, **_arguments(Drift, "drift", text))


def selector(component: Component) -> str:
    """The text that ``parse_probe`` or ``parse_problem`` turns into ``component`` again."""
    if own := getattr(component, "selector", ""):
        return f"{own}[{component.arguments}]" if component.arguments else own
    kind = getattr(type(component), "class_without_digits", type(component))
    registered = probes() if isinstance(component, Probe) else problems()
    names = [name for name, component_type in registered.items() if component_type is kind]
    name = names[0] if names else f"{source(kind)}:{kind.__name__}"
    return _labelled(name, {key: _selected(value) for key, value in component.changed.items()})


def _selected(value: Any) -> str:
    """A hyperparameter in a selector; the path of an inner probe's file is escaped, because it is a part of a value."""
    if not isinstance(value, Component):
        return as_text(value)
    text = selector(value)
    name, arguments = split_label(text)
    return escaped(name) + text[len(name) :] if arguments else escaped(text)


def _labelled(name: str, values: Mapping[str, str]) -> str:
    return f"{name}[{','.join(f'{key}={value}' for key, value in values.items())}]" if values else name


@functools.cache
def _discover(package: str, base: type[C]) -> dict[str, type[C]]:
    names = [info.name for info in pkgutil.iter_modules(importlib.import_module(package).__path__)]
    shipped = {name: _only(f"{package}.{name}", base) for name in names if not name.startswith("_")}
    return dict(sorted((shipped | plugins.load(package, functools.partial(_loaded, base), shipped)).items()))


def _only(module: str, base: type[C]) -> type[C]:
    classes = _defined(importlib.import_module(module), base)
    if len(classes) != 1:
        raise TypeError(f"{module} must define one {base.__name__}, but defines {len(classes)}")
    return classes[0]


def _defined(module: ModuleType, base: type[C]) -> list[type[C]]:
    classes = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, base)]
    return [c for c in classes if c.__module__ == module.__name__ and not inspect.isabstract(c)]


def _loaded(base: type[C], entry: EntryPoint) -> type[C]:
    """The component of an entry point."""
    component = entry.load()
    if not (isinstance(component, type) and issubclass(component, base)):
        raise TypeError(f"it is no subclass of curvbench.{base.__name__}")
    return component


def _lookup(kind: str, name: str, components: Mapping[str, type[C]]) -> type[C]:
    if name not in components:
        raise ValueError(f"unknown {kind} {name!r}: {near_misses(name, components)}")
    return components[name]


def _parse(kind: str, text: str, base: type[C], is_value: bool = False) -> C:
    """A component from its text; ``is_value``: the text is the value of an argument, in which a path is escaped."""
    name, arguments = split_label(text.strip())
    name = unescaped(name.strip()) if is_value else name.strip()
    file = _FILE.fullmatch(name)
    if base is Probe and (factory := _factory(name, file)):
        texts = {key: unescaped(value) for key, value in _texts(name, arguments).items()}
        return _adapter().read(factory, texts)
    if file:
        component = _from_file(kind, file, base)
    elif re.search(r"[\[\],]|\.py$", name):
        expected = "NAME[key=value,...] or FILE.py:CLASS[key=value,...]"
        raise ValueError(f"cannot read the {kind} {text!r}: expected {expected}")
    else:
        component = _lookup(kind, name, probes() if base is Probe else problems())  # type: ignore[arg-type]
    return _build(component, name, _arguments(component, name, arguments))


def _factory(name: str, file: re.Match[str] | None) -> str:
    """The name of the optimizer that a text means; empty if it means another component."""
    if name.startswith(OPTIMIZER):
        return name.removeprefix(OPTIMIZER)
    if file is None or not (found := vars(load_file(file["path"])).get(file["name"])):
        return ""
    is_probe = isinstance(found, type) and issubclass(found, Component)
    is_factory = not is_probe and importlib.import_module("curvbench.parts.torch_optim").is_factory(found)
    return f"{Path(file['path']).resolve()}:{file['name']}" if is_factory else ""


def _adapter() -> Any:
    """The class of probes of optimizers; here, because it imports torch."""
    from curvbench.parts.torch_optim import TorchOptim

    return TorchOptim


def _from_file(kind: str, file: re.Match[str], base: type[C]) -> type[C]:
    module = load_file(file["path"])
    classes = {c.__name__: c for c in _defined(module, base)}
    if isinstance(other := vars(module).get(file["name"]), type) and file["name"] not in classes:
        raise ValueError(f"{file['name']} in {file['path']!r} is no {kind}: {_lacking(other, base)}")
    if file["name"] not in classes:
        raise ValueError(f"no {kind} {file['name']!r} in {file['path']!r}: {near_misses(file['name'], classes)}")
    return classes[file["name"]]


def _lacking(other: type, base: type[Component]) -> str:
    """What a class lacks to be a component."""
    if not issubclass(other, base):
        return f"it is no subclass of curvbench.{base.__name__}"
    if methods := sorted(getattr(other, "__abstractmethods__", ())):
        return f"it lacks {', '.join(methods)}"
    return f"it is defined in {other.__module__}"


def _arguments(component: type[Component], name: str, text: str) -> dict[str, Any]:
    """``key=value,...`` as a dictionary, with every value read by its field's annotation."""
    types = types_of(component)
    if issubclass(component, Probe):
        types = {**types, **{key: value for key, value in DIGITS.items() if key not in types}}
    values = {}
    for key, value in _texts(name, text).items():
        refuse_unknown(name, key, types)
        if is_given_as_probe(value, types[key]):
            values[key] = _inner(f"{name}: {key}", value, is_value=True)
        else:
            values[key] = read(f"{name}: {key}", alias(key, unescaped(value)), types[key])
    return values


def _texts(name: str, text: str) -> dict[str, str]:
    """``key=value,...`` as a dictionary of texts, in which what separates arguments is still escaped."""
    texts: dict[str, str] = {}
    for part in split_arguments(text):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            hint = ": a tuple is written as 0.9/0.99" if "(" in text else ""
            raise ValueError(f"{name}[{one_line(text)}]: expected key=value, got {part!r}{hint}")
        if key in texts:
            raise ValueError(f"{name}[{one_line(text)}]: {one_line(key)} is given twice")
        texts[key] = value
    return texts


def _inner(what: str, text: str, is_value: bool) -> Probe:
    """The probe that is the hyperparameter ``what``, from its text alone or from the value of an argument."""
    try:
        return _parse("probe", text, Probe, is_value)  # type: ignore[type-abstract]
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def _build(component: type[C], name: str, values: Mapping[str, Any]) -> C:
    if not dataclasses.is_dataclass(component):
        raise ValueError(f"{name} is no dataclass: put @dataclass(frozen=True) above the class")
    if issubclass(component, Probe):
        component, values = _in_digits(component, values)
    types = types_of(component)
    for key in values:
        refuse_unknown(name, key, types)
    values = {
        key: _inner(f"{name}: {key}", value, False) if is_given_as_probe(value, types[key]) else alias(key, value)
        for key, value in values.items()
    }
    label = _labelled(name, {key: as_text(value) for key, value in values.items()})
    try:
        return component(**values)
    except Exception as error:  # of a user's component anything
        raise ValueError(f"{label}: {one_line(error).removeprefix(f'{name}: ')}") from error


def _in_digits(kind: type[C], values: Mapping[str, Any]) -> tuple[type[C], dict[str, Any]]:
    """The class of a probe for which the values choose digits, and the values; its own class if they choose none."""
    own = types_of(kind)
    values = {key: value for key, value in values.items() if key in own or key not in DIGITS or value is not None}
    if DIGITS.keys().isdisjoint(values) or not DIGITS.keys().isdisjoint(own):
        return kind, values
    from curvbench.parts.digits import in_digits  # here, because it imports torch

    return in_digits(kind), values  # type: ignore[arg-type]
