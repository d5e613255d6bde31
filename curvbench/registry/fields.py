"""Hyperparameters: typed fields of components, read from text and checked against their annotations."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union

from curvbench.spec import Component, Decay

FISHER_ALIASES = {"type2": "type-2", "exact": "type-2"}
BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def refuse_unknown(name: str, key: str, types: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the fields ``types``, where ``key`` is not among them."""
    if key not in types:
        raise ValueError(f"{name} has no hyperparameter {key!r}; it has {', '.join(types) or 'none'}")


def types_of(component: type[Component]) -> dict[str, Any]:
    """The fields that a component takes, with their annotations."""
    hints = typing.get_type_hints(component)
    return {f.name: hints[f.name] for f in dataclasses.fields(component) if f.init}  # type: ignore[arg-type]


def alias(key: str, value: Any) -> Any:
    """Other spellings of the type-2 Fisher, so that one probe has one label."""
    return FISHER_ALIASES.get(value, value) if key == "fisher_type" and isinstance(value, str) else value


def read(what: str, text: str, annotation: Any) -> Any:
    """The value that ``text`` means where ``annotation`` stands; raises ValueError where it means none."""
    options = _options(annotation)
    if NoneType in options and text.lower() == "none":
        return None
    for option in options:
        for reading in _readings(text, option):
            if _fits(reading, option):
                return reading
    raise ValueError(f"{what} must be {describe(annotation)}, got {text!r}")


def _readings(text: str, option: Any) -> list[Any]:
    if typing.get_origin(option) is Literal:
        return [value for value in typing.get_args(option) if str(value) == text]
    if typing.get_origin(option) is tuple:
        readings = [_readings(part, typing.get_args(option)[0]) for part in text.split("/") if text]
        return [tuple(found[0] for found in readings)] if all(readings) else []
    if option is bool:
        return [BOOLEANS[text.lower()]] if text.lower() in BOOLEANS else []
    try:
        if option is Decay:
            return [Decay.read(text)]
        return [option(text)] if option in (int, float, str) else []
    except ValueError:
        return []


def check(what: str, value: Any, annotation: Any) -> Any:
    """The value, integers as floats where those are meant; raises ValueError where the annotation does not allow it."""
    options = _options(annotation)
    if float in options and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not any(_fits(value, option) for option in options):
        raise ValueError(f"{what} must be {describe(annotation)}, got {value!r}")
    return value


def _fits(value: Any, option: Any) -> bool:
    if typing.get_origin(option) is Literal:
        return value in typing.get_args(option)
    if option is float:
        return isinstance(value, float) and not math.isnan(value)
    if option is int:
        return isinstance(value, int) and not isinstance(value, bool)
    kind = typing.get_origin(option) or option
    return isinstance(value, kind) if isinstance(kind, type) else True


def _options(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, and anything else alone."""
    return typing.get_args(annotation) if typing.get_origin(annotation) in (Union, UnionType) else (annotation,)


def describe(annotation: Any) -> str:
    """What an annotation allows, in words: ``a number or none``, ``one of a, b, c``."""
    names = {int: "an integer", float: "a number", str: "a text", bool: "true or false", NoneType: "none"}
    names[Decay] = "field:rate or field:rate:least"
    parts = []
    for option in _options(annotation):
        if typing.get_origin(option) is tuple:
            return f"{describe(typing.get_args(option)[0])}, or several with slashes between them"
        values = typing.get_args(option) if typing.get_origin(option) is Literal else ()
        parts += [str(value) for value in values] or [names.get(option, getattr(option, "__name__", str(option)))]
    return " or ".join(parts) if len(parts) < 3 else f"one of {', '.join(parts)}"
