"""A DataFrame as text for people and for programs: aligned, Markdown, CSV, JSON."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from curvbench.words import one_line


def text(frame: pd.DataFrame, form: str) -> str:
    """``frame`` in one of ``FORMS``, ending in a line break; missing values are empty, in JSON null."""
    return FORMS[form](frame)


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON can hold them: numbers that are not finite are null or text."""
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
    """A table of words that are Markdown, see ``escaped``, without a last line break; ``right``: columns of numbers."""
    lines = [head, ["---:" if number else "---" for number in right], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escaped(text: object) -> str:
    """A text as Markdown shows it sign by sign, on one line."""
    line = html.escape(one_line(text), quote=False)
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", line)


def _markdown(frame: pd.DataFrame) -> str:
    rows = [list(map(escaped, row)) for row in frame.astype(object).where(frame.notna(), "").to_numpy()]
    right = [pd.api.types.is_numeric_dtype(kind) for kind in frame.dtypes]
    return markdown(list(map(escaped, frame)), rows, right) + "\n"


def _csv(frame: pd.DataFrame) -> str:
    return frame.to_csv(index=False)


def _json(frame: pd.DataFrame) -> str:
    return json.dumps(records(frame), indent=1, allow_nan=False) + "\n"


FORMS: Mapping[str, Callable[[pd.DataFrame], str]] = {
    "table": _aligned,
    "markdown": _markdown,
    "csv": _csv,
    "json": _json,
}
