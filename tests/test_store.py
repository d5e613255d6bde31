from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_measure import Fake, Toy
from filelock import FileLock, Timeout

from curvbench import store
from curvbench.spec import Cell, Row, Status
from curvbench.spec.pictures import Blocks
from curvbench.store import copies, fragments

CONTRACT = (
    "schema_version run_id suite cell_id problem problem_args probe probe_args seed status reason metric scope epoch "
    "step unit better value samples started_at git_sha git_dirty curvbench_version curvbench_sha libraries "
    "torch_version device device_name dtype threads parameters "
    "flop_model method"
)
ENVIRONMENT = {"git_sha": "abcdef0", "git_dirty": False, "torch_version": "2.13", "device_name": "a cpu"}
ROWS = (
    Row("error.relative", 0.5, epoch=3),
    Row("flops.uncounted_ops", 0.0, "step", reason=""),
    Row("time.wall", 1.0, "step", samples=[0.5, 1.5], method="a clock"),
)
FAILED = (Row(status=Status.TIMEOUT, reason="too 'slow'\nby \"far\"", scope=""),)


def table(cell_id: str = "c1", run_id: str = "r1", rows: Sequence[Row] = ROWS, minute: int = 0) -> pa.Table:
    context = store.Context(run_id, cell_id, datetime(2025, 1, 1, 0, minute, tzinfo=UTC), ENVIRONMENT)
    return store.rows_to_table(Cell("s", Toy(samples=9), Fake(), 7, dtype="float64"), rows, context)


def run(results: Path, run_id: str = "r1", *cells: str, suite: str = "s") -> Path:
    folder = results / suite / run_id
    (folder / "cells").mkdir(parents=True)
    for cell in cells:
        store.write_cell(folder / "cells", table(cell, run_id))
    store.write_run(folder, {"run_id": run_id})
    return folder


def test_the_columns_are_those_of_the_contract() -> None:
    assert store.SCHEMA.names == CONTRACT.split()
    assert store.SCHEMA.field("samples").type == pa.list_(pa.float64())
    assert all(field.metadata[b"description"] for field in store.SCHEMA)


def test_what_is_written_is_loaded(tmp_path: Path) -> None:
    folder = run(tmp_path / "re'sults\n x", "r1", "c1")
    frame = store.load(folder)
    assert list(frame.columns) == CONTRACT.split()
    assert frame["metric"].tolist() == ["error.relative", "flops.uncounted_ops", "time.wall"]
    assert frame["value"].tolist() == [0.5, 0.0, 1.0]
    assert frame["samples"][2].tolist() == [0.5, 1.5]
    assert frame["epoch"].tolist() == [3, pd.NA, pd.NA]
    assert frame["unit"].tolist() == ["1", "1", "s"]
    assert frame["better"].tolist() == ["lower"] * 3
    assert set(frame["problem_args"]) == {"samples=9"}
    assert (frame["seed"] == 7).all() and frame["seed"].dtype == "int64"
    assert frame["started_at"][0] == pd.Timestamp("2025-01-01", tz="UTC")
    assert frame["value"].dtype == "float64"


def test_every_row_of_a_surrogate_says_so() -> None:
    context = store.Context("r1", "c1", datetime(2025, 1, 1, tzinfo=UTC), ENVIRONMENT)
    cell = Cell("s", Toy(), Fake(), 0, surrogate=True)
    methods = [store.rows_to_table(cell, rows, context)["method"].to_pylist() for rows in (ROWS, FAILED)]
    assert methods == [["surrogate", "surrogate", "surrogate, a clock"], ["surrogate"]]


def test_units_are_in_the_files(tmp_path: Path) -> None:
    path = store.write_cell(tmp_path, table())
    schema = pq.read_schema(path)
    assert schema.field("started_at").metadata[b"unit"] == b"UTC"
    assert schema.field("samples").metadata == {b"unit": b"column unit"}
    assert schema.field("reason").metadata is None, "a description in each of ten thousand files only slows the reader"


