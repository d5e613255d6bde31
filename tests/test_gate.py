"""``compare``, ``check`` and ``export`` as they are typed, on stored runs with planted changes."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest
from fake_measure import Fake, Toy
from frames import failed_cell, write_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from regressions import IMPROVED, PLANTED, PROBES, rounds, run

from curvbench import store
from curvbench.cli.app import main

Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture
def baseline(curvbench: Typed) -> str:
    """The folder of a baseline that a first run has become."""
    run(Path("results"), "r1")
    code, out, _ = curvbench("check", "r1", "--against", "baselines", "--update")
    assert code == 0
    assert out == "baselines/s/torch-2.13-flops-2.parquet is new: 3 cells\n"
    return "baselines"


def test_an_unchanged_run_passes_ten_times(curvbench: Typed, baseline: str) -> None:
    for k in range(10):
        run(Path("results"), f"same{k}")
        code, out, _ = curvbench("check", "latest", "--against", baseline, "--any-change")
        assert code == 0
        assert out.endswith("check: passed\n")


@pytest.mark.parametrize("kind", ["flops", "memory", "error"])
def test_a_planted_regression_ends_in_one(kind: str, curvbench: Typed, baseline: str) -> None:
    run(Path("results"), "r2")
    run(Path("results"), "r3", PLANTED[kind])
    code, out, _ = curvbench("check", "latest", "--against", baseline)
    assert code == 1
    metric, scope, _ = PLANTED[kind]
    assert re.search(rf"^worse +Fake +Toy +0 +{re.escape(metric)} \({scope}\)", out, re.M)
    assert re.search(r" r3 \(commit abc\) +r2 \(commit abc\)", out), "the run in which it stepped is named"
    code, out, _ = curvbench("compare", "r1", "r3")
    assert code == 1
    assert f"{metric} ({scope})" in out


@pytest.mark.parametrize("kind", ["flops", "memory", "error"])
def test_an_improvement_passes_is_named_and_is_a_change(kind: str, curvbench: Typed, baseline: str) -> None:
    run(Path("results"), "r2", IMPROVED[kind])
    code, out, _ = curvbench("check", "r2", "--against", baseline)
    assert code == 0
    assert re.search(rf"better:\n\n.*\nbetter +Fake +Toy +0 +{re.escape(IMPROVED[kind][0])}", out)
    assert curvbench("check", "r2", "--against", baseline, "--any-change")[0] == 1
    assert curvbench("compare", "r1", "r2")[0] == 0


@pytest.mark.parametrize(("changes", "expected"), [(PLANTED, 1), (IMPROVED, 0), ({"time": None}, 0)])
def test_a_slower_step_fails_where_both_sides_took_turns(
    changes: dict[str, Any], expected: int, curvbench: Typed
) -> None:
    for side, offset in (("base", 0), ("head", 5)):
        rows = run(Path(f"one-{side}"), side, changes["time"] if side == "head" else None)
        store.write_rows(Path(f"{side}.parquet"), rounds(rows, 2, offset))
    code, out, _ = curvbench("check", "head.parquet", "--against", "base.parquet")
    assert code == expected
    assert "not judged" not in out
    code, out, _ = curvbench("check", "one-head", "--against", "one-base", "--metric", "error")
    assert code == 0, "time was not asked for"


def test_times_that_a_baseline_does_not_hold_are_not_spoken_of(curvbench: Typed, baseline: str) -> None:
    """The run has times, and a baseline never has; metrics of another kind that it lacks are still counted."""
    rows = run(Path("results"), "r2")
    assert rows["metric"].str.startswith("time.").any()
    code, out, _ = curvbench("check", "r2", "--against", baseline)
    assert code == 0 and "not judged" not in out and "could not be judged" not in out
    store.write_rows(Path("more.parquet"), rows.replace({"metric": {"error.off_block": "error.kl"}}))
    _, out, _ = curvbench("check", "more.parquet", "--against", baseline)
    assert "not judged: 3 (A has no such metric in any cell)\nnot judged: 3 (B has" in out


def test_on_github_the_answer_is_a_summary_and_annotations(
    curvbench: Typed, baseline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On standard output stands what ``--format`` says, and a second check adds to the summary of the step."""
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "s.py").write_text("")
    for name, value in {"ACTIONS": "true", "STEP_SUMMARY": "summary.md", "WORKSPACE": str(tmp_path.parent)}.items():
        monkeypatch.setenv(f"GITHUB_{name}", value)
    run(Path("results"), "r2", PLANTED["flops"])
    code, out, err = curvbench("check", "r2", "--against", baseline, "--format", "json")
    assert code == 1 and json.loads(out)["passed"] is False
    assert err.startswith(f"::error file={tmp_path.name}/suites/s.py,title=Fake on Toy%2C seed 0::worse: flops.counted")
    assert curvbench("check", "r1", "--against", baseline)[::2] == (0, "")
    summary = Path("summary.md").read_text()
    assert re.findall("^### .*", summary, re.M) == [
        "### curvbench check: 1 of 3 cells fail",
        "### curvbench check: passed",
    ]
    Path("summary.md").write_text("x" * (2**20 - 50))
    assert curvbench("check", "r1", "--against", baseline)[0] == 0
    assert Path("summary.md").stat().st_size <= 2**20, "GitHub refuses a longer summary as a whole"


