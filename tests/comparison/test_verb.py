"""``curvbench measure`` and ``init --problem`` as they are typed: files run as written, and runs continue."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from test_verbs import verb

import curvbench as cb
from curvbench.comparison.program import problem_of

pytestmark = pytest.mark.slow
MINE = """
import torch
from torch import nn
def mine():
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    return model, torch.randn(8, 5), torch.randint(3, (8,)), "cross_entropy"
"""
FEW = ("-p", "sgdm", "-p", "kfac")


def typed(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What a shell gives, in a process of its own."""
    command = [sys.executable, "-c", "from curvbench.cli.app import main; main()", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200)


@pytest.mark.parametrize("kind", ["module", "hf", "data"])
def test_a_written_problem_runs_as_written(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = verb(capsys, "init", "--problem", kind)
    assert code in (0, None)
    command = out.split("`")[1]  # what init says to type
    code, out, err = verb(capsys, *command.split()[1:], *FEW, "--engine", "inline")
    assert code == 0, err
    frame = cb.load("results")
    assert set(frame["status"]) <= {"ok", "skipped"} and set(frame["probe"]) == {"sgdm", "kfac"}
    (coverage,) = set(frame[frame["metric"] == "coverage.parameters"]["value"])
    assert coverage == 1.0 and set(frame["parameters"]) == {"all"}


def test_processes_measure_what_python_measures_and_continue(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    arguments = ("measure", "mine.py:mine", *FEW, "--dtype", "float64", "--log-json")
    done = typed(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    held = problem_of(f"{tmp_path / 'mine.py'}:mine", dtype="float64").held  # type: ignore[attr-defined]
    here = cb.measure(held.model, *held.batches[0], probes=("sgdm", "kfac"), progress=False).frame
    there = cb.load(tmp_path / "results")
    keys = ["probe", "metric", "scope"]
    exact = here["metric"].str.startswith(("error.", "direction.", "flops.", "memory."))
    both = here[exact].merge(there, on=keys, suffixes=("", "_there"))
    assert len(both) == exact.sum()
    assert both["value"].tolist() == pytest.approx(both["value_there"].tolist(), rel=1e-9, nan_ok=True)
    again = typed(tmp_path, *arguments)
    assert again.returncode == 0, again.stderr
    events = [json.loads(line) for line in again.stdout.splitlines()]
    assert not [event for event in events if event.get("event") == "finished"], "nothing is measured twice"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("measure", "mine.py:yours"), "no 'yours'"),
        (("measure", "mine.py"), "FILE.py:NAME"),
        (("measure", "mine.py:mine", "-p", "kfak"), "kfac"),
        (("measure", "mine.py:mine", "--memory", "many"), "500MB or 2GB"),
        (("measure", "mine.py:mine", "--memory", "1B"), "no method needs at most 1 B"),
        (("measure", "mine.py:mine", "--damping", "-1"), "damping"),
        (("measure",), "FILE.py:NAME"),
        (("init", "--problem", "tensor"), "tensor"),
    ],
)
def test_bad_input_is_one_line_and_two(
    arguments: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    code, _, err = verb(capsys, *arguments)
    assert code == 2 and said in err and "Traceback" not in err
    assert err.count("\n") == 1
