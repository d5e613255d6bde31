from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fake_measure import Fake, Toy

from curvbench import identity
from curvbench.identity.code import CLOCKS
from curvbench.identity.libraries import PACKAGE
from curvbench.registry import parse_probe
from curvbench.spec import Cell, Training

CELL = Cell("s", Toy(), Fake(), 0)
MACHINE = {"torch_version": "2", "device_name": "a cpu"}


def test_the_same_cell_has_the_same_id() -> None:
    assert identity.cell_id(CELL, MACHINE) == identity.cell_id(Cell("s", Toy(), Fake(), 0), dict(MACHINE))


@pytest.mark.parametrize(
    "other",
    [
        replace(CELL, suite="t"),
        replace(CELL, problem=Toy(samples=9)),
        replace(CELL, probe=Fake(damping=1.0)),
        replace(CELL, seed=1),
        replace(CELL, dtype="float64"),
        replace(CELL, threads=2),
        replace(CELL, meters=("flops",)),
        replace(CELL, training=Training(1, 0.1)),
        replace(CELL, surrogate=True),
        replace(CELL, parameters="weights"),
    ],
)
def test_everything_of_a_cell_counts(other: Cell) -> None:
    assert identity.cell_id(other, MACHINE) != identity.cell_id(CELL, MACHINE)


def test_every_hyperparameter_of_a_training_counts() -> None:
    ids = {identity.cell_id(replace(CELL, training=Training(3, 0.1, **more)), MACHINE) for more in ({}, {"batch": 7})}
    assert len(ids) == 2


@pytest.mark.parametrize("key", ["torch_version", "device_name"])
def test_the_machine_counts(key: str) -> None:
    assert identity.cell_id(CELL, MACHINE | {key: "other"}) != identity.cell_id(CELL, MACHINE)


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("numerics.py", True),
        ("cells/measure.py", True),
        ("fisher/exact.py", True),
        ("meters/new.py", True),
        ("spec/metrics.py", False),
        ("a_new_room.py", True),
        ("probes/__init__.py", True),
        ("probes/kfac.py", False),
        ("problems/mlp.py", False),
        ("__init__.py", False),
        ("cli/verbs/run.py", False),
        ("store/rows.py", False),
        ("engines/local.py", False),
        ("analysis/summary.py", False),
    ],
)
def test_which_code_counts(file: str, counts: bool, tmp_path: Path) -> None:
    package = tmp_path / "curvbench"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    before = identity.code_identity.__wrapped__(package)
    assert before == identity.code_identity()
    if (package / file).is_file():
        (package / file).write_text(f'{(package / file).read_text()}\n# edited\n"""Said."""\n')
        assert identity.code_identity.__wrapped__(package) == before, "what does nothing decides nothing"
    with open(package / file, "a") as source:
        source.write("\nEDITED = 1\n")
    assert (identity.code_identity.__wrapped__(package) != before) == counts


@pytest.mark.parametrize(
    ("file", "counts"), [("meters/error.py", False), ("meters/clock.py", True), ("optim/hooks.py", True)]
)
def test_which_code_counts_for_a_training(file: str, counts: bool, tmp_path: Path) -> None:
    package = tmp_path / "curvbench"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    before = identity.code_identity.__wrapped__(package, measures=False)
    with open(package / file, "a") as source:
        source.write("\nEDITED = 1\n")
    assert (identity.code_identity.__wrapped__(package, measures=False) != before) == counts


def test_what_trains_uses_no_other_meters_than_those_that_count_for_it() -> None:
    rooms = ("data", "instance", "operators", "optim", "parts", "probes", "problems", "states", "training", "uses")
    files = [file for room in rooms for file in (PACKAGE / room).rglob("*.py")]
    for file in [*files, PACKAGE / "cells" / "trial.py", PACKAGE / "cells" / "pace.py", PACKAGE / "numerics.py"]:
        used = re.findall(
            r"from curvbench\.meters\.(\w+) import|import curvbench\.meters\.(\w+)", file.read_text("utf-8")
        )
        assert {f"{name or other}.py" for name, other in used} <= CLOCKS, file
        assert "from curvbench.meters import" not in file.read_text("utf-8"), file


