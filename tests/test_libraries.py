"""What a process has loaded, however it did, and whether it is as it was; each process is one of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from curvbench.identity import libraries

ROOT = Path(__file__).parents[1]
PROGRAM = """
import json, sys
from pathlib import Path
from curvbench.identity import libraries
libraries.watch(Path(sys.argv[1]))
sys.path[:0] = sys.argv[2:]
exec(compile(sys.stdin.read(), "<what it does>", "exec"))
print(json.dumps(libraries.loaded()))
"""
BY_PATH = """
import importlib.util
spec = importlib.util.spec_from_file_location("anything", ROOT / "helper.py")
spec.loader.exec_module(importlib.util.module_from_spec(spec))
"""
WAYS = {
    "import": ("import helper", "helper"),
    "package": ("import package", "package"),
    "submodule": ("import package.part", "package.part"),
    "late": ("def update():\n    from package import part\nupdate()", "package.part"),
    "namespace": ("import space.deeper.part", "space.deeper.part"),
    "removed": ("import helper; del sys.modules['helper']", ""),
    "by its path": (BY_PATH, ""),
    "text": ("exec(open(ROOT / 'helper.py').read())", ""),
    "runpy": ("import runpy; runpy.run_path(str(ROOT / 'helper.py'))", ""),
    "other folder": ("import elsewhere", "elsewhere"),
}


def project(folder: Path) -> Path:
    """A suite's folder, and beside it one that an editable installation points to."""
    suites = folder / "project" / "suites"
    for name in ("helper", "package/__init__", "package/part", "space/deeper/part", "../../src/elsewhere"):
        path = suites / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'"""Text."""\nVALUE = "{Path(name).name}"\n')
    return suites


def loaded(suites: Path, program: str) -> dict[str, Any]:
    """The record of a process that does what ``program`` says, with the project on its path."""
    places = [str(suites), str(suites.parents[1] / "src")]
    command = [sys.executable, "-c", PROGRAM, str(suites), *places]
    text = program.replace("ROOT", f"Path({str(suites)!r})")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True, env=environment)
    record: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return record


def on_path(suites: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(suites), str(suites.parents[1] / "src"), *sys.path])