def test_on_github_bad_input_is_an_error_of_the_step(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    run(Path("results"), "r1")
    with pytest.raises(SystemExit, match="2"):
        main(["check", "r1", "--against", "baselines"])
    told, command = capsys.readouterr().err.splitlines()
    assert "--update` makes this run the baseline" in told
    assert command == told.replace("curvbench: ", "::error title=curvbench::", 1)


def test_updating_says_what_changed_and_leaves_an_equal_baseline_alone(curvbench: Typed, baseline: str) -> None:
    file = Path(baseline, "s", "torch-2.13-flops-2.parquet")
    before = file.read_bytes()
    run(Path("results"), "r2")
    _, out, _ = curvbench("check", "r2", "--against", baseline, "--update")
    assert "is left as it is" in out and file.read_bytes() == before
    run(Path("results"), "r3", PLANTED["flops"])
    _, out, _ = curvbench("check", "r3", "--against", baseline, "--update")
    assert "2,000,000  2,020,000  +1.00%" in out and "is rewritten" in out
    assert curvbench("check", "r3", "--against", baseline, "--any-change")[0] == 0
    assert curvbench("check", "r1", "--against", baseline, "--any-change")[0] == 1


def test_a_baseline_with_failed_cells(curvbench: Typed) -> None:
    bad = Fake("bad")
    write_run(Path("results"), "r0", [(bad, Toy(), failed_cell())])
    code, _, err = curvbench("check", "r0", "--against", "b", "--update")
    assert (code, err) == (2, "curvbench: nothing of this run succeeded: it is no baseline\n")
    rows = run(Path("results"), "r1", probes=PROBES[:1])
    write_run(Path("results"), "r2", [(bad, Toy(), failed_cell())])
    failed = store.load(Path("results/s/r2")).assign(cell_id="other")
    store.write_rows(Path("both.parquet"), pd.concat([rows, failed]))
    curvbench("check", "both.parquet", "--against", "b", "--update")
    run(Path("results"), "r3", probes=[PROBES[0], bad])
    code, out, _ = curvbench("check", "r3", "--against", "b")
    assert code == 0
    assert re.search(r"only in B +Fake\[does=bad\] .* timeout: not finished in 4 s", out)


def test_formats_of_a_check(curvbench: Typed, baseline: str) -> None:
    run(Path("results"), "r2", PLANTED["flops"])
    command = ("check", "r2", "--against", baseline)
    content = json.loads(curvbench(*command, "--format", "json")[1])
    assert content["passed"] is False and content["failing"][0]["b"] == 2.02e6
    assert "| worse | Fake | Toy |" in curvbench(*command, "--format", "markdown")[1]
    table = list(csv.DictReader(io.StringIO(curvbench(*command, "--format", "csv")[1])))
    assert [row["metric"] for row in table if row["verdict"] == "worse"] == ["flops.counted"]
    code, out, _ = curvbench(*command, "--format", "junit", "--output", "junit.xml")
    assert code == 1 and "check: FAILED" in out, "the log has the reason too"
    assert ElementTree.parse("junit.xml").getroot()[0].attrib["failures"] == "1"


def test_formats_of_a_comparison(curvbench: Typed) -> None:
    run(Path("results"), "r1")
    run(Path("results"), "r2", PLANTED["error"])
    code, out, _ = curvbench("compare", "r1", "r2", "--format", "json")
    assert code == 1 and {row["verdict"] for row in json.loads(out)} == {"equal", "worse", "within"}
    assert len(list(csv.DictReader(io.StringIO(curvbench("compare", "r1", "r2", "--format", "csv")[1])))) > 50
    assert "| +0.10% worse |" in curvbench("compare", "r1", "r2", "--format", "markdown")[1]
    code, out, _ = curvbench("compare", "r1", "r2", "-p", "Fake[damping=0.5]", "--metric", "error")
    assert code == 0 and "nothing changed" in out
    assert curvbench("compare", "r1", "r2", "--threshold", "error=0.01")[0] == 0


def test_differing_hardware_is_said_first(curvbench: Typed) -> None:
    rows = run(Path("results"), "r1")
    store.write_rows(Path("other.parquet"), rows.assign(device_name="another cpu"))
    _, out, _ = curvbench("compare", "r1", "other.parquet")
    assert out.splitlines()[3] == "differs: device_name: a cpu in A, another cpu in B"


def test_exports(curvbench: Typed) -> None:
    rows = run(Path("results"), "r1")
    assert len(json.loads(curvbench("export", "r1", "--format", "json")[1])) == len(rows)
    assert len(list(csv.DictReader(io.StringIO(curvbench("export", "r1", "--format", "csv")[1])))) == len(rows)
    assert curvbench("export", "r1", "--format", "parquet", "--output", "all.parquet")[0] == 0
    assert store.load("all.parquet").drop(columns="samples").equals(rows.drop(columns="samples"))
    assert curvbench("export", "r1", "--format", "github", "--output", "github.json")[0] == 0
    assert json.loads(Path("github.json").read_text())[0]["unit"] == "FLOP"
    assert curvbench("export", "all.parquet", "--format", "junit")[1].startswith("<?xml")
    record = store.read_run(Path("results/s/r1"))
    store.write_run(Path("results/s/r1"), record | {"environment": record["environment"] | {"git_sha": "abcdef0"}})
    code, out, _ = curvbench("export", "results", "--format", "asv", "--output", "asv", "--all-runs")
    assert (code, out) == (0, "asv: 1 result files in asv\n")
    assert {path.name for path in Path("asv").rglob("*.json")} == {
        "benchmarks.json",
        "machine.json",
        "abcdef0-curvbench.json",
    }


BAD = (
    (("check", "nothing", "--against", "b"), "no run 'nothing'"),
    (("check", "r1", "--against", "nothing"), "no run 'nothing'"),
    (
        ("check", "r1", "--against", "to be"),
        "`curvbench check r1 --against 'to be' --update` makes this run the baseline",
    ),
    (
        ("check", "r1", "--against", "folder"),
        "'folder' holds no baseline; `curvbench check r1 --against folder --update`",
    ),
    (("check", "r1", "--against", "old"), "`curvbench check r1 --against old --update` makes this run the baseline"),
    (("check", "r1"), "--against is missing: say with what r1 is compared; `curvbench check r1 --against baselines"),
    (
        ("check", "r1", "--against", "old"),
        "no baseline torch-2.13-flops-2 of s in 'old'; there are: torch-2.12-flops-2",
    ),
    (
        ("check", "r1", "--against", "old/s/torch-2.12-flops-2.parquet"),
        "the baseline has torch_version 2.12, the run",
    ),
    (
        ("check", "r1", "--against", "weights.parquet"),
        "the baseline has parameters weights, the run has all, and no gate",
    ),
    (("check", "empty", "--against", "r1"), "empty has no rows"),
    (("check", "r1", "--against", "apart"), "share no cell"),
    (("check", "r1", "--against", "damaged.parquet"), "damaged.parquet"),
    (("check", "r1", "--against", "b", "--update", "-p", "Fake"), "--update makes the whole run the baseline"),
    (("check", "r1", "--against", "b", "--update", "--any-change"), "--update makes the whole run the baseline"),
    (("check", "r1", "--against", "b", "--update", "--format", "json"), "--update makes the whole run the baseline"),
    (("compare", "r1", "r1", "-p", "nobody"), "A has no rows"),
    (("compare", "r1", "r1", "--threshold", "errors=1"), "no metric begins with 'errors'"),
    (("compare", "r1", "r1", "--sort", "size"), "'size' is not one of"),
    (("export", "r1", "--format", "asv"), "say where with --output"),
    (("export", "all.parquet", "--format", "asv", "--output", "asv"), "is no run"),
    (("export", "r1", "--format", "xml"), "'xml' is not one of"),
    (("export", "r1", "--format", "csv", "--output", "nowhere/file.csv"), "No such file"),
)


@pytest.mark.filterwarnings("ignore:.*set aside")
@pytest.mark.parametrize(("typed", "expected"), BAD, ids=[" ".join(typed) for typed, _ in BAD])
def test_bad_input_is_one_line_and_two(typed: tuple[str, ...], expected: str, curvbench: Typed) -> None:
    rows = run(Path("results"), "r1")
    old = rows.assign(torch_version="2.12")
    store.write_rows(Path("old/s/torch-2.12-flops-2.parquet"), old)
    store.write_rows(Path("all.parquet"), rows)
    store.write_rows(Path("weights.parquet"), rows.assign(parameters="weights"))
    run(Path("results"), "apart", probes=[Fake("strange")])
    write_run(Path("results"), "empty", [])
    Path("damaged.parquet").write_bytes(b"PAR1")
    Path("folder").mkdir()
    code, out, err = curvbench(*typed)
    assert (code, out) == (2, "")
    assert expected in err


@pytest.mark.parametrize("verb", ["compare", "check", "export"])
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20))
def test_any_text_for_a_run_is_bad_input_or_a_run(verb: str, text: str, curvbench: Typed) -> None:
    rest = {"compare": ["r1"], "check": ["--against", "r1"], "export": ["--format", "csv"]}[verb]
    code, _, err = curvbench(verb, *rest, "--", text)
    assert code == 2 and err.startswith("curvbench: ")