def test_the_file_of_a_users_probe_counts(tmp_path: Path) -> None:
    text = (Path(__file__).parent / "fake_measure.py").read_text()
    ids = []
    for name, content in (("one", text), ("two", f"{text}\n# edited\n"), ("three", f"{text}\nEDITED = 1\n")):
        (tmp_path / f"{name}.py").write_text(content)
        probe = parse_probe(f"{tmp_path / name}.py:Fake")
        ids.append(identity.cell_id(replace(CELL, probe=probe), MACHINE))
    assert ids[0] == ids[1] != ids[2]


def test_the_file_of_a_probe_within_a_probe_counts(tmp_path: Path) -> None:
    text = (Path(__file__).parent / "fake_measure.py").read_text()
    ids = []
    for name, content in (("one", text), ("two", f"{text}\n# edited\n"), ("three", f"{text}\nEDITED = 1\n")):
        (tmp_path / f"{name}.py").write_text(content)
        probe = parse_probe(f"cg[preconditioner={tmp_path / name}.py:Fake]")
        ids.append(identity.cell_id(replace(CELL, probe=probe), MACHINE))
    assert ids[0] == ids[1] != ids[2]
    other = parse_probe(f"cg[preconditioner={tmp_path / 'one.py'}:Fake[damping=7]]")
    assert identity.cell_id(replace(CELL, probe=other), MACHINE) not in ids


def test_the_environment_says_where() -> None:
    environment = identity.environment("cpu")
    assert environment["torch_version"] == torch.__version__
    assert environment["device_name"] and environment["platform"] and environment["python_version"]
    assert len(environment["load_average"]) == 3


def git(folder: Path, *arguments: str) -> str:
    settings = ("-c", "user.name=a", "-c", "user.email=a@b")
    done = subprocess.run(["git", "-C", str(folder), *settings, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_that_of_the_checkout_that_tracks_the_file(tmp_path: Path) -> None:
    project, suite = tmp_path / "project", tmp_path / "project" / "suites" / "mine.py"
    suite.parent.mkdir(parents=True)
    suite.write_text("")
    assert identity.commit_of(suite) == (None, None)
    git(project, "init")
    assert identity.commit_of(suite) == (None, None), "in a checkout, but not of it"
    git(project, "add", ".")
    git(project, "commit", "-m", "first")
    (project / "results").write_text("no code: not dirty")
    assert identity.commit_of(suite) == (git(project, "rev-parse", "HEAD"), False)
    environment = identity.environment("cpu", suite)
    assert environment["git_sha"] == git(project, "rev-parse", "HEAD") != environment["curvbench_sha"]
    (project / "suites" / "mine.py").write_text("edited = 1")
    assert identity.commit_of(suite)[1] is True


def test_the_file_of_a_base_class_counts(tmp_path: Path) -> None:
    """Of a probe that is derived from one of curvbench's, or of the user's, the base decides as well."""
    (tmp_path / "base_of_mine.py").write_text("from fake_measure import Fake\n\nclass Base(Fake):\n    pass\n")
    (tmp_path / "mine.py").write_text("from base_of_mine import Base\n\nclass Mine(Base):\n    pass\n")
    probe = parse_probe(f"{tmp_path / 'mine.py'}:Mine")
    before = identity.component(probe)
    assert len(before["source"]) >= 3
    (tmp_path / "base_of_mine.py").write_text("from fake_measure import Fake\n\nclass Base(Fake):\n    x = 1\n")
    assert identity.component(probe) != before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"--device cuda: .* no CUDA device here; use --device cpu"):
        identity.device_name("cuda")


def test_a_cuda_device_has_to_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"gpu {index}")
    assert identity.device_name("cuda") == "gpu 0"
    assert identity.device_name("cuda:1") == "gpu 1"
    with pytest.raises(ValueError, match="there are 2 CUDA devices, the last is cuda:1"):
        identity.device_name("cuda:2")


def test_the_damping_of_the_directions_is_part_of_a_cell() -> None:
    other = Cell("s", Toy(), Fake(), 0, damping=0.5)
    assert identity.cell_id(other, MACHINE) != identity.cell_id(CELL, MACHINE)