@pytest.mark.parametrize("way", WAYS)
def test_a_file_counts_however_it_is_loaded(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, name = WAYS[way]
    suites = project(tmp_path)
    record = loaded(suites, program)
    on_path(suites, monkeypatch)
    assert libraries.changes(record, suites) == []
    entry = next(e for e in record["files"] if (e["name"] == name and "__init__" not in e["file"]) or way == "package")
    file = suites / entry["file"]
    file.write_text('"""Another text."""\nVALUE = ' + file.read_text().partition("= ")[2] + "# and a comment\n")
    assert libraries.changes(record, suites) == [], "a reworded docstring"
    file.write_text("VALUE = 3")
    assert libraries.changes(record, suites) == [f"{name or 'file'} changed: {entry['file']}"]
    file.unlink()
    (change,) = libraries.changes(record, suites)
    assert change.startswith(f"{name or 'file'} is gone: ")


@pytest.mark.parametrize("way", [way for way in WAYS if way != "other folder"])
def test_a_project_may_move(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suites = project(tmp_path / "here")
    record = loaded(suites, WAYS[way][0])
    moved = shutil.move(tmp_path / "here", tmp_path / "deeper" / "there") / "project" / "suites"
    assert libraries.changes(record, moved) == [], "from another folder, by the files' places"
    monkeypatch.chdir(moved)
    on_path(moved, monkeypatch)
    assert libraries.changes(record, moved) == [], "by the names under which they are imported"
    assert str(tmp_path) not in json.dumps(record)


def test_what_would_be_imported_now_is_what_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suites = project(tmp_path)
    record = loaded(suites, "import helper")
    nearer = tmp_path / "nearer"
    nearer.mkdir()
    (nearer / "helper.py").write_text("VALUE = 'another'")
    on_path(suites, monkeypatch)
    monkeypatch.setattr(sys, "path", [str(nearer), *sys.path])
    assert libraries.changes(record, suites) == ["helper changed: helper.py"]
    assert "helper" not in sys.modules


def test_a_file_that_changed_since_it_was_loaded_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user goes on working while a cell runs: its rows are those of no file that is there."""
    suites = project(tmp_path)
    record = loaded(suites, "import helper, time; time.sleep(0.05); (ROOT / 'helper.py').write_text('VALUE = 3')")
    on_path(suites, monkeypatch)
    assert libraries.changes(record, suites) == ["helper changed while it ran: helper.py"]


def installed(site: Path, version: str, listed: str = "tool/__init__.py,,") -> None:
    """A package as pip leaves it."""
    shutil.rmtree(site, ignore_errors=True)
    (site / "tool").mkdir(parents=True)
    (site / "tool" / "__init__.py").write_text(f"VERSION = {version!r}")
    data = site / f"a_tool-{version}.dist-info"
    data.mkdir()
    (data / "METADATA").write_text(f"Metadata-Version: 2.1\nName: a-tool\nVersion: {version}\n")
    (data / "RECORD").write_text(f"{listed}\na_tool-{version}.dist-info/METADATA,,\n")


def test_an_installed_package_counts_by_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suites, site = project(tmp_path), tmp_path / "src"
    installed(site, "1.0")
    record = loaded(suites, "import tool")
    assert record == {"files": [], "packages": {"a-tool": "1.0"}}
    on_path(suites, monkeypatch)
    (site / "tool" / "__init__.py").write_text("edited = 1")
    assert libraries.changes(record, suites) == []
    installed(site, "2.0")
    assert libraries.changes(record, suites) == ["a-tool changed (1.0, now 2.0)"]
    shutil.rmtree(site)
    assert libraries.changes(record, suites) == ["a-tool 1.0 is not installed any more"]


def test_a_package_from_a_folder_counts_by_its_files_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``pip install .`` again after an edit leaves the version as it was."""
    suites, site = project(tmp_path), tmp_path / "src"
    origin = site / "a_tool-1.0.dist-info" / "direct_url.json"
    installed(site, "1.0", "tool/__init__.py,sha256=a,1")
    origin.write_text('{"url": "file:///tool", "dir_info": {}}')
    record = loaded(suites, "import tool")
    on_path(suites, monkeypatch)
    assert libraries.changes(record, suites) == []
    installed(site, "1.0", "tool/__init__.py,sha256=b,1")
    origin.write_text('{"url": "file:///tool", "dir_info": {}}')
    assert [change.partition(" ")[0] for change in libraries.changes(record, suites)] == ["a-tool"]


def test_a_package_under_work_is_no_installed_one(tmp_path: Path) -> None:
    """Its metadata lie in its own folder, and its version stays while it is edited."""
    suites = project(tmp_path)
    data = suites / "helper.egg-info"
    data.mkdir()
    (data / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: helper\nVersion: 0.1\n")
    (data / "top_level.txt").write_text("helper\n")
    record = loaded(suites, "import helper")
    assert [entry["name"] for entry in record["files"]] == ["helper"]
    assert record["packages"] == {}


def test_python_curvbench_and_the_program_say_nothing(tmp_path: Path) -> None:
    assert loaded(project(tmp_path), "import csv, sqlite3, curvbench.spec") == libraries.NOTHING


def test_records_are_joined_and_contradictions_match_nothing(tmp_path: Path) -> None:
    suites = project(tmp_path)
    one = loaded(suites, "import helper")
    (suites / "helper.py").write_text("VALUE = 3")
    other = loaded(suites, "import helper, package")
    both = libraries.merged([one, other])
    assert libraries.changes(both, suites) == ["helper changed while it ran: helper.py"]
    assert libraries.merged([other, other]) == other


def test_a_process_that_is_not_watched_says_nothing() -> None:
    command = [sys.executable, "-c", "from curvbench.identity import libraries; print(libraries.loaded())"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.stdout.strip() == str(libraries.NOTHING)
