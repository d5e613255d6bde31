"""What the annotation of a hyperparameter allows, and whether a value is allowed."""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
import typing
from types import NoneType, UnionType
from typing import Any, Literal, Union

_WHOLE = 2**63  # integers from here on fit into no column and no tensor
LARGEST = int(sys.float_info.max)  # the greatest integer that a float can hold
# Kinds of values in words; a module with another kind adds it.
NAMES: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    str: "a text",
    bool: "true or false",
    NoneType: "none",
}


def types_of(component: type) -> dict[str, Any]:
    """The fields that a component takes, with their annotations.

    If one annotation holds a name that its module lacks, every field of the component takes any value.
    """
    return _types_of(component)


@functools.cache
def _types_of(component: Any) -> dict[str, Any]:
    names = [f.name for f in dataclasses.fields(component) if f.init]
    try:
        hints = typing.get_type_hints(component)
    except (NameError, AttributeError, SyntaxError, TypeError):
        hints = {}
    return {name: hints.get(name, Any) for name in names}


def check(what: str, value: Any, annotation: Any) -> Any:
    """The value, integers as floats where those are meant; raises ValueError where the annotation does not allow it."""
    members = options(annotation)
    if float in members and isinstance(value, int) and not isinstance(value, bool) and abs(value) < LARGEST:
        value = float(value)
    if int in members and type(value) is int and abs(value) >= _WHOLE:
        raise ValueError(f"{what} must be {describe(annotation)} between -2**63 and 2**63, got {value:.3g}")
    entries = [typing.get_args(option)[0] for option in members if typing.get_args(option)[1:] == (...,)]
    if entries == [float] and isinstance(value, tuple) and all(type(entry) in (int, float) for entry in value):
        value = tuple(float(entry) for entry in value)
    if not any(fits(value, option) for option in members):
        raise ValueError(f"{what} must be {describe(annotation)}, got {value!r}")
    return value


def fits(value: Any, option: Any) -> bool:
    """Whether a member of a union allows the value."""
    if option is Any:
        return True
    if typing.get_origin(option) is Literal:
        return value in typing.get_args(option)
    if option is float:
        return isinstance(value, float) and not math.isnan(value)
    if option is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _WHOLE
    if typing.get_origin(option) is tuple and typing.get_args(option)[1:] == (...,):
        return isinstance(value, tuple) and all(fits(entry, typing.get_args(option)[0]) for entry in value)
    kind = typing.get_origin(option) or option
    return isinstance(value, kind) if isinstance(kind, type) else True


def options(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, and anything else alone."""
    return typing.get_args(annotation) if typing.get_origin(annotation) in (Union, UnionType) else (annotation,)


def describe(annotation: Any) -> str:
    """What an annotation allows, in words: ``a number or none``, ``one of a, b, c``."""
    parts: list[str] = []
    for option in options(annotation):
        if typing.get_origin(option) is tuple and typing.get_args(option):
            parts.append(f"{describe(typing.get_args(option)[0])}, or several with slashes between them")
        elif typing.get_origin(option) is Literal:
            parts += map(str, typing.get_args(option))
        else:
            parts.append(NAMES.get(option, getattr(option, "__name__", str(option))))
    return " or ".join(parts) if len(parts) < 3 else f"one of {', '.join(parts)}"