def test_a_failed_cell_has_a_reason_and_no_value(tmp_path: Path) -> None:
    store.write_cell(tmp_path, table(rows=FAILED))
    frame = store.load(tmp_path)
    assert frame["status"].tolist() == ["timeout"]
    assert frame["reason"].tolist() == ["too 'slow'\nby \"far\""]
    assert frame["value"].isna().all()


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown metric 'error.relativ': did you mean error.relative"):
        table(rows=[Row("error.relativ", 1.0)])


def test_writing_leaves_nothing_else(tmp_path: Path) -> None:
    store.write_cell(tmp_path, table())
    store.write_cell(tmp_path, table(rows=FAILED))
    assert [path.name for path in tmp_path.iterdir()] == ["c1.parquet"]
    assert store.cell_statuses(tmp_path) == {}
    assert store.fragment_status(tmp_path / "c1.parquet") is Status.TIMEOUT


def test_a_write_that_fails_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store.write_cell(tmp_path, table())
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        store.write_cell(tmp_path, table(rows=FAILED))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["c1.parquet"]


@pytest.mark.parametrize("cut", [0, 3, 40, -1, -200])
def test_truncated_fragments_are_named_and_set_aside(cut: int, tmp_path: Path) -> None:
    folder = run(tmp_path, "r1", "good", "bad")
    bad = folder / "cells" / "bad.parquet"
    bad.write_bytes(bad.read_bytes()[:cut])
    with pytest.warns(UserWarning, match=re.escape(f"{bad} set aside")):
        frame = store.load(tmp_path)
    assert set(frame["cell_id"]) == {"good"}
    with pytest.warns(UserWarning):
        assert store.cell_statuses(folder) == {"good": Status.OK}


