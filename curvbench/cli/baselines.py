"""Baselines: the repeatable rows of a run, one small Parquet file per suite, torch version and FLOP count."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from curvbench import store
from curvbench.analysis.compare import by_suite
from curvbench.analysis.limits import limit_of
from curvbench.spec import FLOP_MODEL


def files(folder: Path, rows: pd.DataFrame) -> dict[str, Path]:
    """Where the baseline of each suite of ``rows`` stands in ``folder``: ``SUITE/torch-2.13.0-flops-2.parquet``."""
    return {suite: folder / suite / f"{_versions(part)}.parquet" for suite, part in by_suite(rows).items()}


def find(path: Path, rows: pd.DataFrame) -> list[Path]:
    """The baselines that ``rows`` are to be held against.

    Raises:
        ValueError: there is none for these versions of torch and of the FLOP count; the text names those that are.
    """
    found = files(path, rows)
    for suite, file in found.items():
        if not file.is_file():
            there = ", ".join(sorted(other.stem for other in file.parent.glob("*.parquet"))) or "none"
            wanted = f"no baseline {file.stem} of {suite} in {str(path)!r}"
            raise ValueError(f"{wanted}; there are: {there}. With --update this run becomes one")
    return list(found.values())


def holds(path: Path) -> bool:
    """Whether ``path`` is a folder of baselines: Parquet files in folders of suites, and no run."""
    return path.is_dir() and any(path.glob("*/torch-*.parquet"))


def repeatable(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that a later run can be held against: all but what is sampled, for it has to be taken in turn."""
    names = rows["metric"].fillna("").unique()
    return rows[~rows["metric"].isin([name for name in names if limit_of(name).sampled])]


def write(file: Path, rows: pd.DataFrame) -> None:
    """Make the repeatable ones of ``rows`` the baseline in ``file``."""
    store.write_rows(file, repeatable(rows))


def _versions(rows: pd.DataFrame) -> str:
    """``torch-2.13.0-flops-2``; raises ValueError where the rows are of several."""
    torch = sorted({version.partition("+")[0] for version in rows["torch_version"].dropna()})
    counts = sorted({count for count in rows["flop_model"].dropna() if count}) or [FLOP_MODEL]
    if len(torch) != 1 or len(counts) != 1:
        raise ValueError(f"a baseline is of one torch and one FLOP count, these rows of {torch} and {counts}")
    return f"torch-{torch[0]}-flops-{counts[0]}"
