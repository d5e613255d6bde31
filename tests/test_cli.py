"""The command line in processes of its own, on cells of the fake ``fake_measure``."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from curvbench import store
from curvbench.cli.app import main
from curvbench.cli.runner import exit_code
from curvbench.spec import Status

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parent
# The fake is injected where a user of Python would: as an option. Ctrl-C is heard as at a terminal, also where the
# tests run in the background of a script, whose shell ignores it.
DRIVER = """
import functools, signal
from curvbench.cli import app
from curvbench.planning import job
signal.signal(signal.SIGINT, signal.default_int_handler)
job.Options = functools.partial(job.Options, measure="fake_measure")
app.main()
"""
SUITE = """
from curvbench.spec import Preset, Search, Suite, Training
from fake_measure import Fake, Toy

SUITE = Suite("A suite", {
    "default": Preset([Toy()], [Fake(), Fake("raise"), Fake("unsupported")]),
    "good": Preset([Toy()], [Fake()]),
    "bad": Preset([Toy()], [Fake("raise")]),
    "dead": Preset([Toy()], [Fake("kill"), Fake("segv")]),
    "seeds": Preset([Toy(), Toy(samples=3)], [Fake(), Fake(damping=0.5)], seeds=(0, 1, 2)),
    "slow": Preset([Toy()], [Fake(), Fake("slow"), Fake("slow", damping=1.0), Fake("slow", damping=2.0)]),
    "skip": Preset([Toy("skip")], [Fake()]),
    "unusable": Preset([Toy("unusable")], [Fake()]),
    "partly": Preset([Toy("unusable"), Toy()], [Fake()]),
    "empty": Preset([], []),
    "search": Preset([Toy()], [Fake("slow")], training=Training(epochs=1, lr=0.1), search=Search({"lr": (1, 2, 3)})),
})
"""
FAKE = f"{TESTS / 'fake_measure.py'}:Fake"
TOY = f"{TESTS / 'fake_measure.py'}:Toy"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A working directory with a space and quotes in its path, and a suite in it."""
    folder = tmp_path / 'it\'s "here"'
    (folder / "suites").mkdir(parents=True)
    (folder / "suites" / "toys.py").write_text(SUITE)
    return folder


def start(here: Path, *arguments: str) -> subprocess.Popen[str]:
    paths = [str(TESTS.parent), str(TESTS)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("CURVBENCH")}
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", DRIVER, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=here, env=environment, stdout=pipe, stderr=pipe, text=True)


def curvbench(here: Path, *arguments: str) -> tuple[int, str, str]:
    process = start(here, *arguments)
    out, err = process.communicate(timeout=120)
    assert "Traceback" not in err
    return process.returncode, out, err


def run_folder(here: Path) -> Path:
    (folder,) = store.resolve(here / "results" / "toys")
    return folder


def test_a_run_from_beginning_to_end(here: Path) -> None:
    code, out, err = curvbench(here, "run", "suites/toys")
    assert (code, err) == (3, "")
    assert re.search(r"\[1/3\] ok          Fake on Toy, seed 0   \d+\.\d s", out)
    assert re.search(r"\[2/3\] error       Fake\[does=raise\] on Toy, seed 0 .* KeyError", out)
    assert "Toy, N = 8, all parameters, epochs = 0" in out
    assert re.search(r"Fake +0\.250\*", out)
    assert "Fake[does=raise]  error" in out
    folder = run_folder(here)
    assert out.splitlines()[-1] == f"results: {folder.relative_to(here)}"
    frame = store.load(here / "results")
    assert set(zip(frame["probe_args"], frame["status"], strict=True)) == {
        ("", "ok"),
        ("does=raise", "error"),
        ("does=unsupported", "unsupported"),
    }
    assert set(frame["run_id"]) == {folder.name}
    record = store.read_run(folder)
    assert record["command"] == "curvbench run suites/toys"
    assert sorted(cell["id"] for cell in record["cells"]) == sorted(set(frame["cell_id"]))

    before = frame["started_at"].tolist()
    code, out, _ = curvbench(here, "run", "suites/toys.py")
    assert code == 3
    assert f"nothing to do: all 3 cells are in {folder.relative_to(here)}" in out
    assert "0.250*" in out
    assert store.load(here / "results")["started_at"].tolist() == before

    (command,) = [line.strip() for line in out.splitlines() if line.strip().startswith("curvbench run")]
    code, out, err = curvbench(here, *shlex.split(command)[1:])
    assert code == 4, "the only cell of that command fails again"
    assert "[1/1] error" in out


