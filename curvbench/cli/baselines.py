"""Baselines: the repeatable rows of a run, one small Parquet file per suite, torch version and FLOP count."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from curvbench import store
from curvbench.analysis.compare import by_suite
from curvbench.analysis.limits import limit_of
from curvbench.spec import FLOP_MODEL


def files(folder: Path, rows: pd.DataFrame) -> dict[str, Path]:
    """The file of the baseline of each suite of ``rows`` in ``folder``: ``SUITE/torch-2.13.0-flops-2.parquet``."""
    return {
        suite: folder / store.refuse_path(suite, "a suite") / f"{_versions(part)}.parquet"
        for suite, part in by_suite(rows).items()
    }


def find(path: Path, rows: pd.DataFrame) -> list[Path]:
    """The baselines with which ``rows`` are to be compared.

    Raises:
        ValueError: none has these versions of torch and of the FLOP count; the text names the existing baselines.
    """
    baselines = files(path, rows)
    for suite, file in baselines.items():
        if not file.is_file():
            existing = ", ".join(sorted(other.stem for other in file.parent.glob("*.parquet"))) or "none"
            missing = f"no baseline {file.stem} of {suite} in {str(path)!r}"
            raise ValueError(f"{missing}; there are: {existing}")
    return list(baselines.values())


def is_folder_of_baselines(path: Path) -> bool:
    """Whether ``path`` is a folder of baselines: Parquet files in folders of suites, and no run."""
    return path.is_dir() and any(path.glob("*/torch-*.parquet"))


def repeatable(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows without sampled metrics, because samples of two runs have to be taken in turn."""
    names = rows["metric"].fillna("").unique()
    return rows[~rows["metric"].isin([name for name in names if limit_of(name).sampled])]


def write(file: Path, rows: pd.DataFrame) -> None:
    """Make the repeatable rows of ``rows`` the baseline in ``file``."""
    store.write_rows(file, repeatable(rows))


def _versions(rows: pd.DataFrame) -> str:
    """``torch-2.13.0-flops-2``; raises ValueError if the rows have several versions."""
    torch = sorted({version.partition("+")[0] for version in rows["torch_version"].dropna()})
    counts = sorted({count for count in rows["flop_model"].dropna() if count}) or [FLOP_MODEL]
    if len(torch) != 1 or len(counts) != 1:
        raise ValueError(f"a baseline has one version of torch and of the FLOP count, got {torch} and {counts}")
    return store.refuse_path(f"torch-{torch[0]}-flops-{counts[0]}", "versions")
