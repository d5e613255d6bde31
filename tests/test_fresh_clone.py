"""A fresh clone's view: the command on the quick preset, then the Parquet as pandas alone reads it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from judging import OF_A_PROBE

from curvbench.spec import PHASES

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
NAMES = ("sgdm", "muon", "kfac[fisher_type=mc]", "layer", "full")
MAIN = ("run", "suites/resnet", "--preset", "quick", *(word for name in NAMES for word in ("-p", name)))
PROBE = '''
from dataclasses import dataclass

import torch

from curvbench import FisherProbe
from curvbench.operators import Identity


@dataclass(frozen=True)
class Scaled(FisherProbe):
    """A multiple of the identity that has the trace of the Fisher."""

    scale: float = 1.0

    def update(self, state, batch):
        return Identity(batch.size, batch.dtype, batch.device)

    def precondition(self, state, gradient):
        return gradient / (self.scale + self.damping)

    def operator(self, state):
        return state
'''


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that git tracks or would track, and nothing else of this machine."""
    folder = tmp_path_factory.mktemp("fresh clone")
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    for name in names:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    (folder / "my_probe.py").write_text(PROBE)
    return folder


def curvbench(clone: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(clone), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "curvbench", *arguments]
    return subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def run(clone: Path) -> subprocess.CompletedProcess[str]:
    return curvbench(clone, *MAIN)


@pytest.fixture(scope="module")
def rows(clone: Path, run: subprocess.CompletedProcess[str]) -> pd.DataFrame:
    assert run.returncode == 0, run.stdout + run.stderr
    return pd.concat(map(pd.read_parquet, (clone / "results" / "resnet").glob("*/cells/*.parquet")))


def value(rows: pd.DataFrame, probe: str, metric: str, scope: str) -> float:
    chosen = rows[(rows["probe"] == probe) & (rows["metric"] == metric) & (rows["scope"] == scope)]
    assert len(chosen) == 1
    return float(chosen["value"].iloc[0])


def test_run_ends_well_and_says_where(run: subprocess.CompletedProcess[str], rows: pd.DataFrame) -> None:
    assert run.stderr == ""
    assert "results: results/resnet/" in run.stdout
    assert all(probe in run.stdout for probe in rows["probe"].unique())


def test_exact_probes_are_exact(rows: pd.DataFrame) -> None:
    """Up to the float32 pass of the probes: the reference's network pass is float64."""
    assert value(rows, "layer", "error.relative", "layer blocks") < 1e-3
    assert value(rows, "full", "error.relative", "network") < 1e-3
    assert value(rows, "sgdm", "error.relative", "network") > 1


def test_every_operation_of_every_probe_is_counted(rows: pd.DataFrame) -> None:
    uncounted = rows[rows["metric"] == "flops.uncounted_ops"]
    assert len(uncounted) == len(PHASES) * rows["cell_id"].nunique()
    assert (uncounted["value"] == 0).all(), uncounted[uncounted["value"] > 0][["probe", "reason"]]


def test_metrics_are_those_of_the_contract(rows: pd.DataFrame) -> None:
    assert set(rows.loc[rows["status"] == "ok", "metric"]) == OF_A_PROBE


def test_run_json_names_every_cell(clone: Path, rows: pd.DataFrame) -> None:
    (path,) = (clone / "results" / "resnet").glob("*/run.json")
    assert {cell["id"] for cell in json.loads(path.read_text())["cells"]} == set(rows["cell_id"])


def test_same_command_again_does_nothing(clone: Path, rows: pd.DataFrame) -> None:
    before = {path: path.stat().st_mtime_ns for path in (clone / "results").rglob("*.parquet")}
    again = curvbench(clone, *MAIN)
    assert again.returncode == 0
    assert "nothing to do" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in (clone / "results").rglob("*.parquet")} == before


def test_users_own_probe_runs_from_its_file(clone: Path, rows: pd.DataFrame) -> None:
    own = curvbench(clone, "run", "suites/mlp", "--preset", "quick", "-p", "my_probe.py:Scaled[scale=2,damping=1e-2]")
    assert own.returncode == 0, own.stdout + own.stderr
    found = pd.concat(map(pd.read_parquet, (clone / "results" / "mlp").glob("*/cells/*.parquet")))
    assert set(found["probe"]) == {"Scaled"}
    assert set(found["probe_args"]) == {"damping=0.01,scale=2.0"}
    assert (found["status"] == "ok").all()
