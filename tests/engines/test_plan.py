from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fake_measure import Fake, Toy

from curvbench import identity, store
from curvbench.identity import cell as of_cell
from curvbench.planning import plan
from curvbench.spec import Cell, Row, Status, Training

ENVIRONMENT = {
    "git_sha": None,
    "git_dirty": None,
    "torch_version": "2",
    "device_name": "a cpu",
    "code": identity.code_identity(),
}


def cells(*does: str, **settings: Any) -> list[Cell]:
    return [Cell("s", Toy(), Fake(d), 0, **settings) for d in does]


def make(results: Path, wanted: list[Cell], environment: dict[str, Any] = ENVIRONMENT, **settings: Any) -> plan.Plan:
    return plan.make(wanted, results, environment, **settings)


def carry_out(made: plan.Plan, status: Status = Status.OK) -> Path:
    """Write what an engine would write, all with one status."""
    folder = made.begin("curvbench run s", Path("s.py"))
    for name in made.todo:
        context = store.Context(folder.name, name, datetime.now(UTC), ENVIRONMENT)
        row = Row("error.relative", 1.0) if status is Status.OK else Row(status=status, reason="because")
        store.write_cell(folder / "cells", store.rows_to_table(made.cells[name], [row], context))
    return folder


def test_the_second_time_there_is_nothing_to_do(tmp_path: Path) -> None:
    first = make(tmp_path, cells("a", "b"))
    assert (first.continued, len(first.todo)) == (None, 2)
    folder = carry_out(first)
    record = (folder / "run.json").read_bytes()
    second = make(tmp_path, cells("a", "b"))
    assert (second.continued, second.todo, second.shared) == (folder, (), {})
    assert second.begin("again", Path("s.py")) == folder
    assert (folder / "run.json").read_bytes() == record


def test_more_cells_join_the_run(tmp_path: Path) -> None:
    folder = carry_out(make(tmp_path, cells("a")))
    more = make(tmp_path, cells("a", "b"))
    assert (more.continued, [more.cells[i].probe for i in more.todo]) == (folder, [Fake("b")])
    carry_out(more)
    record = store.read_run(folder)
    assert [cell["probe_args"] for cell in record["cells"]] == ["does=a", "does=b"]
    assert record["cells"][0]["hyperparameters"]["probe"] == {"does": "a", "damping": 1e-3}
    assert len(record["commands"]) == 2


@pytest.mark.parametrize(
    ("changed", "settings"),
    [({"torch_version": "3"}, {}), ({"device_name": "another"}, {}), ({}, {"dtype": "float64"}), ({}, {"threads": 2})],
)
def test_another_environment_is_another_run(changed: dict[str, str], settings: dict[str, Any], tmp_path: Path) -> None:
    carry_out(make(tmp_path, cells("a")))
    other = make(tmp_path, cells("a", **settings), ENVIRONMENT | changed)
    assert (other.continued, other.shared, len(other.todo)) == (None, {}, 1)


def test_back_in_the_first_environment_cells_are_shared(tmp_path: Path) -> None:
    first = carry_out(make(tmp_path, cells("a")))
    carry_out(make(tmp_path, cells("a", threads=2)))
    back = make(tmp_path, cells("a", "b"))
    assert (back.continued, len(back.shared), len(back.todo)) == (None, 1, 1)
    folder = back.begin("c", Path("s.py"))
    assert folder != first
    assert len(list((folder / "cells").iterdir())) == 1


def test_another_version_of_a_cell_is_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    carry_out(make(tmp_path, cells("a", "b")))
    whole = identity.component
    monkeypatch.setattr(of_cell, "component", lambda c: whole(c) | ({"edited": 1} if c == Fake("a") else {}))
    edited = make(tmp_path, cells("a", "b"))
    assert edited.continued is None
    assert [edited.cells[i].probe for i in edited.todo] == [Fake("a")]
    assert [edited.cells[i].probe for i in edited.shared] == [Fake("b")]


