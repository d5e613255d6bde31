"""Reading hyperparameters from text, as ``-p``, ``-m`` and ``-t`` give it."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from types import NoneType
from typing import Any, Literal

from curvbench.spec import Decay, Probe
from curvbench.spec.fields import describe, fits, options
from curvbench.spec.geometry import canonical_type

BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def refuse_unknown(name: str, key: str, types: Mapping[str, Any]) -> None:
    """Raise ValueError if ``key`` is none of the fields ``types``."""
    if key not in types:
        raise ValueError(f"{name} has no hyperparameter {key!r}; it has {', '.join(types) or 'none'}")


def alias(key: str, value: Any) -> Any:
    """The value with one spelling of the type-2 Fisher, so that a probe has one label."""
    return canonical_type(value) if key == "fisher_type" else value


def is_given_as_probe(value: Any, annotation: Any) -> bool:
    """Whether a value is the text of a probe, and ``annotation`` that of a field which takes one."""
    members = options(annotation)
    is_none = NoneType in members and isinstance(value, str) and value.lower() == "none"
    return isinstance(value, str) and Probe in members and not is_none


def read(what: str, text: str, annotation: Any) -> Any:
    """The value of an ``annotation`` that ``text`` means; raises ValueError if it means none."""
    members = options(annotation)
    if NoneType in members and text.lower() == "none":
        return None
    for option in members:
        for reading in _readings(text, option):
            if fits(reading, option):
                return reading
    raise ValueError(f"{what} must be {describe(annotation)}, got {text!r}")


def literal(text: str) -> Any:
    """The value that a text means by itself: none, true, false, a number, numbers with slashes between them, a text."""
    named = {"none": None, "true": True, "false": False}
    if text.lower() in named:
        return named[text.lower()]
    if "/" in text:
        parts = tuple(literal(part) for part in text.removesuffix("/").split("/"))
        return parts if all(isinstance(part, int | float) for part in parts) else text
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _readings(text: str, option: Any) -> list[Any]:
    if typing.get_origin(option) is Literal:
        return [value for value in typing.get_args(option) if str(value) == text]
    if typing.get_origin(option) is tuple and typing.get_args(option):
        readings = [_readings(part, typing.get_args(option)[0]) for part in text.split("/") if text]
        return [tuple(values[0] for values in readings)] if all(readings) else []
    if option is bool:
        return [BOOLEANS[text.lower()]] if text.lower() in BOOLEANS else []
    try:
        if option is Decay:
            return [Decay.read(text)]
        return [option(text)] if option in (int, float, str) else []
    except (ValueError, OverflowError):
        return []
