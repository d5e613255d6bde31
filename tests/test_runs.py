"""The list of runs, and notes on them: folder, id and rows stay, and nothing is noted where it cannot be."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest
from fake_measure import Fake, Toy
from frames import START, failed_cell, fisher_cell, write_run

from curvbench import store
from curvbench.analysis import runs
from curvbench.cli.app import main

CELLS = [(Fake(), Toy(), fisher_cell()), (Fake("b"), Toy(), failed_cell())]


def verb(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["runs", *arguments])
    out, err = capsys.readouterr()
    return caught.value.code, out, err


def test_notes_of_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = (write_run(tmp_path, name, CELLS) for name in ("r1", "r2"))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    code, out, _ = verb(
        capsys, str(run), "--label", "a wide net", "--tags", "wide, good", "--note", "see 3", "--archive"
    )
    assert code == 0 and "a wide net" in out and "wide, good" in out and "see 3" in out
    assert {path: path.read_bytes() for path in before} == before
    assert store.read_notes(run) == store.Notes("a wide net", "see 3", ("wide", "good"), archived=True)

    code, out, _ = verb(capsys, "--results", str(tmp_path))
    assert [line.split()[0] for line in out.splitlines()] == ["run", "r2", "1"] and "--archived lists them" in out
    assert "a wide net" in verb(capsys, "--results", str(tmp_path), "--archived")[1]
    assert verb(capsys, "r1", "--results", str(tmp_path), "--unarchive", "--tags", "")[0] == 0
    assert store.read_notes(run) == store.Notes("a wide net", "see 3")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--label", "x"], "name the run"),
        (["{run}", "--label", "x" * 61], "60 letters at most"),
        (["{run}", "--label", "two\nlines"], "of one line"),
        (["{run}", "--tags", "a,a"], "different tags"),
        (["data/sample/mlp", "--note", "x"], "is shipped with curvbench"),
        (["{results}", "--note", "x"], "name one"),
        (["nothing", "--archive"], "no run 'nothing'"),
    ],
)
def test_notes_that_are_refused(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path, "r1", CELLS)
    write_run(tmp_path, "r1", CELLS, suite="t")
    code, _, err = verb(capsys, *(text.format(run=run, results=tmp_path) for text in arguments))
    assert code == 2 and err.count("\n") == 1 and says in err
    assert not (run / "notes.json").exists()


def test_notes_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path, "r1", CELLS)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
    code, _, err = verb(capsys, str(run), "--archive")
    assert code == 2 and err.count("\n") == 1 and "Read-only file system" in err
    assert sorted(path.name for path in run.iterdir()) == ["cells", "logs", "run.json"]


@pytest.mark.parametrize("content", ["", "[]", '{"label": 3}', '{"tags": "a"}', '{"label": "a\\nb"}', "[" * 10**5])
def test_damaged_notes_are_set_aside(content: str, tmp_path: Path) -> None:
    run = write_run(tmp_path, "r1", CELLS)
    (run / "notes.json").write_text(content)
    with store.noting() as noted:
        assert store.read_notes(run) == store.Notes()
    assert len(noted) == 1 and "notes.json" in noted[0]
    (run / "notes.json").write_text(json.dumps({"label": "a", "of a later version": 1}))
    assert store.read_notes(run).label == "a"


def _after(minutes: float) -> datetime:
    return START + timedelta(minutes=minutes)


def test_progress_over_two_commands() -> None:
    """The first takes 4 minutes and is stopped, the second begins an hour later; a third cell came from another run."""
    commands = [{"command": "", "started_at": _after(at).isoformat()} for at in (0, 60)]
    record = {"commands": commands, "cells": [{"id": name} for name in "abcdefgh"]}
    endings = pd.DataFrame(
        {
            "cell_id": ["other", "a", "b", "c", "d"],
            "status": ["ok", "ok", "timeout", "ok", "interrupted"],
            "started_at": pd.to_datetime([_after(at) for at in (-9, 1, 3, 61, 64)]),
            "written_at": pd.to_datetime([_after(at) for at in (-8, 2, 4, 62, 64)]),
        }
    )
    stopped = runs.progress(record, endings, _after(60), False, _after(100))
    assert (stopped.state, stopped.failed, stopped.elapsed) == ("stopped at 3 of 8", 1, (4 + 4) * 60)
    copied = runs.progress(record, endings, _after(99), False, _after(100))
    assert copied.elapsed == (3 + 4) * 60
    running = runs.progress(record, endings, _after(60), True, _after(65))
    assert running.elapsed == (4 + 5) * 60
    assert running.left == 5 * 5 * 60 and running.state == "running, 3 of 8, about 25 min 0 s left"
    record["cells"] = record["cells"][:3]
    assert runs.progress(record, endings, None, False, _after(100)).state == "done"
    assert runs.progress({}, endings, None, False, datetime.now(UTC)).elapsed is None


def test_who_looks_sees_a_run_that_goes_on_and_changes_nothing(tmp_path: Path) -> None:
    run = write_run(tmp_path, "r1", CELLS, planned=2)
    assert runs.look(run).state == "stopped at 2 of 4"
    claims = store.Claims(run)
    files = sorted(run.rglob("*"))
    assert runs.look(run).state.startswith("running, 2 of 4")
    assert sorted(run.rglob("*")) == files
    claims.close()
    assert not store.is_running(run)


@pytest.mark.filterwarnings("always::curvbench.store.SetAside")
def test_what_a_check_said_is_kept_beside_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, baseline = (write_run(tmp_path, name, CELLS[:1]) for name in ("r2", "r1"))
    with pytest.raises(SystemExit):
        main(["check", str(run), "--against", str(baseline), "--metric", "error"])
    assert store.read_check(run) is None, "a part of the rows is not the run"
    with pytest.raises(SystemExit):
        main(["check", str(run), "--against", str(baseline)])
    said = store.read_check(run)
    assert said is not None and said.passed and said.against == str(baseline)
    assert f"- {said.sentences[0]}" in capsys.readouterr().out
    (run / "run.json").unlink()
    (run / "run.json").mkdir()
    with pytest.raises(SystemExit) as caught:
        main(["check", str(run), "--against", str(baseline)])
    err = capsys.readouterr().err
    assert caught.value.code == 0 and err.count("run.json set aside") == 1, "named once, and no part of what is judged"
    (run / "check.json").write_text('{"passed": true}')
    with store.noting() as noted:
        assert store.read_check(run) is None
    assert "lacks against" in noted[0]