@pytest.mark.parametrize("status", [Status.OK, Status.UNSUPPORTED])
def test_what_is_answered_is_not_run_again(status: Status, tmp_path: Path) -> None:
    carry_out(make(tmp_path, cells("a")), status)
    assert make(tmp_path, cells("a"), rerun=plan.FAILED).todo == ()


@pytest.mark.parametrize("status", [Status.INTERRUPTED, Status.SKIPPED])
def test_what_was_not_tried_is_run_again(status: Status, tmp_path: Path) -> None:
    folder = carry_out(make(tmp_path, cells("a")), status)
    again = make(tmp_path, cells("a"))
    assert (again.continued, len(again.todo)) == (folder, 1)


@pytest.mark.parametrize("status", sorted(plan.FAILED))
def test_what_failed_is_run_again_if_asked(status: Status, tmp_path: Path) -> None:
    carry_out(make(tmp_path, cells("a")), status)
    assert make(tmp_path, cells("a")).todo == ()
    assert make(tmp_path, cells("a"), rerun=plan.FAILED - {status}).todo == ()
    assert len(make(tmp_path, cells("a"), rerun={status}).todo) == 1


def test_a_truncated_cell_is_run_again(tmp_path: Path) -> None:
    folder = carry_out(make(tmp_path, cells("a")))
    (fragment,) = (folder / "cells").iterdir()
    fragment.write_bytes(fragment.read_bytes()[:50])
    with pytest.warns(UserWarning, match="set aside"):
        assert len(make(tmp_path, cells("a")).todo) == 1


def test_force_begins_a_new_run_and_keeps_the_old(tmp_path: Path) -> None:
    folder = carry_out(make(tmp_path, cells("a")))
    forced = make(tmp_path, cells("a"), force=True)
    assert (forced.continued, forced.shared, len(forced.todo)) == (None, {}, 1)
    assert carry_out(forced) != folder
    assert len(store.load(tmp_path)) == 2
    assert make(tmp_path, cells("a")).todo == ()


def test_a_damaged_record_begins_a_new_run(tmp_path: Path) -> None:
    folder = carry_out(make(tmp_path, cells("a")))
    (folder / "run.json").write_text("{")
    with pytest.warns(UserWarning, match=r"run.json set aside: damaged"):
        new = make(tmp_path, cells("a"))
    assert (new.continued, len(new.shared), new.todo) == (None, 1, ())


def test_an_empty_selection_and_two_of_a_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the selection is empty"):
        make(tmp_path, [])

    class Other(Fake):
        @property
        def name(self) -> str:
            return "Fake"

    with pytest.raises(ValueError, match=re.escape("two different components")):
        make(tmp_path, [*cells("a"), Cell("s", Toy(), Other("a"), 0)])


def test_planning_writes_nothing(tmp_path: Path) -> None:
    make(tmp_path / "results", cells("a"))
    assert list(tmp_path.iterdir()) == []


def test_trainings_at_several_rates_are_cells_of_one_run(tmp_path: Path) -> None:
    one, other = (replace(cells("a")[0], training=Training(3, lr)) for lr in (0.1, 0.2))
    folder = carry_out(make(tmp_path, [one]))
    made = make(tmp_path, [one, other, *cells("a")])
    assert (made.continued, [made.cells[i].training for i in made.todo]) == (folder, [Training(3, 0.2), None])
    carry_out(made)
    recorded = [cell["training"] for cell in store.read_run(folder)["cells"]]
    assert recorded == ["epochs=3,lr=0.1", "epochs=3,lr=0.2", ""]


def test_another_damping_is_another_cell_of_another_run(tmp_path: Path) -> None:
    """One table has one damping, also where its cells were run one after the other."""
    folder = carry_out(make(tmp_path, cells("a")))
    for does in ("a", "b"):
        other = make(tmp_path, cells(does, damping=0.5))
        assert (other.continued, len(other.todo)) == (None, 1)
    assert make(tmp_path, cells("b")).continued == folder
