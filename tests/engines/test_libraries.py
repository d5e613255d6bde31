"""Cells whose libraries change are measured anew, and no others; the engine's processes say what they had loaded."""

from __future__ import annotations

import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fake_measure import Fake, Toy, reference_identity

import curvbench as cb
from curvbench import store
from curvbench.cells import reference
from curvbench.engines import Engine, Work
from curvbench.engines.inline import InlineEngine
from curvbench.engines.local import LocalEngine
from curvbench.engines.task import Outcome
from curvbench.identity import libraries
from curvbench.planning import fate, plan
from curvbench.registry import load_suite, parse_probe
from curvbench.spec import Cell, Status

ENVIRONMENT = {"git_sha": None, "git_dirty": None, "torch_version": "2", "device_name": "a cpu", "code": "0" * 12}
PROBE = """
import library_under_test
from fake_measure import Fake


class Mine(Fake):
    pass
"""
SUITE = """
import library_under_test
from fake_measure import Fake, Toy
from curvbench import Preset, Suite

SUITE = Suite("mine", {"default": Preset([Toy()], [Fake()])})
"""


@pytest.fixture
def suites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A suite's folder with a probe that needs a library; what it loads here is forgotten."""
    folder = tmp_path / "suites"
    folder.mkdir()
    (folder / "mine.py").write_text(PROBE)
    (folder / "suite.py").write_text(SUITE)
    (folder / "library_under_test.py").write_text("SCALE = 1.0")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "library_under_test", raising=False)
    return folder


def planned(suites: Path, *more: Cell, results: Path | None = None) -> plan.Plan:
    mine = parse_probe(f"{suites / 'mine.py'}:Mine")
    cells = [Cell("s", Toy(), mine, 0), *more]
    return plan.make(cells, results or suites / "results", ENVIRONMENT, root=suites)


def carried_out(made: plan.Plan, suites: Path, engine: Engine | None = None, **settings: Any) -> Path:
    folder = made.begin("curvbench run s", suites / "suite.py")
    todo = {i: made.cells[i] for i in made.todo}
    settings = {"measure": "fake_measure", **settings}
    work = Work(todo, folder, ENVIRONMENT, reference_identity, root=suites, **settings)
    (engine or LocalEngine()).run(work, lambda event: None)
    return folder


def test_a_changed_library_measures_anew_and_a_reworded_one_does_not(suites: Path) -> None:
    library, other = suites / "library_under_test.py", Cell("s", Toy(), Fake(), 0)
    first = carried_out(planned(suites, other), suites)
    assert set(store.load(first)["libraries"].notna()) == {True}
    library.write_text('"""A text."""\nSCALE = 1.0  # one')
    assert planned(suites, other).todo == ()
    library.write_text("SCALE = 3.0")
    made = planned(suites, other)
    assert (made.continued, len(made.todo)) == (None, 1)
    assert [made.cells[i].probe for i in made.shared] == [Fake()]
    record = store.read_run(first)
    changed = plan.Changes(suites).of_cells(first)
    why = {cell.id: cell.why for cell in fate.fates(record, store.cell_statuses(first), {}, changed)}
    assert why[made.todo[0]].startswith("library_under_test changed: library_under_test.py")
    assert next(iter(made.shared)) in why and why[next(iter(made.shared))] == "ok"
    second = carried_out(made, suites)
    assert second != first and planned(suites, other).continued == second and planned(suites, other).todo == ()
    library.write_text("SCALE = 1.0")
    assert (planned(suites, other).continued, planned(suites, other).todo) == (None, ()), "as it was at first"


def test_a_project_that_moves_measures_nothing_again(suites: Path) -> None:
    carried_out(planned(suites), suites)
    moved = Path(shutil.move(suites, suites.parent / "elsewhere" / "suites"))
    assert planned(moved).todo == ()


def test_a_cell_loads_what_it_needs(suites: Path) -> None:
    """The suite that names it, and what that imports, is none of it."""
    load_suite(suites / "suite.py")
    folder = carried_out(plan.make([Cell("s", Toy(), Fake(), 0)], suites / "results", ENVIRONMENT, root=suites), suites)
    (record,) = store.read_libraries(folder).values()
    assert not [entry for entry in record["files"] if Path(entry["file"]).parent == Path()]


def test_the_engine_of_one_process_says_it_too(suites: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "_watch", None)  # what other tests have loaded into this process is not asked for
    made = planned(suites)
    folder = carried_out(made, suites, InlineEngine())
    (record,) = store.read_libraries(folder).values()
    assert "library_under_test.py" in [entry["file"] for entry in record["files"]]
    assert planned(suites).todo == ()
    (suites / "library_under_test.py").write_text("SCALE = 3.0")
    assert len(planned(suites).todo) == 1


def test_cells_without_a_record_are_served(suites: Path) -> None:
    """Those that somebody else has ended: nothing is known of what they had loaded."""
    made = planned(suites)
    folder = made.begin("curvbench run s", suites / "suite.py")
    (task,) = (t for t in Work(made.cells, folder, ENVIRONMENT, reference_identity).tasks() if t.kind == "cell")
    task.fail(Outcome(Status.TIMEOUT, "too slow"), datetime.now(UTC))
    assert planned(suites).todo == ()


def test_a_reference_of_another_library_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = cb.problem("mlp", samples=8, hidden=4, depth=2)
    cell = Cell("s", problem, cb.probe("identity"), 0, meters=("flops",))
    said: list[str] = []
    changed: list[str] = []
    monkeypatch.setattr(libraries, "changes", lambda record, root=None: changed)
    for _ in range(2):
        reference.prepare(cell, tmp_path, None, said.append)
    first = (tmp_path / "reference.pt").stat().st_ino
    reference.prepare(cell, tmp_path, None, said.append)
    assert (tmp_path / "reference.pt").stat().st_ino == first
    changed.append("library changed")
    reference.prepare(cell, tmp_path, None, said.append)
    assert (tmp_path / "reference.pt").stat().st_ino != first


def test_each_set_of_libraries_is_looked_at_once(suites: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[object] = []

    def changes(record: Any, root: Path | None = None) -> list[str]:
        looked.append(record)
        return []

    cells = [Cell("s", Toy(), Fake(damping=float(k)), 0) for k in range(4)]
    carried_out(planned(suites, *cells), suites)
    monkeypatch.setattr(libraries, "changes", changes)
    assert planned(suites, *cells).todo == ()
    assert len(looked) == 2, "that of the probe with a library, and that of the others"


def test_a_cell_that_is_ended_says_what_it_began_with(suites: Path) -> None:
    """A library that made it too slow has changed: it is run again."""
    mine = parse_probe(f"{suites / 'mine.py'}:Mine[does=hang]")
    made = plan.make([Cell("s", Toy(), mine, 0)], suites / "results", ENVIRONMENT, root=suites)
    folder = carried_out(made, suites, timeout=8.0)
    assert store.cell_statuses(folder) == {made.todo[0]: Status.TIMEOUT}
    assert plan.Changes(suites).of_cells(folder) == {made.todo[0]: []}
    (suites / "library_under_test.py").write_text("SCALE = 3.0")
    assert plan.make([Cell("s", Toy(), mine, 0)], suites / "results", ENVIRONMENT, root=suites).todo == made.todo
