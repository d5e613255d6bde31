from __future__ import annotations

import json
import math
import platform
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest
from click.testing import CliRunner
from fake_measure import Fake, Toy
from frames import failed_cell, write_run
from hypothesis import given
from hypothesis import strategies as st
from regressions import PLANTED, PROBES, cell, run

from curvbench import identity, store
from curvbench.analysis.check import Gate
from curvbench.analysis.compare import compare
from curvbench.analysis.export import TRACKED, asv, github, junit
from curvbench.analysis.views import Quantity
from curvbench.cli.app import cli
from curvbench.spec import METRICS, Status

RECORD = {"run_id": "r1", "environment": {"git_sha": "a" * 40, "host": "box", "python_version": "3.11.7"}}
ERROR = Quantity("error.relative", "network")


@pytest.fixture
def rows(tmp_path: Path) -> pd.DataFrame:
    cells = [(probe, Toy(), cell()) for probe in PROBES]
    cells += [(Fake("bad"), Toy(), failed_cell()), (Fake("not"), Toy(), failed_cell(Status.UNSUPPORTED, "convolution"))]
    return store.load(write_run(tmp_path, "r1", cells))


def test_every_followed_metric_exists() -> None:
    assert {quantity.metric for quantity in TRACKED} <= METRICS.keys()


def test_github_gets_smaller_is_better(rows: pd.DataFrame) -> None:
    entries = {entry["name"]: entry for entry in json.loads(github.of_rows(rows))}
    assert entries["Fake on Toy: flops.counted (step)"] == {
        "name": "Fake on Toy: flops.counted (step)",
        "unit": "FLOP",
        "value": 2e6,
    }
    assert entries["Fake on Toy: 1 - direction.cosine (network)"]["value"] == pytest.approx(0.05)
    assert not any("bad" in name for name in entries)


def test_github_has_the_range_over_seeds(rows: pd.DataFrame) -> None:
    seeds = pd.concat([rows, rows.assign(seed=1, value=rows["value"] * 3)])
    (entry,) = [e for e in json.loads(github.of_rows(seeds)) if e["name"] == "Fake on Toy: flops.counted (step)"]
    assert (entry["value"], entry["range"]) == (4e6, "2e+06 to 6e+06")


def cases(text: str) -> dict[str, tuple[str, str]]:
    root = ElementTree.fromstring(text)
    for suite in root:
        kinds = [child.tag for case in suite for child in case]
        assert suite.attrib["tests"] == str(len(suite))
        assert suite.attrib["failures"] == str(kinds.count("failure"))
        assert suite.attrib["skipped"] == str(kinds.count("skipped"))
    found = root.iter("testcase")
    return {c.attrib["name"]: (c[0].tag, c[0].text or "") if len(c) else ("passed", "") for c in found}


def test_junit_of_a_run(rows: pd.DataFrame) -> None:
    assert cases(junit.of_rows(rows)) == {
        **{f"{probe.label}, seed 0": ("passed", "") for probe in PROBES},
        "Fake[does=bad], seed 0": ("failure", "not finished in 4 s"),
        "Fake[does=not], seed 0": ("skipped", "convolution"),
    }


def test_junit_of_a_gate(rows: pd.DataFrame, tmp_path: Path) -> None:
    found = cases(junit.of_gate(Gate(compare(rows, run(tmp_path, "r2", PLANTED["flops"])))))
    kind, text = found["Fake, seed 0"]
    assert kind == "failure"
    assert text == "flops.counted (step): 2,000,000 to 2,020,000 +1.00% worse"
    assert [name for name, (kind, _) in found.items() if kind == "failure"] == ["Fake, seed 0"]


@given(st.text(max_size=30))
def test_junit_takes_any_reason(text: str) -> None:
    document = junit._document([("p", "n", "error", text)])
    ElementTree.fromstring(document.encode("utf-8", "surrogatepass"))


