"""A DataFrame as text for people and for programs: aligned, Markdown, CSV, JSON."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from csv import QUOTE_MINIMAL, QUOTE_NONNUMERIC
from typing import Any

import numpy as np
import pandas as pd

from curvbench.words import one_line

_FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")  # the last four: full-width forms of the first


def text(frame: pd.DataFrame, form: str) -> str:
    """``frame`` in one of ``FORMS``, ending in a line break. Missing values are empty, or null in JSON."""
    return FORMS[form](frame)


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON can hold them: NaN becomes null, infinities become texts."""
    return [{str(key): _plain(value) for key, value in row.items()} for row in frame.to_dict("records")]


def _plain(value: Any) -> Any:
    if isinstance(value, list | np.ndarray):
        return [_plain(part) for part in value]
    if value is None or pd.isna(value):
        return None
    value = value.item() if isinstance(value, np.generic) else value
    finite = not isinstance(value, float) or math.isfinite(value)
    return value if finite and isinstance(value, int | float | str) else str(value)


def _aligned(frame: pd.DataFrame) -> str:
    words = [list(frame.columns), *frame.astype(object).where(frame.notna(), "").astype(str).to_numpy().tolist()]
    widths = [max(map(len, column)) for column in zip(*words, strict=True)]
    right = [pd.api.types.is_numeric_dtype(kind) for kind in frame.dtypes]
    lines = [
        "  ".join(w.rjust(n) if r else w.ljust(n) for w, n, r in zip(line, widths, right, strict=True)).rstrip()
        for line in words
    ]
    return "\n".join(lines) + "\n"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[bool]) -> str:
    """A Markdown table of ``escaped`` texts without a last line break; ``right``: which columns are numbers."""
    lines = [head, ["---:" if number else "---" for number in right], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escaped(text: object) -> str:
    """A text on one line, escaped so that Markdown shows every sign."""
    line = html.escape(one_line(text), quote=False)
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", line)


def _markdown(frame: pd.DataFrame) -> str:
    rows = [list(map(escaped, row)) for row in frame.astype(object).where(frame.notna(), "").to_numpy()]
    right = [pd.api.types.is_numeric_dtype(kind) for kind in frame.dtypes]
    return markdown(list(map(escaped, frame)), rows, right) + "\n"


def csv(frame: pd.DataFrame, raw: bool = False) -> str:
    """A table as CSV, in which no text is a formula to a spreadsheet; ``raw`` leaves texts as they are.

    A text that begins as a formula gets a quote in front, also if it had quotes there: without the first quote of each
    such text, the table is the old one. Numbers stay, negative ones included.
    """
    texts = [name for name, kind in frame.dtypes.items() if not pd.api.types.is_numeric_dtype(kind)]
    # Readers take a carriage return without quotes for the end of a row, and Python does not quote it.
    has_return = any(isinstance(text, str) and "\r" in text for name in texts for text in frame[name])
    if not raw:
        frame = frame.astype(dict.fromkeys(texts, object)).rename(columns=_as_text)
        frame = frame.assign(**{_as_text(name): frame[_as_text(name)].map(_as_text) for name in texts})
    return frame.to_csv(index=False, quoting=QUOTE_NONNUMERIC if has_return else QUOTE_MINIMAL)


def _as_text(value: Any) -> Any:
    """A text in the spelling in which no spreadsheet executes it; other values as they are."""
    if not isinstance(value, str) or not _FORMULA.match(value):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


FORMS: Mapping[str, Callable[[pd.DataFrame], str]] = {
    "table": _aligned,
    "markdown": _markdown,
    "csv": csv,
    "json": lambda frame: json.dumps(records(frame), indent=1, allow_nan=False) + "\n",
}
