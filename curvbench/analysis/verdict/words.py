"""Numbers, lists and batches as a sentence of a verdict says them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from curvbench.analysis.frames import texts
from curvbench.analysis.summary import digits

NAMED = 8  # most methods that a sentence names
OF_A_BATCH = "content="  # an argument of a model of the user's, whose seeds are the numbers of its batches


def listed(parts: Iterable[str], last: str = "and") -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    *first, end = parts
    return f"{', '.join(first)} {last} {end}" if first else end


def few(parts: Sequence[str], most: int = NAMED) -> str:
    """``listed``, with the number of those beyond ``most``."""
    rest = len(parts) - most
    return listed([*parts[:most], f"{rest} more"]) if rest > 0 else listed(parts)


def percent(share: float) -> str:
    """A share with a digit after the point: ``70.8%``."""
    return f"{share:.1%}".replace("-0.0%", "0.0%")


def ranged(values: Sequence[float], middle: float) -> str:
    """``70.8%``, and of several values ``70.8% (68.0% to 72.1%)``."""
    return percent(middle) + (f" ({percent(min(values))} to {percent(max(values))})" if len(values) > 1 else "")


def power(value: float) -> str:
    """A damping: ``0.001``, ``1e-6``."""
    return f"{value:.3g}"


def times(value: float) -> str:
    """A ratio with three digits, without zeros at its end: ``1.98``, ``3``."""
    text = digits(value)
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def in_gradients(value: float) -> str:
    """``1 gradient``, ``1.98 gradients``."""
    text = times(value)
    return f"{text} gradient{'s' * (text != '1')}"


def counted(count: int, noun: str) -> str:
    """``1 method``, ``2 methods``."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def draws(rows: pd.DataFrame, among: int) -> str:
    """``on this batch``, or ``over 3 batches`` and ``over 3 seeds`` of the rows' problem."""
    if among < 2:
        return "on this batch"
    is_given = texts(rows, "problem_args").str.contains(OF_A_BATCH, regex=False).all()
    return f"over {among} {'batches' if is_given else 'seeds'}"


def first_upper(text: str) -> str:
    """The text with its first letter in upper case, unless it begins with a name in lower case that ends there."""
    return text[:1].upper() + text[1:]