@pytest.mark.long
def test_a_run_that_goes_on_has_a_copy_of_its_rows(here: Path) -> None:
    process = start(here, "run", "suites/toys", "--preset", "good", "--seed", "0-63", "--jobs", "2")
    assert process.stdout is not None
    for line in process.stdout:
        if "[50/64]" in line:  # with as many references: three looks at the copy
            break
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    folder = run_folder(here)
    assert list(folder.glob("*.copy")) and 50 <= len(store.cell_statuses(folder)) <= 64


@pytest.mark.long
def test_good_cells_and_more_of_them(here: Path) -> None:
    code, _, _ = curvbench(here, "run", "suites/toys", "--preset", "good")
    assert code == 0
    code, out, _ = curvbench(here, "run", "suites/toys", "--preset", "seeds", "--jobs", "2")
    assert code == 0
    assert out.count("] reference ") == 6
    assert out.count("] ok ") == 11, "one of twelve was there"
    assert "median of 3 seeds ± half the range" in out
    assert "±1.00" in out
    assert store.load(here / "results")["run_id"].nunique() == 1


def test_deaths_and_nothing_but_failures(here: Path) -> None:
    code, out, _ = curvbench(here, "run", "suites/toys", "--preset", "dead")
    assert code == 4
    assert "killed: killed by SIGKILL" in out
    assert "crashed: died of SIGSEGV, see logs/" in out


@pytest.mark.long
def test_a_missing_data_set_succeeds_at_nothing(here: Path) -> None:
    code, out, _ = curvbench(here, "run", "suites/toys", "--preset", "skip")
    assert code == 4
    assert "skipped: no data: get it with curvbench data mnist" in out
    _, out, _ = curvbench(here, "run", "suites/toys", "--preset", "skip")
    assert "nothing to do" not in out, "the data may have come"


@pytest.mark.parametrize(("preset", "expected"), [("unusable", 2), ("partly", 3)])
def test_a_problem_that_cannot_be_measured_is_bad_input(preset: str, expected: int, here: Path) -> None:
    code, out, _ = curvbench(here, "run", "suites/toys", "--preset", preset)
    assert code == expected
    assert "error: reference: ValueError: input 0 holds NaN" in out


def test_the_time_limit_and_the_users_own_probe(here: Path) -> None:
    arguments = ["-p", f"{FAKE}[does=hang]", "-p", FAKE, "-m", f"{TOY}[samples=5]", "--seed", "2", "--timeout", "10s"]
    code, out, _ = curvbench(here, "run", "suites/toys", *arguments)
    assert code == 3
    assert "timeout: not finished within the time limit of 10 s" in out
    assert f"curvbench run suites/toys -p '{FAKE}[does=hang]' -m '{TOY}[samples=5]' --seed 2 --rerun-failed" in out


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_an_interrupt_keeps_what_is_finished(number: signal.Signals, here: Path) -> None:
    process = start(here, "run", "suites/toys", "--preset", "slow", "--force")
    assert process.stdout is not None
    while "[1/4] ok" not in process.stdout.readline():
        assert process.poll() is None
    time.sleep(0.3)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "the same command continues" in out
    assert Status.OK in store.cell_statuses(run_folder(here)).values()
    code, out, _ = curvbench(here, "run", "suites/toys", "--preset", "slow")
    assert code == 0
    assert "[3/3] ok" in out, "what was finished is not run again"
    assert store.load(here / "results")["run_id"].nunique() == 1


def test_over_budget_cells_stay_without_rows(here: Path) -> None:
    code, out, _ = curvbench(here, "run", "suites/toys", "--preset", "slow", "--budget", "1s")
    missing = 4 - store.load(here / "results")["cell_id"].nunique()
    assert missing > 0
    assert f"{missing} of 4 cells were not run: the budget was spent" in out
    assert code in (0, 4)


def test_a_search_and_what_it_settles_share_a_budget(here: Path) -> None:
    code, out, _ = curvbench(here, "run", "suites/toys", "--preset", "search", "--budget", "2s")
    missing = 3 - store.load(here / "results")["cell_id"].nunique()
    assert f"{missing} of 3 cells were not run: the budget was spent" in out and missing > 0
    assert out.count("the budget was spent") == 2
    assert "1 cells wait for the settings that these choose: the budget was spent" in out
    assert code in (0, 4)


def test_json_events_and_nothing_else(here: Path) -> None:
    code, out, _ = curvbench(here, "run", "suites/toys", "--log-json")
    events = [json.loads(line) for line in out.splitlines()]
    finished = [event for event in events if event["event"] == "finished" and event["kind"] == "cell"]
    assert [event["status"] for event in finished] == ["ok", "error", "unsupported"]
    assert [event["finished"] for event in finished] == [1, 2, 3]
    assert events[-1]["event"] == "done"
    assert events[-1]["exit_code"] == code == 3
    assert (here / events[-1]["run"]).is_dir()


