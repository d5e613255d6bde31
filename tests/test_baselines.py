from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from regressions import run

from curvbench import store
from curvbench.analysis.compare import compare
from curvbench.cli import baselines


@pytest.fixture
def rows(tmp_path: Path) -> pd.DataFrame:
    return run(tmp_path / "results", "r1").assign(torch_version="2.13.0+cpu")


def test_a_baseline_is_what_repeats_and_is_read_again(rows: pd.DataFrame, tmp_path: Path) -> None:
    (file,) = baselines.files(tmp_path / "b", rows).values()
    assert file == tmp_path / "b" / "s" / "torch-2.13.0-flops-2.parquet"
    baselines.write(file, rows)
    assert baselines.is_folder_of_baselines(tmp_path / "b")
    assert baselines.find(tmp_path / "b", rows) == [file]
    stored = store.load(file)
    assert not stored["metric"].str.startswith("time.").any()
    assert len(stored) == len(rows) - rows["metric"].str.startswith("time.").sum()
    assert set(compare(stored, stored)["verdict"]) == {"equal"}


def test_a_version_without_a_baseline_names_those_there_are(rows: pd.DataFrame, tmp_path: Path) -> None:
    (file,) = baselines.files(tmp_path / "b", rows).values()
    baselines.write(file, rows)
    expected = r"no baseline torch-2\.14\.0-flops-2 of s .* there are: torch-2\.13\.0-flops-2$"
    with pytest.raises(ValueError, match=expected):
        baselines.find(tmp_path / "b", rows.assign(torch_version="2.14.0"))


def test_rows_of_two_versions_are_no_baseline(rows: pd.DataFrame) -> None:
    mixed = pd.concat([rows, rows.assign(torch_version="2.14.0")])
    with pytest.raises(ValueError, match="a baseline has one version of torch"):
        baselines.files(Path("b"), mixed)


def test_a_folder_of_runs_holds_no_baselines(rows: pd.DataFrame, tmp_path: Path) -> None:
    assert not baselines.is_folder_of_baselines(tmp_path / "results")
    assert not baselines.is_folder_of_baselines(tmp_path / "nothing")
