"""The verbs ``status``, ``validate``, ``doctor`` and ``init``, and what the command line says of others."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import SUITE, curvbench, run_folder, start

from curvbench import registry, store
from curvbench.cli import doctor
from curvbench.cli.app import main
from curvbench.cli.verbs.dashboard import has_screen
from curvbench.identity import content
from curvbench.planning import fate
from curvbench.spec import Status

pytestmark = pytest.mark.slow


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A working directory with a suite in it."""
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "toys.py").write_text(SUITE)
    return tmp_path


def verb(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str, str]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    for number, handler in before.items():
        signal.signal(number, handler)
    out, err = capsys.readouterr()
    return caught.value.code, out, err


def test_status_says_why(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    curvbench(here, "run", "suites/toys")
    monkeypatch.chdir(here)
    code, out, _ = verb(capsys, "status", "latest")
    lines = out.splitlines()
    assert code == 0
    elsewhere = " (no file of Toy, Fake here to compare with)"
    assert re.fullmatch(r"stays [0-9a-f]{12} Fake on Toy, seed 0: ok", lines[0].removesuffix(elsewhere))
    assert lines[1].startswith("stays") and f": error; --rerun-failed=error runs it{elsewhere}" in lines[1]
    assert f"Fake[does=unsupported] on Toy, seed 0: unsupported{elsewhere}" in lines[2]
    assert lines[3] == "0 of 3 cells would be run: curvbench run suites/toys"
    (run_folder(here) / "cells" / f"{lines[0].split()[1]}.parquet").unlink()
    assert verb(capsys, "status", "latest")[1].splitlines()[0].endswith(f": never ran{elsewhere}")
    code, _, err = verb(capsys, "status", "nothing")
    assert (code, err.count("\n")) == (2, 1) and "no run 'nothing'" in err


def test_a_fate_for_every_status_and_change(tmp_path: Path) -> None:
    kfac = registry.source(registry.probes()["kfac"])
    cell = {"id": "c", "probe": "kfac", "probe_args": "damping=1", "problem": "mlp", "problem_args": "", "seed": 3}
    cell["sources"] = {"probe": {"content": content(kfac)}}
    now = {"code": "a", "torch": "2", "device": "d"}
    record = {"identity": {**now, "threads": 1}, "cells": [cell]}

    def told(status: Status | None, **changed: str) -> tuple[bool, str]:
        (found,) = fate.fates(record, {"c": status} if status else {}, now | changed)
        assert found[:2] == ("c", "kfac[damping=1] on mlp, seed 3")
        return found[2:]

    assert told(None) == (True, "never ran")
    assert told(Status.OK) == (False, "ok")
    assert told(Status.UNSUPPORTED) == (False, "unsupported")
    assert told(Status.INTERRUPTED) == (True, "interrupted")
    assert told(Status.SKIPPED) == (True, "skipped")
    assert told(Status.TIMEOUT) == (False, "timeout; --rerun-failed=timeout runs it")
    assert told(Status.OK, torch="3") == (True, "torch changed (2, now 3)")
    assert told(Status.OK, code="b", device="e")[1] == (
        "curvbench's code changed (a, now b); the device changed (d, now e)"
    )
    cell["sources"] = {"probe": {"content": "other"}}
    assert told(Status.OK) == (True, "kfac changed")
    inner = {"name": "kfac", "content": "other"}
    cell["sources"] = {"probe": {"content": content(kfac), "inner": [inner]}}
    assert told(Status.OK) == (True, "kfac changed")
    inner["content"] = content(kfac)
    assert told(Status.OK) == (False, "ok")
    cell["sources"] = {"problem": {"content": "x", "file": str(tmp_path / "gone.py")}}
    cell["problem"] = "Mine"
    (found,) = fate.fates(record, {"c": Status.OK}, now)
    assert found[2:] == (False, "ok (no file of Mine here to compare with)")


def test_validate(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(here)
    (here / "good.py").write_text(SUITE.replace('    "empty": Preset([], []),\n', ""))
    code, out, err = verb(capsys, "validate", "good")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "default: 3 cells of 1 problem, 3 probes, 1 seed"
    assert out.splitlines()[-1] == "good can be run: A suite"
    code, _, err = verb(capsys, "validate", "suites/toys")
    assert code == 2 and "the selection is empty: 0 problems" in err and err.count("\n") == 1
    (here / "twice.py").write_text(
        "from curvbench.spec import Preset, Suite\nfrom fake_measure import Fake, Toy\n"
        "class Other(Fake):\n    name = 'Fake'\n"
        "SUITE = Suite('t', {'default': Preset([Toy()], [Fake(), Other()])})\n"
    )
    code, _, err = verb(capsys, "validate", "twice")
    assert code == 2 and "two different components have the same name and hyperparameters: Fake on Toy" in err


def test_init_writes_a_suite_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert verb(capsys, "init", "mine")[0] == 0
    assert "5 cells of 1 problem" in verb(capsys, "validate", "mine/my_suite")[1]
    code, _, err = verb(capsys, "init", "mine")
    assert code == 2 and "is there already" in err
    given = ["-p", "mine/my_suite.py:LayerMean[damping=0.5]", "-m", "mlp[samples=4]", "--engine", "inline"]
    code, out, _ = verb(capsys, "run", "mine/my_suite", *given)
    assert code == 0 and "ok          LayerMean[damping=0.5] on mlp[samples=4], seed 0" in out
    record = (store.resolve("latest")[0] / "run.json").read_text()
    assert '"file": "mine/my_suite.py"' in record
    assert str(tmp_path) not in record, "what is passed on names no folder of this machine"


def test_doctor(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = verb(capsys, "doctor", "--results", str(tmp_path / "not" / "yet"))
    assert code == 0
    assert [line.split()[1] for line in out.splitlines()] == (
        "curvbench python torch cpu cuda parts extras memory results".split()
    )
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(doctor, "LEAST_MEMORY", float("inf"))
    (tmp_path / "file").write_text("")
    code, out, _ = verb(capsys, "doctor", "--results", str(tmp_path / "file"))
    assert code == 2
    assert [line.split()[1] for line in out.splitlines() if line.startswith("BAD")] == ["memory", "results"]


def test_an_unknown_verb_lists_near_misses(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = verb(capsys, "rnu")
    assert (code, out, err) == (2, "", "curvbench: unknown verb 'rnu': did you mean run?\n")


def test_help_shows_whole_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = verb(capsys, "-h")
    assert code == 0 and "..." not in out.partition("Verbs:")[2]
    assert "Show environment, torch, devices, extras, memory and disk, a line each." in " ".join(out.split())


@pytest.mark.parametrize("arguments", [(), ("--dry-run",)])
def test_results_that_cannot_be_written_are_one_line(arguments: tuple[str, ...], here: Path) -> None:
    (here / "results").write_text("a file")
    code, _, err = curvbench(here, "run", "suites/toys", *arguments)
    assert code == 2
    assert err.startswith("curvbench: ") and err.count("\n") == 1


@pytest.mark.long
@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounts a small disk")
def test_a_full_disk_is_one_line_and_keeps_what_is_there(here: Path) -> None:
    disk = here / "results"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "small", str(disk)], check=False).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        assert curvbench(here, "run", "suites/toys", "--preset", "good")[0] == 0
        with pytest.raises(OSError), open(disk / "ballast", "wb") as file:
            while True:
                file.write(b"x" * 2**12)
        code, _, err = curvbench(here, "run", "suites/toys", "--preset", "seeds")
        assert (code, err.count("\n")) == (2, 1) and "No space left on device" in err
        assert list(store.load(disk)["status"].unique()) == ["ok"]
        (disk / "ballast").unlink()
        assert curvbench(here, "run", "suites/toys", "--preset", "seeds")[0] == 0
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.long
def test_two_runs_into_the_same_folder_lose_nothing(here: Path) -> None:
    curvbench(here, "run", "suites/toys", "--preset", "good")
    both = [start(here, "run", "suites/toys", "--preset", preset) for preset in ("seeds", "slow")]
    for process in both:
        process.communicate(timeout=120)
        assert process.returncode == 0
    folder = run_folder(here)
    assert len(store.cell_statuses(folder)) == 15, "twelve of one, three more of the other"
    assert set(store.cell_statuses(folder)) == {cell["id"] for cell in store.read_run(folder)["cells"]}


@pytest.mark.parametrize(
    ("environment", "platform", "expected"),
    [
        ({"DISPLAY": ":0"}, "linux", True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, "linux", True),
        ({}, "linux", False),
        ({"DISPLAY": ":10", "SSH_CONNECTION": "1.2.3.4 5 6.7.8.9 22"}, "linux", False),
        ({}, "darwin", True),
        ({"SSH_TTY": "/dev/ttys001"}, "darwin", False),
    ],
)
def test_a_browser_is_opened_where_its_user_sees_it(environment: dict[str, str], platform: str, expected: bool) -> None:
    assert has_screen(environment, platform) is expected