def test_asv_values_have_gaps_for_absent_cells_and_nothing_for_failed_ones(rows: pd.DataFrame) -> None:
    found = asv.values(rows, ERROR)
    assert found == {("Toy", probe.label): 0.5 for probe in PROBES} | {("Toy", "Fake[does=bad]"): None}
    assert asv.values(rows, Quantity("direction.cosine", "network"))["Toy", "Fake"] == pytest.approx(0.05)


def test_asv_result_files(rows: pd.DataFrame) -> None:
    content = asv.results(rows, RECORD, asv.machine(RECORD, {}))
    assert content["commit_hash"] == "a" * 40
    assert content["params"] == {
        "arch": "",
        "cpu": "",
        "machine": "box",
        "num_cpu": "",
        "os": "",
        "ram": "",
        "python": "3.11",
    }
    values, axes, version, _ = content["results"]["s.track_error_relative_network"]
    assert axes == [
        ["'Toy'"],
        ["'Fake'", "'Fake[damping=0.5]'", "'Fake[does=other]'", "'Fake[does=bad]'", "'Fake[does=not]'"],
    ]
    assert values[:4] == [0.5, 0.5, 0.5, None] and math.isnan(values[4])
    assert version == "1"
    with pytest.raises(ValueError, match="knows no commit"):
        asv.results(rows, {"run_id": "r1"}, {})


def test_asv_keeps_what_it_knows(rows: pd.DataFrame) -> None:
    known: dict[str, Any] = {"version": 2, "other": {"name": "other"}}
    first = asv.benchmarks(rows[rows["probe_args"] == ""], known)
    assert first["other"] == {"name": "other"}
    second = asv.benchmarks(rows, first)["s.track_error_relative_network"]["params"]
    assert second[1][0] == "'Fake'" and len(second[1]) == 5
    assert asv.machine(RECORD, {"cpu": "known"})["cpu"] == "known"


def test_the_flop_count_is_a_version() -> None:
    counted, error = Quantity("flops.counted", "step"), ERROR
    assert asv.benchmark("s", counted, [[], []])["version"] != "" and asv.version(error) == "1"


def test_asv_runs_of_one_commit_are_one_file(rows: pd.DataFrame) -> None:
    """What both have run is as the later one has it; what only one has stays, other suites too."""
    machine = asv.machine(RECORD, {})
    key = "s.track_error_relative_network"
    early = asv.results(rows[rows["probe_args"] != "damping=0.5"].assign(value=rows["value"] * 2), RECORD, machine)
    late = asv.results(rows[rows["probe_args"] != "does=other"], RECORD, machine)
    other = asv.results(rows.assign(suite="t"), RECORD, machine)
    both = asv.joined(asv.joined(other, early), late)
    values, (_, probes), _, _ = both["results"][key]
    found = dict(zip(probes, values, strict=True))
    assert found["'Fake'"] == found["'Fake[damping=0.5]'"] == 0.5 and found["'Fake[does=other]'"] == 1.0
    assert "t.track_error_relative_network" in both["results"]
    assert json.dumps(asv.joined(both, late)) == json.dumps(both)
    assert asv.joined({}, late) == late


def test_asv_files_of_asv_itself_are_kept(rows: pd.DataFrame) -> None:
    """Its own columns come in another order, and it leaves out what is empty at the end."""
    new = asv.results(rows, RECORD, asv.machine(RECORD, {}))
    old = {**new, "result_columns": ["result", "params", "duration"], "results": {"mine.time_x": [[0.5], []]}}
    both = asv.joined(old, new)
    assert both["result_columns"] == ["result", "params", "version", "started_at", "duration"]
    assert both["results"]["mine.time_x"] == [[0.5], [], None, None, None]


@pytest.mark.parametrize("host", ["../../x", "a/b", "..", "c:\\d", "a\nb"])
def test_asv_writes_nowhere_else(host: str) -> None:
    with pytest.raises(ValueError, match="expected a machine that can be the name of a folder"):
        asv.machine({"run_id": "r", "environment": {"host": host}}, {})


@pytest.mark.parametrize("sha", [None, "", "../../../x", "HEAD"])
def test_asv_takes_commits_alone(sha: str | None, rows: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="knows no commit"):
        asv.results(rows, {"run_id": "r1", "environment": {"git_sha": sha}}, asv.machine(RECORD, {}))


