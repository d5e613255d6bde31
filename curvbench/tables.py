"""A DataFrame as text for people and for programs: aligned, Markdown, CSV, JSON."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd


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


def _markdown(frame: pd.DataFrame) -> str:
    words = [frame.columns, ["---"] * frame.shape[1], *frame.astype(object).where(frame.notna(), "").to_numpy()]
    return "".join(f"| {' | '.join(_escaped(str(word)) for word in line)} |\n" for line in words)


def _escaped(text: str) -> str:
    return html.escape(" ".join(text.split()), quote=False).replace("|", r"\|").replace("*", r"\*")


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
