"""Refusals of settings of the wrong kind: what was expected, what came, what to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

MOST_THREADS = 1024  # more threads than any machine has use for is a slip of the keyboard
LARGEST_SEED = 2**32 - 1  # of numpy


def came(value: object) -> str:
    """What a value is, in words: a class is no object of it."""
    return f"the class {value.__name__}" if isinstance(value, type) else f"{value!r}"[:80]


def refuse_kind(what: str, value: object, kind: type | tuple[type, ...], expected: str) -> None:
    """Raise TypeError if a value is of another kind."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{what} must be {expected}, got {came(value)}")


def refuse_entries(what: str, values: object, kind: type, expected: str) -> None:
    """Raise TypeError if ``values`` is no list or tuple of one kind."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise TypeError(f"{what} must be a list, each entry {expected}, got {came(values)}")
    for value in values:
        refuse_kind(f"each of {what}", value, kind, expected)


def refuse_twice(what: str, values: Iterable[Any]) -> None:
    """Raise ValueError if the same value is there twice."""
    seen: set[Any] = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{getattr(value, 'label', value)} is there twice in {what}: leave one out")
        seen.add(value)


def refuse_seeds(seeds: Iterable[Any]) -> None:
    """Raise TypeError or ValueError if seeds are no whole numbers that every generator takes, each once."""
    refuse_entries("seeds", seeds, int, "a whole number")
    if wrong := [seed for seed in seeds if not 0 <= seed <= LARGEST_SEED]:
        raise ValueError(f"a seed lies in 0..{LARGEST_SEED}, got {wrong[0]}")
    refuse_twice("seeds", seeds)
