"""Ranges of hyperparameters that many probes share, checked with one line of text."""

from __future__ import annotations

import math

from curvbench.spec import Component


def at_least_one(component: Component, *names: str) -> None:
    """Raise ValueError if one of these fields is below 1; None is accepted."""
    for name in names:
        value = getattr(component, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def fraction(component: Component, *names: str, zero: bool = False, one: bool = False) -> None:
    """Raise ValueError if one of these fields lies outside (0, 1), to which ``zero`` and ``one`` add the ends."""
    for name in names:
        value = getattr(component, name)
        if not (0 < value < 1 or (zero and value == 0) or (one and value == 1)):
            raise ValueError(f"{name} must lie in {'[' if zero else '('}0, 1{']' if one else ')'}, got {value}")


def finite(component: Component, *names: str, zero: bool = True) -> None:
    """Raise ValueError if one of these fields is negative (or 0 without ``zero``), infinite or NaN."""
    for name in names:
        value = getattr(component, name)
        if not (value > 0 or (zero and value == 0)) or math.isinf(value):
            raise ValueError(f"{name} must be finite and {'not negative' if zero else 'above zero'}, got {value}")
