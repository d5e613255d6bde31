"""The commands of docs/tutorials/cluster.md, block by block, on cells of the fake ``fake_measure``."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import DRIVER, TESTS

from curvbench import store

pytestmark = pytest.mark.slow

PAGE = (TESTS.parent / "docs" / "tutorials" / "cluster.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
SUITE = """
from curvbench.spec import Preset, Suite
from fake_measure import Fake, Toy

SUITE = Suite("A suite", {"default": Preset([Toy()], [Fake(), Fake("slow"), Fake("slow", damping=1.0)])})
"""
CELLS = 3
NEEDS = {"dask": "distributed", "ray": "ray", "slurm": "submitit"}


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with a suite, and a command ``curvbench`` that measures with the fake."""
    for name in ("suites", "bin"):
        (tmp_path / name).mkdir()
    (tmp_path / "suites" / "resnet.py").write_text(SUITE)
    (tmp_path / "driver.py").write_text(f"if __name__ == '__main__':\n{re.sub('^', '    ', DRIVER, flags=re.M)}")
    command = tmp_path / "bin" / "curvbench"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path}/driver.py "$@"\n')
    command.chmod(0o755)
    return tmp_path


def free_port() -> int:
    with socket.create_server(("localhost", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def bash(script: str, here: Path) -> str:
    """Run a script, end what it has left in the background, and return what it printed."""
    places = [str(here / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("CURVBENCH")}
    environment |= {"PATH": os.pathsep.join(places), "PYTHONPATH": f"{TESTS.parent}:{TESTS}", "OMP_NUM_THREADS": "1"}
    ends = "trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT"
    command = ["bash", "-euc", f"{ends}\n{script}"]
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: "-".join(re.findall(r"[a-z]+", block)[:9]))
def test_commands_run(block: str, here: Path) -> None:
    engines = re.findall(r"--engine (\w+)", block)
    if missing := [name for name in engines if importlib.util.find_spec(NEEDS[name]) is None]:
        pytest.skip(f"needs pip install 'curvbench[{missing[0]}]'")
    if "slurm" in engines and shutil.which("sinfo") is None:
        block = "\n".join(line for line in block.splitlines() if "--dry-run" in line)
    for port in set(re.findall(r"\b(\d{4})\b", block)):
        block = block.replace(port, str(free_port()))
    out = bash(block + ("wait\n" if re.search(r"^curvbench .*&$", block, re.MULTILINE) else ""), here)
    if "--dry-run" in block:
        assert "#SBATCH --job-name=resnet" in out and f"{CELLS} of {CELLS} cells would be run" in out
    else:
        (folder,) = (here / "results" / "resnet").iterdir()
        assert {str(status) for status in store.cell_statuses(folder).values()} == {"ok"}
        assert len(store.cell_statuses(folder)) == CELLS and not (folder / "claims").exists()
        assert len(re.findall(r"\] ok [^(\n]*\d s", out)) == CELLS, "each is measured once"
        runs = block.count("curvbench run")
        assert out.count("   by another run") >= CELLS * (runs - 1)
        assert len(store.read_run(folder)["commands"]) == runs
