"""Shapes in TOML files, and the files that are shipped: ``data/shapes``, one per network."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from curvbench.prediction.layout import KEYS, NEEDED, TAKEN, Shape, Shapes, kind_of
from curvbench.shipped import DATA
from curvbench.words import near_misses, one_line

FOLDER = DATA / "shapes"
_OF_NETWORK: Mapping[str, type | tuple[type, ...]] = {
    **{"samples": int, "terms": int, "outputs": int, "loss": str, "source": str},
    **{"forward": (int, float), "backward": (int, float)},
}
_OF_LAYER: Mapping[str, type | tuple[type, ...]] = {
    **{"name": str, "kind": str, "in": int, "out": int, "kernel": (int, list), "stride": int, "dilation": int},
    **{"positions": int, "groups": int, "bias": bool, "keys": int, "repeat": int, "tied_to": str},
}
_WORDS = {int: "a whole number", str: "a text", bool: "true or false", (int, list): "a whole number or a list of them"}


def shipped() -> list[str]:
    """Names of the networks whose shapes are shipped."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(source: str | Path) -> Shapes:
    """The shapes in a TOML file, or those of a shipped network by its name.

    Raises:
        ValueError: there is no such file or name, or the file holds something else; the text is one line that names
            the file, the layer and the key.
    """
    path = Path(source)
    if not path.exists():
        if str(source) not in shipped():
            known = near_misses(str(source), shipped())
            raise ValueError(f"no file of shapes {str(source)!r}, and no shipped network of this name: {known}")
        path = FOLDER / f"{source}.toml"
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{str(path)!r} is no TOML file: {one_line(error)}") from error
    return parsed(content, str(path), path.stem)


def parsed(content: Mapping[str, Any], where: str, name: str) -> Shapes:
    """The shapes in the content of a file; ``where``: how errors call the file. Raises ValueError."""
    tables, rest = content.get("layer", []), {key: value for key, value in content.items() if key != "layer"}
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise ValueError(f"{where}: expected [[layer]] entries, at least one")
    _check(rest, _OF_NETWORK, where)
    layers = tuple(_layer(table, where, number) for number, table in enumerate(tables, 1))
    try:
        shapes = Shapes(layers, name=name, **rest)
    except ValueError as error:
        raise ValueError(str(error).replace(f"{name}: ", f"{where}: ", 1)) from None
    return shapes


def _layer(table: Mapping[str, Any], where: str, number: int) -> Shape:
    if not isinstance(table.get("name"), str) or not table["name"]:
        raise ValueError(f"{where}: layer {number}: name is missing, or is no text")
    here = f"{where}: layer {table['name']!r}"
    try:
        kind = kind_of(table["kind"]) if "kind" in table else None
    except ValueError as error:
        raise ValueError(f"{here}: {error}") from None
    if kind is None:
        raise ValueError(f"{here}: kind is missing")
    if missing := [key for key in NEEDED[kind] if key not in table]:
        raise ValueError(f"{here}: {missing[0]} is missing, which kind {kind!r} needs")
    known = {"name", "kind", "repeat", *NEEDED[kind], *TAKEN[kind]}
    if unknown := [key for key in table if key not in known]:
        raise ValueError(f"{here}: kind {kind!r} has no {unknown[0]}: {near_misses(unknown[0], known)}")
    _check(table, _OF_LAYER, here)
    values = {KEYS.get(key, key): value for key, value in table.items()}
    values.setdefault("bias", "bias" in TAKEN[kind])
    if "kernel" in values:
        values["kernel"] = _kernel(values["kernel"], here)
    return Shape(**values)


def _kernel(value: Any, here: str) -> tuple[int, ...]:
    """The sides of a kernel; one number is a square."""
    sides = [value, value] if isinstance(value, int) else value
    if not 1 <= len(sides) <= 3 or not all(isinstance(side, int) and not isinstance(side, bool) for side in sides):
        raise ValueError(f"{here}: kernel must be one to three whole numbers, got {value}")
    return tuple(sides)


def _check(table: Mapping[str, Any], kinds: Mapping[str, type | tuple[type, ...]], here: str) -> None:
    for key, value in table.items():
        if key not in kinds:
            raise ValueError(f"{here}: unknown key {key!r}: {near_misses(key, kinds)}")
        kind = kinds[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"{here}: {key} must be {_WORDS.get(kind, 'a number')}, got {value!r}")


def dumped(shapes: Shapes) -> str:
    """The shapes as the text of a file that ``load`` reads."""
    network = [f"{key} = {_text(getattr(shapes, key))}" for key in _OF_NETWORK if getattr(shapes, key) is not None]
    return "\n\n".join(["\n".join(network), *map(_entry, shapes.layers)]) + "\n"


def _entry(layer: Shape) -> str:
    words = {field: key for key, field in KEYS.items()}
    known = (*NEEDED[layer.kind], *TAKEN[layer.kind], "repeat", "bias")
    lines = ["[[layer]]", f"name = {_text(layer.name)}", f"kind = {_text(layer.kind)}"]
    for field in fields(layer):
        key, value = words.get(field.name, field.name), getattr(layer, field.name)
        default = "bias" in TAKEN[layer.kind] if key == "bias" else field.default
        if key in known and value != default:
            lines.append(f"{key} = {_text(value)}")
    return "\n".join(lines)


def _text(value: Any) -> str:
    """A value as TOML writes it, which is as JSON does."""
    return json.dumps(list(value) if isinstance(value, tuple) else value)
