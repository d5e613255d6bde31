from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from regressions import run

from curvbench import store
from curvbench.cli import locate

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    for name in ("r1", "r2", "r3"):
        run(folder, name)
    for name in ("r1", "r2"):
        record = store.read_run(folder / "s" / name)
        record["environment"]["git_sha"] = SHA
        store.write_run(folder / "s" / name, record)
    return folder


def names(run: str, results: Path, all_runs: bool = False) -> list[str]:
    return [path.name for path in locate.locate(run, results, all_runs)]


def test_runs_folders_files_ids_latest_and_revisions(results: Path) -> None:
    assert names(str(results), results) == ["r3"]
    assert names(str(results), results, all_runs=True) == ["r1", "r2", "r3"]
    assert names(str(results / "s" / "r1"), results) == ["r1"]
    assert names(str(results / "s" / "r1" / "cells"), results) == ["cells"]
    assert names(str(results / "s" / "r1" / "cells" / "c0.parquet"), results) == ["c0.parquet"]
    assert names("r2", results) == names(SHA[:7], results) == ["r2"]
    assert names("latest", results) == ["r3"]
    assert names(SHA, results, all_runs=True) == ["r1", "r2"]


def test_a_name_that_git_knows(results: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "one"], ["tag", "v1"]):
        subprocess.run([*git, *command], check=True, capture_output=True)
    sha = subprocess.run([*git, "rev-parse", "v1"], check=True, capture_output=True, text=True).stdout.strip()
    record = store.read_run(results / "s" / "r3")
    store.write_run(results / "s" / "r3", record | {"environment": {"git_sha": sha, "git_dirty": True}})
    assert names("v1", results) == ["r3"]
    assert locate.commit(results / "s" / "r3") == sha[:10] + "+"
    with pytest.raises(ValueError, match=r"no run 'v2'.*; git has no such revision"):
        locate.locate("v2", results)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "two"], check=True, capture_output=True)
    with pytest.raises(ValueError, match=r"git knows it as \w{10}, at which no run in .* was made"):
        locate.locate("HEAD", results)


def test_outside_git_it_is_said(results: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(ValueError, match=r"no run 'v2'.* no git checkout here"):
        locate.locate("v2", results)
    assert names(SHA, results) == ["r2"], "a hash needs no git"


@pytest.mark.parametrize("text", ["", "--help", "abcdef1", "\n", "HEAD; ls", "../results"])
def test_nothing_of_that_name(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no "):
        locate.locate(text or "''", tmp_path / "nowhere")


def test_an_empty_run_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "s" / "r1"
    (folder / "cells").mkdir(parents=True)
    store.write_run(folder, {"run_id": "r1"})
    with pytest.raises(ValueError, match="r1 has no rows"):
        locate.read("r1", tmp_path / "results")


def test_filters_take_labels_names_and_beginnings(results: Path) -> None:
    rows = locate.read("r3", results)
    assert set(locate.choose(rows, ["Fake[damping=0.5]"], [], [])["probe_args"]) == {"damping=0.5"}
    assert len(locate.choose(rows, ["Fake"], ["Toy"], [])) == len(rows)
    assert set(locate.choose(rows, ["mine/my_probe.py:Fake[damping=0.5]"], [], [])["probe_args"]) == {"damping=0.5"}
    assert set(locate.choose(rows, [], [], ["flops.c"])["metric"]) == {"flops.counted"}
    assert locate.choose(rows, ["nobody"], [], []).empty
