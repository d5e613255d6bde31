"""What ``run.json`` holds, and what of it can be relied on after someone has edited or damaged it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

# A shape is a type, a tuple of types, [the shape of every entry of a list], or the shapes of some keys of an object;
# the key "*" is the shape of every other value. The keys in _NEEDED are there, or the whole object is left out.
_SCALAR = (str, bool, int, float, type(None))
_INNERMOST: dict[str, Any] = {"name": str, "content": str, "file": str}
_SOURCE = _INNERMOST | {"inner": [_INNERMOST | {"inner": [_INNERMOST]}]}
_CELL: dict[str, Any] = {
    **dict.fromkeys(("id", "problem", "problem_args", "probe", "probe_args", "training", "device", "dtype"), str),
    **dict.fromkeys(("weights", "parameters"), str),
    **dict.fromkeys(("seed", "threads"), int),
    "meters": [str],
    "hyperparameters": {"*": {"*": object}},
    "sources": {"*": _SOURCE},
}
_ENVIRONMENT = dict.fromkeys(
    ("git_sha", "device", "host", "python_version", "arch", "os", "platform"), (str, type(None))
)
_RECORD: dict[str, Any] = {
    "schema_version": int,
    **dict.fromkeys(("run_id", "suite", "suite_file", "command"), str),
    "commands": [{"command": str, "started_at": str}],
    "identity": {"*": _SCALAR},
    "environment": {**_ENVIRONMENT, "*": object},
    "cells": [_CELL],
    "*": object,
}
_LIBRARIES: dict[str, Any] = {
    "files": [dict.fromkeys(("name", "file", "bytes", "code"), str)],
    "packages": {"*": str},
}
_NOTES: dict[str, Any] = {"label": str, "note": str, "tags": [str], "archived": bool}
_CHECK: dict[str, Any] = {"against": str, "checked_at": str, "passed": bool, "sentences": [str]}
_NEEDED = (("id",), ("content",), ("files", "packages"), ("file", "bytes", "code"), tuple(_CHECK))
_NAMES = {str: "a text", int: "a whole number", bool: "true or false", dict: "an object", list: "a list"}


def parsed(content: bytes) -> tuple[dict[str, Any], list[str]]:
    """The sound part of a record, and the faults of the rest; raises ValueError if nothing can be read."""
    try:
        record = json.loads(content)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(record, dict):
        raise ValueError(f"expected an object, got {type(record).__name__}")
    faults: list[str] = []
    return _object(record, _RECORD, "", faults), faults


def libraries(content: bytes) -> dict[str, Any]:
    """A record of the libraries that a cell had loaded; raises ValueError if any part of it is damaged."""
    return _whole(content, _LIBRARIES)


def notes(content: bytes) -> dict[str, Any]:
    """The notes on a run, of which some may be missing; raises ValueError if any part is damaged."""
    known = _whole(content, _NOTES)
    return {name: known[name] for name in _NOTES if name in known}  # a later version may have more


def check(content: bytes) -> dict[str, Any]:
    """What a gate said of a run; raises ValueError if any part of it is damaged."""
    known = _whole(content, _CHECK)
    return {name: known[name] for name in _CHECK}


def _whole(content: bytes, shape: Mapping[str, Any]) -> dict[str, Any]:
    """An object that is sound as a whole; raises ValueError if any part of it is damaged."""
    faults: list[str] = []
    try:
        sound = list(_sound(json.loads(content), shape, "the record", faults))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if faults:
        raise ValueError(faults[0])
    whole: dict[str, Any] = sound[0]
    return whole


def _sound(value: Any, shape: Any, place: str, faults: list[str]) -> Iterator[Any]:
    """The value without its faulty parts; nothing if it is faulty itself."""
    if isinstance(shape, dict | list):
        kind: Any = type(shape)
    else:
        kind = shape
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        expected = _NAMES.get(kind, "a text or a number")
        faults.append(f"{place} must be {expected}, got {type(value).__name__}")
    elif isinstance(shape, list):
        yield [part for k, entry in enumerate(value) for part in _sound(entry, shape[0], f"{place}[{k}]", faults)]
    elif isinstance(shape, dict):
        sound = _object(value, shape, f"{place}.", faults)
        needed = next((keys for keys in _NEEDED if set(keys) <= shape.keys()), ())
        if missing := [key for key in needed if key not in sound]:
            faults.append(f"{place} lacks {missing[0]}")
        else:
            yield sound
    else:
        yield _shown(value) if isinstance(value, str) else value


def _object(value: Mapping[str, Any], shape: Mapping[str, Any], place: str, faults: list[str]) -> dict[str, Any]:
    return {
        key: part
        for key, entry in value.items()
        for part in _sound(entry, shape.get(key, shape.get("*", object)), place + _shown(key), faults)
    }


def _shown(text: str) -> str:
    """The text with halves of signs, which no page and no file can hold, as Python writes them."""
    return text.encode("utf-8", "backslashreplace").decode()