def test_every_damaged_byte_range_is_survived(tmp_path: Path) -> None:
    whole = store.write_cell(tmp_path, table()).read_bytes()
    for start in range(0, len(whole), len(whole) // 40):
        path = tmp_path / "damaged.parquet"
        path.write_bytes(whole[:start] + b"\xff" * 8 + whole[start + 8 :])
        try:
            store.read_cell(path)
        except ValueError:
            continue


@pytest.mark.parametrize("foreign", [pa.table({"a": [1]}), pa.table({name: [[1]] for name in CONTRACT.split()})])
def test_foreign_files_are_named_and_set_aside(foreign: pa.Table, tmp_path: Path) -> None:
    pq.write_table(foreign, tmp_path / "foreign.parquet")
    with pytest.warns(UserWarning, match=r"foreign.parquet set aside: no fragment of curvbench"):
        assert store.load(tmp_path).empty


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    newer = table().set_column(0, store.SCHEMA.field(0), pa.array([store.SCHEMA_VERSION + 1] * 3, pa.int64()))
    pq.write_table(newer, tmp_path / "new.parquet")
    now = store.SCHEMA_VERSION
    said = rf"new.parquet was written in schema version {now + 1}, .* up to {now}: update it"
    with pytest.raises(ValueError, match=said):
        store.load(tmp_path)


@pytest.mark.parametrize("by_link", [True, False])
def test_shared_cells_come_once(by_link: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = run(tmp_path, "r1", "c1"), run(tmp_path, "r2", "c2")
    if not by_link:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    store.share_cell(first / "cells" / "c1.parquet", second / "cells")
    assert set(store.load(second)["cell_id"]) == {"c1", "c2"}
    assert len(store.load(tmp_path)) == 2 * len(ROWS)
    assert len(store.load([first, second, tmp_path / "s"])) == 2 * len(ROWS)


BLOCKS = Blocks("fc", 2, np.eye(4), np.ones((4, 4)), {})


@pytest.mark.parametrize("by_link", [True, False])
def test_blocks_are_shared_with_their_cell(by_link: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = run(tmp_path, "r1", "c1", "c2"), run(tmp_path, "r2")
    store.write_blocks(first, "c1", BLOCKS)
    if not by_link:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    for cell in ("c1", "c2"):
        store.share_cell(first / "cells" / f"{cell}.parquet", second / "cells")
    kept = store.read_blocks(second, "c1")
    assert kept is not None and kept.approximation.tolist() == BLOCKS.approximation.tolist()
    assert store.read_blocks(second, "c2") is None
    assert set(store.load(second)["cell_id"]) == {"c1", "c2"}


def test_damaged_blocks_are_named_and_strangers_open_no_other_file(tmp_path: Path) -> None:
    folder = run(tmp_path, "r1", "c1")
    store.write_blocks(folder, "c1", BLOCKS)
    path = folder / "blocks" / "c1.npz"
    (folder / "outside.npz").write_bytes(path.read_bytes())
    assert store.read_blocks(folder, "../outside") is None
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"c1.npz: damaged, or no blocks of curvbench"):
        store.read_blocks(folder, "c1")


def test_the_same_cell_of_two_runs_comes_twice(tmp_path: Path) -> None:
    run(tmp_path, "r1", "c1")
    run(tmp_path, "r2", "c1")
    assert len(store.load(tmp_path)) == 2 * len(ROWS)


def test_one_file_and_exported_files_load(tmp_path: Path) -> None:
    folder = run(tmp_path, "r1", "c1", "c2")
    assert set(store.load(folder / "cells" / "c1.parquet")["cell_id"]) == {"c1"}
    store.load(folder).to_parquet(tmp_path / "all.parquet")
    pd.testing.assert_frame_equal(store.load(tmp_path / "all.parquet"), store.load(folder))


def test_no_results_and_no_cells(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no results at '.*nothing'"):
        store.load(tmp_path / "nothing")
    assert list(store.load(tmp_path).columns) == CONTRACT.split()


def test_rows_come_in_the_order_of_time(tmp_path: Path) -> None:
    for cell, minute in (("a", 2), ("b", 1), ("c", 3)):
        store.write_cell(tmp_path, table(cell, minute=minute))
    assert list(dict.fromkeys(store.load(tmp_path)["cell_id"])) == ["b", "a", "c"]


def test_runs_are_found(tmp_path: Path) -> None:
    old, new, other = run(tmp_path, "r1"), run(tmp_path, "r2"), run(tmp_path, "r0", suite="t")
    assert store.resolve(old) == [old]
    assert store.resolve(tmp_path / "s") == [new]
    assert store.resolve(tmp_path) == [new, other]
    assert store.resolve("latest", tmp_path) == [new]
    assert store.resolve("r0", tmp_path) == [other]


@pytest.mark.parametrize(
    ("asked", "words"), [("run1", "did you mean r1?"), ("latest", "no run 'latest'"), ("x" * 9, "known")]
)
def test_a_run_that_is_not_there(asked: str, words: str, tmp_path: Path) -> None:
    if asked != "latest":
        run(tmp_path, "r1")
    with pytest.raises(ValueError, match=re.escape(words)):
        store.resolve(asked, tmp_path)
    with pytest.raises(ValueError, match="no run"):
        store.resolve("r1", tmp_path / "nowhere")


def test_new_runs_have_names_that_sort(tmp_path: Path) -> None:
    made = [store.new_run(tmp_path / "s", "0123456789ab") for _ in range(3)]
    assert len(set(made)) == 3
    assert made == sorted(made)
    assert all(re.match(r"\d{8}T\d{6}Z-01234567", path.name) for path in made)


@pytest.mark.parametrize("content", ["", "{", "[1]"])
def test_a_damaged_record_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.warns(store.SetAside, match=r"run.json set aside: damaged: "):
        assert store.read_run(tmp_path) == {}


def test_a_record_is_kept(tmp_path: Path) -> None:
    store.write_run(tmp_path, {"command": "curvbench run 'a\nb'", "path": Path("x")})
    assert store.read_run(tmp_path) == {"command": "curvbench run 'a\nb'", "path": "x"}
    assert json.loads((tmp_path / "run.json").read_text())


def test_large_references_are_dropped(tmp_path: Path) -> None:
    for name, size in (("small", 10), ("large", 1000)):
        (tmp_path / "references" / name).mkdir(parents=True)
        (tmp_path / "references" / name / "file").write_bytes(b"x" * size)
    store.drop_large_references(tmp_path, limit=100)
    assert [p.name for p in (tmp_path / "references").iterdir()] == ["small"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads and writes everything")
def test_folders_without_permission_are_an_error(tmp_path: Path) -> None:
    folder = run(tmp_path, "r1", "c1")
    (folder / "cells").chmod(0)
    try:
        with pytest.warns(store.SetAside, match=r"cells set aside: it cannot be read \(Permission denied\)"):
            assert store.load(tmp_path).empty
        with pytest.raises(PermissionError):
            store.check_writable(folder)
    finally:
        (folder / "cells").chmod(0o755)


def test_only_the_columns_that_are_asked_for(tmp_path: Path) -> None:
    folder = run(tmp_path, "r1", "c1", "c2")
    every, some = store.load(folder), store.load(folder, ["value", "metric", "seed"])
    pd.testing.assert_frame_equal(some, every[["value", "metric", "seed"]])
    with pytest.raises(ValueError, match="unknown column 'metrik': did you mean metric"):
        store.load(folder, ["metrik"])


def test_a_newer_schema_is_refused_whatever_is_asked_for(tmp_path: Path) -> None:
    newer = table().set_column(0, store.SCHEMA.field(0), pa.array([store.SCHEMA_VERSION + 1] * 3, pa.int64()))
    pq.write_table(newer, tmp_path / "new.parquet")
    with pytest.raises(store.NewerSchema):
        store.load(tmp_path, ["value"])


def test_every_run_below(tmp_path: Path) -> None:
    old, new, other = run(tmp_path, "r1"), run(tmp_path, "r2"), run(tmp_path, "r0", suite="t")
    assert store.runs_below(tmp_path) == [other, old, new]
    assert store.runs_below(tmp_path / "s") == [old, new]
    assert store.runs_below(new) == [new]
    with pytest.raises(ValueError, match="expected a folder"):
        store.runs_below(tmp_path / "nowhere")


def test_the_state_tells_of_every_change(tmp_path: Path) -> None:
    folder = run(tmp_path, "r1", "c1")
    seen = [store.state(folder), store.state(folder)]
    store.write_cell(folder / "cells", table("c2"))
    seen.append(store.state(folder))
    store.write_cell(folder / "cells", table("c2", rows=FAILED))
    seen.append(store.state(folder))
    (folder / "cells" / "c1.parquet").unlink()
    seen.append(store.state(folder))
    assert seen[0] == seen[1]
    assert len(set(seen)) == 4


def test_a_log_is_read_from_its_folder_alone(tmp_path: Path) -> None:
    folder = run(tmp_path, "r1")
    (folder / "logs").mkdir()
    (folder / "logs" / "c1.log").write_bytes(b"said \xff")
    assert store.read_log(folder, "c1") == "said �"
    (tmp_path / "other.log").write_text("secret")
    assert store.read_log(folder, "../../../other") is None
    assert store.read_log(folder, "c2") is None


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A run of enough cells for a copy."""
    return run(tmp_path, "r1", *(f"c{k}" for k in range(40)))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The fragments that are read one by one."""
    read, files = fragments.read, []

    def noted(path: Path, wanted: pa.Schema) -> pa.Table:
        files.append(path)
        return read(path, wanted)

    monkeypatch.setattr(fragments, "read", noted)
    return files


def test_a_run_of_many_cells_is_read_from_its_copy(many: Path, opened: list[Path]) -> None:
    expected = store.load(many)
    assert len(opened) == 40
    pd.testing.assert_frame_equal(store.load_run(many), expected[store.WITHOUT_SAMPLES])
    assert len(opened) == 80
    pd.testing.assert_frame_equal(store.load_run(many), expected[store.WITHOUT_SAMPLES])
    pd.testing.assert_frame_equal(store.load(many), expected)
    pd.testing.assert_frame_equal(store.load(many / "cells", ["value"]), expected[["value"]])
    assert len(opened) == 80


def test_a_copy_stands_for_its_run_alone(many: Path, tmp_path: Path, opened: list[Path]) -> None:
    """Beside other runs, one that shares its cells, and a part of its own fragments."""
    store.load_run(many)
    other = run(tmp_path, "r2", "c1", "c2")
    for cell in ("c3", "c4"):
        store.share_cell(many / "cells" / f"{cell}.parquet", other / "cells")
    opened.clear()
    frame = store.load(tmp_path)
    assert len(frame) == 42 * len(ROWS) and not frame.duplicated(["run_id", "cell_id", "metric"]).any()
    assert {path.parent.parent for path in opened} == {other}
    assert set(store.load(many / "cells" / f"c{k}.parquet" for k in range(33))["cell_id"]) == {
        f"c{k}" for k in range(33)
    }


def test_what_came_or_changed_since_the_copy_is_read_beside_it(many: Path, opened: list[Path]) -> None:
    store.load_run(many)
    cells = many / "cells"
    written = [store.write_cell(cells, table(name, rows=FAILED)) for name in ("c0-new", "c3", "c39")]
    (cells / "c4.parquet").unlink()
    opened.clear()
    frame = store.load_run(many)
    assert opened == written
    for copy in many.glob("*.copy"):
        copy.unlink()
    pd.testing.assert_frame_equal(frame, store.load(many, store.WITHOUT_SAMPLES))
    assert "c4" not in set(frame["cell_id"]) and frame["status"].eq("ok").sum() == 37 * len(ROWS)


def test_what_was_put_beside_the_fragments_of_a_run_is_not_taken_for_them(many: Path, opened: list[Path]) -> None:
    store.load_run(many)
    shutil.copytree(many / "cells", many / "backup")  # with their times
    opened.clear()
    assert len(store.load(many / "backup")) == len(opened) * len(ROWS) == 40 * len(ROWS)
    assert len(store.load(many)) == 40 * len(ROWS)


def test_a_copy_is_made_anew_when_much_has_come_since(many: Path, opened: list[Path]) -> None:
    """One in eight: what a run writes in all grows with its cells, not with their square."""
    read = []
    for number in range(40, 60):
        store.write_cell(many / "cells", table(f"c{number}"))
        opened.clear()
        store.keep_copy(many)
        read.append(len(opened))
    assert read == [41, *[0] * 5, 6, *[0] * 6, 7, *[0] * 6]


def test_a_copy_hides_no_damage(many: Path, tmp_path: Path) -> None:
    (many / "cells" / "c5.parquet").write_bytes(b"x")
    for _ in range(2):
        with pytest.warns(UserWarning, match="c5.parquet set aside: not readable"):
            assert "c5" not in set(store.load_run(many)["cell_id"])
    moved = many.rename(tmp_path / "moved")
    with pytest.warns(UserWarning, match=re.escape(f"{moved / 'cells' / 'c5.parquet'} set aside: not readable")):
        store.load(moved)


def test_a_fragment_that_is_put_back_with_its_old_time_is_seen(many: Path) -> None:
    """As from a backup: no fragment is later than before, and as many bytes are there."""
    store.load_run(many)
    first, second = (many / "cells" / f"c{k}.parquet" for k in (11, 12))
    assert first.stat().st_size == second.stat().st_size
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    latest = (many / "cells" / "c39.parquet").stat()
    for file in (first, second):
        os.utime(file, ns=(latest.st_atime_ns, latest.st_mtime_ns - 1))
    assert copies.copied(many, fragments.below(many), store.SCHEMA)[1] == [first, second]


@pytest.mark.parametrize("damage", ["empty", "foreign", "cut", "bits"])
def test_a_damaged_copy_is_not_used(damage: str, many: Path) -> None:
    store.write_cell(many / "cells", table("c7", rows=[Row("error.relative", 0.123456789)]))
    expected = store.load(many)
    store.load_run(many)
    (copy,) = [path for path in many.iterdir() if path.suffix == ".copy"]
    content = copy.read_bytes()
    place = content.index(np.float64(0.123456789).tobytes()) + 6
    flipped = content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]
    copy.write_bytes({"empty": b"", "foreign": b"PAR1", "cut": content[:-200], "bits": flipped}[damage])
    pd.testing.assert_frame_equal(store.load(many), expected)
    pd.testing.assert_frame_equal(store.load_run(many), expected[store.WITHOUT_SAMPLES])


def test_a_run_of_few_cells_and_one_that_cannot_be_written_have_no_copy(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = run(tmp_path, "r2", "c1")
    store.load_run(few)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("read-only")))
    assert len(store.load_run(many)) == 40 * len(ROWS)
    assert not [path for folder in (few, many) for path in folder.rglob("*.copy")]


def test_an_older_schema_is_read(tmp_path: Path) -> None:
    """What it did not have yet is null; its rows are of the weights, which is what was measured then."""
    older = table().set_column(0, store.SCHEMA.field(0), pa.array([0] * 3, pa.int64()))
    older = older.drop_columns(["method", "parameters"])
    pq.write_table(older, tmp_path / "old.parquet")
    frame = store.load(tmp_path)
    assert list(frame.columns) == CONTRACT.split()
    assert frame["value"].tolist() == [0.5, 0.0, 1.0] and frame["method"].isna().all()
    assert set(frame["parameters"]) == {"weights"} and set(table()["parameters"].to_pylist()) == {"all"}
    assert store.load(tmp_path, ["parameters"])["parameters"].tolist() == ["weights"] * 3


def test_what_is_not_a_number_is_an_error_and_no_value(tmp_path: Path) -> None:
    store.write_cell(tmp_path, table(rows=[Row("error.relative", float("nan")), Row("error.cosine", 0.5)]))
    frame = store.load(tmp_path)
    assert frame["status"].tolist() == ["error", "ok"]
    assert frame["reason"].tolist() == ["what was measured is not a number", ""]
    assert frame["value"].isna().tolist() == [True, False]


def test_a_flipped_bit_of_a_value_is_found(tmp_path: Path) -> None:
    path = store.write_cell(tmp_path, table(rows=[Row("error.relative", 0.123456789)]))
    content = path.read_bytes()
    place = content.index(np.float64(0.123456789).tobytes())
    path.write_bytes(content[: place + 3] + bytes([content[place + 3] ^ 4]) + content[place + 4 :])
    with pytest.warns(UserWarning, match="set aside: not readable as Parquet"):
        assert store.load(tmp_path).empty


@pytest.mark.parametrize(("column", "value"), [("status", "fine"), ("seed", None), ("cell_id", None)])
def test_rows_that_make_no_sense_are_set_aside(column: str, value: object, tmp_path: Path) -> None:
    index = store.SCHEMA.get_field_index(column)
    odd = table().set_column(index, store.SCHEMA.field(index), pa.array([value] * 3, store.SCHEMA.field(index).type))
    pq.write_table(odd, tmp_path / "odd.parquet")
    with pytest.warns(UserWarning, match=r"odd.parquet set aside: no fragment of curvbench"):
        assert store.load(tmp_path).empty


def test_an_odd_fragment_among_others_is_set_aside_alone(tmp_path: Path) -> None:
    """Fragments are judged many at a time; the one at fault is still named."""
    run(tmp_path, "r1", "a", "b", "c")
    place = store.SCHEMA.get_field_index("status")
    odd = table("odd").set_column(place, store.SCHEMA.field(place), pa.array(["fine"] * 3))
    pq.write_table(odd, tmp_path / "s" / "r1" / "cells" / "aa.parquet")
    with pytest.warns(UserWarning) as said:
        assert set(store.load(tmp_path)["cell_id"]) == {"a", "b", "c"}
    (warning,) = said
    assert "aa.parquet set aside: no fragment of curvbench: unknown status 'fine'" in str(warning.message)


def test_runs_sort_by_their_begin_when_the_clock_jumps_back(tmp_path: Path) -> None:
    ahead = tmp_path / "s" / "20990101T000000Z-00000000"
    (ahead / "cells").mkdir(parents=True)
    store.write_run(ahead, {})
    assert store.new_run(tmp_path / "s", "0123456789ab").name == "20990101T000001Z-01234567"


def test_a_log_is_cut_in_its_middle(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("first" + "x" * 1000 + "last")
    store.shorten_log(log, keep=300)
    assert log.stat().st_size == 1009
    store.shorten_log(log, keep=10)
    assert log.read_text() == "firstxxxxx\n... cut here ...\nxxxxxxlast"


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    holds = "with store.locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()"
    program = f"import sys; from pathlib import Path; from curvbench import store\n{holds}"
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(Timeout):
            FileLock(tmp_path / "run.json.lock", timeout=0).acquire()
        holder.kill()
        with store.locked(tmp_path):
            pass