def test_inline_and_force(here: Path) -> None:
    inline = ["run", "suites/toys", "--engine", "inline"]
    assert curvbench(here, *inline)[0] == 3
    assert curvbench(here, *inline, "--force")[0] == 3
    assert store.load(here / "results")["run_id"].nunique() == 2
    assert "nothing to do" in curvbench(here, *inline)[1]


def test_a_dry_run_writes_nothing(here: Path) -> None:
    code, out, _ = curvbench(here, "run", "suites/toys", "--dry-run")
    assert code == 0
    assert "3 of 3 cells would be run in a new run" in out
    assert not (here / "results").exists()


def test_parameters_decide_the_cell_and_stand_in_title_row_and_command(here: Path) -> None:
    curvbench(here, "run", "suites/toys", "--engine", "inline")
    _, out, _ = curvbench(here, "run", "suites/toys", "--engine", "inline", "--parameters", "weights")
    assert "Toy, N = 8, weights only, epochs = 0" in out
    assert "--parameters weights --rerun-failed" in out
    frame = store.load(here / "results")
    assert frame.groupby("parameters")["cell_id"].nunique().to_dict() == {"all": 3, "weights": 3}
    assert frame["run_id"].nunique() == 2 and frame["cell_id"].nunique() == 6


@pytest.mark.long
def test_a_truncated_cell_is_named_and_run_again(here: Path) -> None:
    curvbench(here, "run", "suites/toys", "--preset", "good")
    (fragment,) = (run_folder(here) / "cells").iterdir()
    fragment.write_bytes(fragment.read_bytes()[:99])
    code, out, err = curvbench(here, "run", "suites/toys", "--preset", "good")
    assert code == 0
    assert "[1/1] ok" in out
    assert re.match(r"curvbench: warning: .*set aside: not readable as Parquet", err)


BAD = {
    "no suite": (["suites/toy"], "no suite 'suites/toy'; did you mean suites/toys (here)"),
    "hostile suite": (["suites/'a'\n\"b\""], "no suite"),
    "no preset": (["suites/toys", "--preset", "fast"], "no preset 'fast' in this suite; its presets are default, good"),
    "no probe": (["suites/toys", "-p", "kfak"], "unknown probe 'kfak': did you mean kfac"),
    "no problem": (["suites/toys", "-m", "resnett"], "unknown problem 'resnett': did you mean resnet?"),
    "no hyperparameter": (["suites/toys", "-p", "kfac[rank=1]"], "kfac has no hyperparameter 'rank'; it has "),
    "wrong type": (["suites/toys", "-p", "kfac[damping=big]"], "kfac: damping must be a number, got 'big'"),
    "negative damping": (["suites/toys", "-p", "kfac[damping=-1]"], "kfac[damping=-1.0]: "),
    "own damping": (["suites/toys", "-p", f"{FAKE}[damping=-1]"], ": damping must not be negative, got -1.0"),
    "no file": (["suites/toys", "-p", "nowhere.py:Probe"], "no file "),
    "no cuda": (["suites/toys", "--device", "cuda:99"], "--device cuda:99: "),
    "no device": (["suites/toys", "--device", "gpu"], "--device must be cpu, cuda or cuda:i, got 'gpu'"),
    "duration": (["suites/toys", "--timeout", "soon"], "expected a duration such as 90s, 10m or 2h, got 'soon'"),
    "budget": (["suites/toys", "--budget", "0"], "expected a duration such as 90s, 10m or 2h, got '0'"),
    "seeds": (["suites/toys", "--seed", "4-0"], "expected seeds such as 3, 0-4 or 0,2, got '4-0'"),
    "dtype": (["suites/toys", "--dtype", "float16"], "'float16' is not one of 'float32', 'float64'"),
    "parameters": (["suites/toys", "--parameters", "biases"], "'biases' is not one of 'all', 'weights'"),
    "threads": (["suites/toys", "--threads", "0"], "0 is not in the range 1<=x<=1024"),
    "no damping": (
        ["suites/toys", "--damping", "0"],
        "the damping of the exact step must be finite and above zero, got",
    ),
    "negative": (["suites/toys", "--damping", "-1e-3"], "the damping of the exact step must be finite and above zero"),
    "damping nan": (["suites/toys", "--damping", "nan"], "the damping of the exact step must be finite and above zero"),
    "damping inf": (["suites/toys", "--damping", "inf"], "the damping of the exact step must be finite and above zero"),
    "damping text": (["suites/toys", "--damping", "big"], "'big' is not a valid float"),
    "failures": (["suites/toys", "--rerun-failed=oomm"], "unknown failure 'oomm': did you mean oom"),
    "inline": (["suites/toys", "--engine", "inline", "--jobs", "2"], "--engine inline has no time limit and no jobs"),
    "slurm with a budget": (["suites/toys", "--engine", "slurm", "--budget", "1h"], "--engine slurm keeps no budget"),
    "empty": (["suites/toys", "--preset", "empty"], "the selection is empty: 0 problems, 0 probes, 1 seeds"),
    "option": (["suites/toys", "--prob", "kfac"], "No such option"),
    "results in a file": (["suites/toys", "--results", "suites/toys.py"], "Not a directory"),
}


