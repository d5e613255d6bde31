"""Frames of rows: their labels and texts, the rows of one problem, surrogates, and how cells ended."""

from __future__ import annotations

import numpy as np
import pandas as pd

from curvbench.spec import SURROGATE


def texts(frame: pd.DataFrame, column: str) -> pd.Series:
    """A column of texts as Python strings, null as an empty text.

    Frames of many rows have columns of categories, and a category column refuses new texts.
    """
    code, values = _coded(frame[column])
    return pd.Series(values[code], index=frame.index, dtype=object)


def is_cell_ending(frame: pd.DataFrame) -> pd.Series:
    """The rows that have no metric: each says how a cell without a value ended."""
    return frame["metric"].isna() | frame["metric"].eq("")


def is_surrogate(frame: pd.DataFrame) -> pd.Series:
    """The rows of small stand-ins for a published experiment."""
    return texts(frame, "method").str.startswith(SURROGATE)


def labels(frame: pd.DataFrame, kind: str) -> pd.Series:
    """``name[key=value,...]`` of the ``problem`` or ``probe`` of each row."""
    name_code, names = _coded(frame[kind])
    argument_code, arguments = _coded(frame[f"{kind}_args"])
    pairs = np.array([[f"{n}[{a}]" if a else n for a in arguments] for n in names], dtype=object)
    return pd.Series(pairs[name_code, argument_code], index=frame.index, dtype=object)


def problems(frame: pd.DataFrame) -> list[str]:
    """The labels of the problems, in the order of the rows."""
    return list(labels(frame, "problem").unique())


def of_problem(frame: pd.DataFrame, problem: str) -> pd.DataFrame:
    """The rows of one problem, given by its label."""
    chosen = labels(frame, "problem") == problem
    return frame if chosen.all() else frame[chosen]  # copying many rows takes long


def covering_alike(frame: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """The rows that cover the same choice of parameters as rows of ``other``."""
    return frame[frame["parameters"].isin(other["parameters"].unique())]


def surrogates(frame: pd.DataFrame) -> list[str]:
    """The labels of the problems that have rows of a surrogate."""
    kinds = frame[["problem", "problem_args", "method"]].drop_duplicates()
    return problems(kinds[is_surrogate(kinds)])


def shown_problem(frame: pd.DataFrame, problem: str) -> str:
    """The label of a problem as people read it: a surrogate is called one."""
    return f"{problem} (surrogate)" if problem in surrogates(frame) else problem


def _coded(column: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """A code per row and the distinct texts by code, an empty text last: null has the code -1."""
    code, values = pd.factorize(column)
    return code, np.array([*values, ""], dtype=object)
