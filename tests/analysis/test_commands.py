from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from curvbench.analysis.commands import repeat
from curvbench.registry import parse_probe, parse_problem, probe, problem

CELL = {"device": "cpu", "dtype": "float64", "parameters": "weights", "threads": 1, "seed": 3}


def test_the_command_gives_the_cell_again() -> None:
    kfac, mlp = probe("kfac", damping=0.5, fisher_type="mc"), problem("mlp", epochs=2)
    cell = CELL | {"probe": kfac.name, "probe_args": kfac.arguments, "problem": mlp.name, "problem_args": mlp.arguments}
    words = shlex.split(repeat(cell, "suites/mlp.py", {}))
    assert words[:3] == ["curvbench", "run", "suites/mlp.py"]
    assert parse_probe(words[words.index("-p") + 1]) == kfac
    assert parse_problem(words[words.index("-m") + 1]) == mlp
    assert words[words.index("--seed") + 1] == "3"
    assert words[words.index("--dtype") + 1] == "float64"
    assert words[words.index("--parameters") + 1] == "weights"
    assert "--device" not in words and "--damping" not in words


def test_names_of_strangers_are_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cell = CELL | {"probe": "x; rm -rf ~", "probe_args": "", "problem": "p", "problem_args": "", "device": "cuda:1"}
    words = shlex.split(repeat(cell, str(tmp_path / "a suite.py"), {"identity": {"damping": 0.1}}))
    assert words[2] == "a suite.py"
    assert "x; rm -rf ~" in words
    assert words[words.index("--device") + 1] == "cuda:1"
    assert words[words.index("--damping") + 1] == "0.1"


@pytest.mark.parametrize("given", ["--preset wild -t lr=0.5,epochs=2", "--preset=wild --train=lr=0.5,epochs=2"])
def test_options_of_the_run_and_files_of_users_are_repeated(given: str) -> None:
    """The preset decides meters, precision and training; a class of a file is found by the file alone."""
    cell = CELL | {"cell_id": "c1", "probe": "Bad", "probe_args": "a=0.1", "problem": "mlp", "problem_args": ""}
    entry = {"id": "c1", "sources": {"probe": {"file": "bad.py"}, "problem": {}}}
    record = {"command": f"curvbench run suites/mlp {given} --retrain --jobs 2", "cells": [entry]}
    words = shlex.split(repeat(cell, "suites/mlp.py", record))
    assert words[words.index("-p") + 1] == "bad.py:Bad[a=0.1]"
    assert words[words.index("--preset") + 1] == "wild"
    assert words[words.index("--train") + 1] == "lr=0.5,epochs=2"
    assert "--retrain" in words and "--jobs" not in words