@pytest.mark.parametrize(("arguments", "words"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(
    arguments: list[str], words: str, here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(here)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        main(["run", *arguments])
    signal.signal(signal.SIGTERM, before)
    out, err = capfd.readouterr()
    assert (caught.value.code, out) == (2, "")
    assert err.startswith("curvbench: ") and err.count("\n") == 1
    assert words in err
    assert not (here / "results").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("x = 1", "to SUITE, which is not there"),
        ("SUITE = 3", "to SUITE, which is of type int"),
        ("import nothing_of_the_kind", "ModuleNotFoundError: No module named 'nothing_of_the_kind'"),
    ],
)
def test_a_bad_suite_is_one_line(
    content: str, words: str, here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (here / "suites" / "toys.py").write_text(content)
    test_bad_input_is_one_line(["suites/toys"], words, here, monkeypatch, capfd)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads and writes everything")
@pytest.mark.parametrize("mode", [0o000, 0o500])
def test_results_without_permission_are_one_line(mode: int, here: Path) -> None:
    (here / "results").mkdir()
    (here / "results").chmod(mode)
    code, out, err = curvbench(here, "run", "suites/toys")
    (here / "results").chmod(0o700)
    assert (code, out) == (2, "")
    assert err.startswith("curvbench: ") and "Permission denied" in err and err.count("\n") == 1


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["list"], ["list", "--json"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
    text, _, listed = capsys.readouterr().out.partition("{")
    assert "kfac" in text and "damping=0.001" in text and "resnet" in text
    found = json.loads("{" + listed)
    kfac = next(probe for probe in found["probes"] if probe["name"] == "kfac")
    assert kfac["hyperparameters"]["fisher_type"] == "type-2"
    assert kfac["fisher"] == {"default": "type-2", "types": ["type-2", "mc", "empirical", "forward-only"]}
    assert kfac["cost"]["memory"] == "2 G (M^2 + D^2)" and kfac["errata"][0]["id"] == "E-C8"
    assert all(component["description"] for component in (*found["probes"], *found["problems"]))


def test_data_needs_a_folder_and_a_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CURVBENCH_DATA", raising=False)
    for arguments, words in ((["mnist"], "say where"), (["mnits", "--data", str(tmp_path)], "mnits")):
        with pytest.raises(SystemExit) as caught:
            main(["data", *arguments])
        err = capsys.readouterr().err
        assert caught.value.code == 2
        assert err.startswith("curvbench: ") and words in err and err.count("\n") == 1


def test_help_does_not_import_torch() -> None:
    program = (
        "import sys; from curvbench.cli.app import cli; cli(['run', '-h'], standalone_mode=False); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"torch", "pandas"} & set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        ([Status.OK], 0),
        ([Status.OK, Status.UNSUPPORTED, Status.SKIPPED], 0),
        ([Status.OK, Status.TIMEOUT], 3),
        ([Status.UNSUPPORTED, Status.TIMEOUT], 4),
        ([Status.SKIPPED], 4),
        ([], 4),
    ],
)
def test_exit_codes(statuses: list[Status], code: int) -> None:
    assert exit_code(statuses) == code


def test_in_a_folder_of_suites_a_bad_one_stops_no_other(here: Path) -> None:
    (here / "suites" / "awry.py").write_text("SUITE = 1\n")
    code, out, err = curvbench(here, "run", "suites", "-p", FAKE, "-m", f"{TOY}[samples=5]")
    assert code == 2
    assert err.startswith("curvbench: awry: ") and len(err.splitlines()) == 1
    assert "[1/1] ok" in out


def test_of_a_folder_suites_without_the_preset_are_skipped(here: Path) -> None:
    (here / "suites" / "other.py").write_text(SUITE.replace('"good"', '"better"'))
    code, out, err = curvbench(here, "run", "suites", "--preset", "better", "--dry-run")
    assert code == 0 and "1 of 1 cells would be run" in out
    assert re.fullmatch(r"curvbench: toys skipped: no preset 'better' in this suite; its presets are .*\n", err)
    code, _, err = curvbench(here, "run", "suites", "--preset", "best", "--dry-run")
    assert code == 2 and "no preset 'best'" in err.splitlines()[-1]
