"""Rows of one problem that may be held against each other: one precision, one device, one exact step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from curvbench.analysis.frames import texts

SETTINGS = ("parameters", "dtype", "device")
EXACT = r"^(?P<fisher>.*?),? ?\bdamping (?P<damping>[^,]+)"


def cases(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Rows by the settings in which they differ, in words; one case with an empty name if they differ in none.

    A cell without a step, such as one that failed, belongs to every case with its other settings.
    """
    settings = pd.DataFrame({name: texts(rows, name) for name in SETTINGS if name in rows}, index=rows.index)
    steps = texts(rows[rows["metric"] == "direction.gap_closed"], "method").str.extract(EXACT)
    cells = texts(rows, "cell_id")
    for name in steps:
        known = steps[name].dropna().groupby(cells[steps.index]).first()
        settings[name] = cells.map(known)
    differing = [name for name in settings if settings[name].dropna().nunique() > 1]
    if not differing:
        return {"": rows}
    found = settings[differing].dropna().drop_duplicates()
    return {_named(case): rows[_belongs(settings, case)] for case in found.to_dict("records")}


def _belongs(settings: pd.DataFrame, case: Mapping[Any, Any]) -> pd.Series:
    fits = [settings[name].isna() | (settings[name] == value) for name, value in case.items()]
    return pd.concat(fits, axis=1).all(axis=1)


def _named(case: Mapping[Any, Any]) -> str:
    words = {"parameters": "{} parameters", "damping": "damping {}", "fisher": "F: {}"}
    return ", ".join(words.get(name, "{}").format(value) for name, value in case.items())