def test_asv_leaves_out_runs_without_a_commit(tmp_path: Path) -> None:
    for name, sha in (("r1", "a" * 40), ("r2", None)):
        run(tmp_path / "stored", name)
        folder = tmp_path / "stored" / "s" / name
        store.write_run(folder, store.read_run(folder) | {"environment": {"git_sha": sha, "host": "box"}})
    command = ["export", str(tmp_path / "stored"), "--all-runs", "--format", "asv", "--output", str(tmp_path / "asv")]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.output
    assert "left out, because they know no commit: r2" in done.output
    assert len(list((tmp_path / "asv" / "box").glob("a*.json"))) == 1


def test_exports_and_own_results_of_asv_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """asv has a line per set of params: what it says of machine and Python of its own results is taken over."""
    run(tmp_path / "stored", "r1")
    folder = tmp_path / "stored" / "s" / "r1"
    environment = {"git_sha": "a" * 40, "python_version": platform.python_version(), **identity.machine()}
    store.write_run(folder, store.read_run(folder) | {"environment": environment})
    known = {"machine": "quiet-box", "ram": "much"}
    (tmp_path / ".asv-machine.json").write_text(json.dumps({"quiet-box": known, "version": 1}))
    monkeypatch.setenv("HOME", str(tmp_path))
    own = tmp_path / "asv" / "quiet-box" / "b-existing.json"
    own.parent.mkdir(parents=True)
    own.write_text(json.dumps({"env_name": "existing", "params": {**known, "python": sys.executable}}))
    command = ["export", str(folder), "--format", "asv", "--output", str(tmp_path / "asv")]
    for names, python in ((sys.executable, sys.executable), ("3.1", "{}.{}".format(*sys.version_info))):
        own.write_text(json.dumps({"env_name": "existing", "params": {**known, "python": names}}))
        assert CliRunner().invoke(cli, command).exit_code == 0
        exported = json.loads((own.parent / "aaaaaaaa-curvbench.json").read_text())
        assert exported["params"] == {**known, "python": python}
    assert json.loads((own.parent / "machine.json").read_text()) == {**known, "version": 1}


def test_asv_reads_what_is_exported(tmp_path: Path) -> None:
    """By asv's own code; the machine is what asv finds it to be."""
    results, machines = pytest.importorskip("asv.results"), pytest.importorskip("asv.machine")
    for name in ("r1", "r2"):
        run(tmp_path / "stored", name)
        folder = tmp_path / "stored" / "s" / name
        record = store.read_run(folder)
        environment = {"git_sha": "a" * 40, "python_version": "3.11.7", **identity.machine()}
        store.write_run(folder, record | {"environment": environment})
    command = ["export", str(tmp_path / "stored"), "--all-runs", "--format", "asv", "--output", str(tmp_path / "asv")]
    done = CliRunner().invoke(cli, command)
    assert done.output == f"asv: 1 result files in {tmp_path / 'asv'}\n"
    (found,) = results.iter_results(str(tmp_path / "asv"))
    assert found.commit_hash == "a" * 40
    assert found.get_result_value("s.track_flops_counted_step", found.get_result_params("s.track_flops_counted_step"))
    (file,) = (tmp_path / "asv").glob("*/machine.json")
    kept = json.loads(file.read_text())
    assert {name: kept[name] for name in machines.Machine.get_defaults()} == machines.Machine.get_defaults()


def test_asv_follows_no_link_out_of_its_folder(tmp_path: Path) -> None:
    run(tmp_path / "stored", "r1")
    folder = tmp_path / "stored" / "s" / "r1"
    store.write_run(folder, store.read_run(folder) | {"environment": {"git_sha": "a" * 40, "host": "box"}})
    (tmp_path / "asv").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "asv" / "box").symlink_to(tmp_path / "outside")
    command = ["export", str(folder), "--format", "asv", "--output", str(tmp_path / "asv")]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 2 and "leads out of" in done.output
    assert list((tmp_path / "outside").iterdir()) == []
