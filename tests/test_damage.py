"""One damaged thing in a folder of results is named and set aside, and every reader goes on with the rest."""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_measure import Fake, Toy
from frames import fisher_cell, write_run

from curvbench import store
from curvbench.cli.app import main
from curvbench.spec.pictures import Blocks
from curvbench.store import copies, fragments

Damage = Callable[[Path], object]


def column(name: str, values: pa.Array) -> Damage:
    """The column of a fragment replaced by one value in every row."""

    def damage(path: Path) -> None:
        table = pq.ParquetFile(path).read()
        array = pa.concat_arrays([values] * table.num_rows)
        pq.write_table(table.set_column(table.schema.get_field_index(name), name, array), path)

    return damage


def replaced(make: Damage) -> Damage:
    """Something else in the place of a file."""

    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


def twice(path: Path) -> None:
    table = pq.ParquetFile(path).read()
    pq.write_table(table.append_column("value", table["value"]), path)


PLACES: dict[str, Damage] = {
    "empty": lambda path: path.write_bytes(b""),
    "a folder": replaced(Path.mkdir),
    "a dangling link": replaced(lambda path: path.symlink_to("nowhere")),
    "a link to itself": replaced(lambda path: path.symlink_to(path)),
    "a pipe": replaced(os.mkfifo),
    "a device": replaced(lambda path: path.symlink_to("/dev/zero")),
}
NOT_UTF8 = pa.array([b"\xff\xfe"], pa.binary()).view(pa.string())
FRAGMENTS: dict[str, Damage] = PLACES | {
    "a column twice": twice,
    "no UTF-8": column("reason", NOT_UTF8),
    "bytes": column("probe", pa.array([b"\xff"], pa.binary())),
    "a late time": column("started_at", pa.array([2**62], pa.timestamp("us", "UTC"))),
    "an early time": column("started_at", pa.array([-(2**62)], pa.timestamp("us", "UTC"))),
    "no time": column("started_at", pa.nulls(1, pa.timestamp("us", "UTC"))),
    "no arguments": column("probe_args", pa.nulls(1, pa.string())),
    "no metric": column("metric", pa.nulls(1, pa.string())),
    "no name": column("problem", pa.array([""])),
    "a version out of range": column("schema_version", pa.array([2**62])),
    "texts as seeds": column("seed", pa.array(["one"])),
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "results", "r1", [(Fake(), Toy(), fisher_cell()), (Fake("b"), Toy(), fisher_cell())])


@pytest.mark.parametrize("damage", FRAGMENTS.values(), ids=list(FRAGMENTS))
def test_a_damaged_fragment_is_named_and_set_aside(damage: Damage, run: Path) -> None:
    damage(run / "cells" / "c0.parquet")
    with pytest.warns(store.SetAside, match=r"c0\.parquet set aside: ") as said:
        assert set(store.load(run.parents[1])["cell_id"]) == {"c1"}
    assert len(said) == 1 and "\n" not in str(said[0].message)
    with pytest.warns(store.SetAside):
        assert set(store.cell_statuses(run)) == {"c1"}
    store.state(run)


RECORDS: dict[str, Any] = {
    "environment": [[], None, 5, "x"],
    "commands": [{}, [1], [{"command": 1}]],
    "cells": [{}, 5, [1], [{}], [{"id": 1}], [{"id": "c0", "sources": [], "hyperparameters": {"probe": 1}}]],
    "identity": [[], {"damping": []}],
    "suite_file": [None, [], 5],
    "command": [None, {}],
}


@pytest.mark.parametrize("damage", PLACES.values(), ids=list(PLACES))
def test_what_is_no_record_is_named(damage: Damage, run: Path) -> None:
    damage(run / "run.json")
    with pytest.warns(store.SetAside, match=r"run\.json set aside: damaged: "):
        assert store.read_run(run) == {}
    assert store.runs(run.parent) == [run] and len(store.load(run)), "its rows are there"


@pytest.mark.parametrize("text", ["[" * 10**5, '{"a":' * 10**5, "9" * 5000, "null", "{"])
def test_hostile_records_are_named(text: str, run: Path) -> None:
    (run / "run.json").write_text(text, encoding="utf-8")
    with pytest.warns(store.SetAside, match=r"run\.json set aside: damaged: "):
        assert store.read_run(run) == {}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in RECORDS.items() for value in values])
def test_the_sound_part_of_a_record_is_kept(key: str, value: object, run: Path) -> None:
    (run / "run.json").write_text(json.dumps({"run_id": "r1", "schema_version": 3, key: value}))
    with pytest.warns(store.SetAside, match=rf"run\.json set aside: damaged: {key}"):
        record = store.read_run(run)
    assert record["run_id"] == "r1"
    for cell in record.get("cells", []):
        assert cell.keys() <= {"id", "hyperparameters"} and cell.get("hyperparameters", {}) == {}


def test_texts_of_a_record_can_be_shown(run: Path) -> None:
    (run / "run.json").write_text('{"command": "a\\ud800"}')
    assert store.read_run(run) == {"command": "a\\ud800"}


def packed(**changes: Any) -> bytes:
    arrays: dict[str, Any] = {"layer": np.array("fc"), "inputs": np.array(2), "names": np.array([], np.str_)}
    content = io.BytesIO()
    np.savez(content, **(arrays | {"exact": np.eye(2), "approximation": np.eye(2)} | changes))
    return content.getvalue()


def claims_terabytes() -> bytes:
    header, content = io.BytesIO(), io.BytesIO(packed())
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)})
    with zipfile.ZipFile(content, "a") as archive:
        archive.writestr("0 exact.npy", header.getvalue())
    return content.getvalue().replace(b"names", b"namez").replace(b"0 exact", b"names  ")


def marked(content: bytes, place: int, value: int) -> bytes:
    """A byte of the entries of an archive replaced."""
    return re.sub(
        b"PK\x01\x02" + b"(.{%d})." % (place - 4), b"PK\x01\x02\\1" + bytes([value]), content, flags=re.DOTALL
    )


BLOCKS: dict[str, bytes] = {
    "objects": packed(exact=np.array([{}], object)),
    "complex": packed(exact=np.eye(2) * 1j),
    "texts": packed(approximation=np.array([["a", "b"], ["c", "d"]])),
    "three dimensions": packed(exact=np.zeros((2, 2, 2))),
    "no inputs": packed(inputs=np.array(0)),
    "inputs of a text": packed(inputs=np.array("2")),
    "a layer of numbers": packed(layer=np.arange(3.0)),
    "half a sign": packed(layer=np.array("\ud800")),
    "names of numbers": packed(names=np.arange(2)),
    "names without spectra": packed(names=np.array(["fc"])),
    "encrypted": marked(packed(), 8, 1),
    "an unknown compression": marked(packed(), 10, 99),
    "terabytes": claims_terabytes(),
    "no archive": b"PK",
}


@pytest.mark.parametrize("content", BLOCKS.values(), ids=list(BLOCKS))
def test_damaged_blocks_are_a_value_error(content: bytes, run: Path) -> None:
    (run / "blocks").mkdir()
    (run / "blocks" / "c0.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"c0\.npz: damaged, or no blocks of curvbench"):
        store.read_blocks(run, "c0")


def test_sound_blocks_are_read(run: Path) -> None:
    store.write_blocks(run, "c0", Blocks("fc", 2, np.eye(2), np.eye(2), {}))
    assert store.read_blocks(run, "c0") is not None


@pytest.fixture
def many(tmp_path: Path) -> Path:
    run = write_run(tmp_path / "results", "r1", [(Fake(f"b{k}"), Toy(), fisher_cell()) for k in range(33)])
    store.keep_copy(run)
    return run


def _entry(place: int, value: object) -> Callable[[pa.Table, list[Any]], pa.Table]:
    def change(table: pa.Table, entries: list[Any]) -> pa.Table:
        entries[0][place] = value
        return table

    return change


def _shifted(table: pa.Table, entries: list[Any]) -> pa.Table:
    entries[0][3] -= 1
    entries[1][3] += 1
    return table


FORGED: dict[str, Callable[[pa.Table, list[Any]], pa.Table]] = {
    "rows moved to the next cell": _shifted,
    "a name that leads out": _entry(0, "../../x.parquet"),
    "a name of a number": _entry(0, 5),
    "negative rows": _entry(3, -1),
    "rows as a text": _entry(3, "1"),
    "the same cell twice": _entry(0, "c1.parquet"),
    "no texts": lambda table, _: table.set_column(2, "suite", pa.nulls(table.num_rows, pa.string())),
    "a column twice": lambda table, _: table.append_column("value", table["value"]),
    "no UTF-8": lambda table, _: table.set_column(10, "reason", pa.concat_arrays([NOT_UTF8] * table.num_rows)),
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=list(FORGED))
def test_a_forged_copy_changes_nothing(forge: Callable[[pa.Table, list[Any]], pa.Table], many: Path) -> None:
    path = many / "rows.copy"
    table = pq.ParquetFile(path).read()
    version, entries = json.loads(table.schema.metadata[b"curvbench_fragments"])
    expected = store.load(fragments.below(many / "cells")[:5])
    table = forge(table, entries)
    metadata = {b"curvbench_fragments": json.dumps([version, entries]).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    assert copies.copied(many, fragments.below(many), store.SCHEMA)[1], "fragments are read instead"
    rows = store.load(many)
    assert rows["cell_id"].nunique() == 33
    assert rows[rows["cell_id"].isin(expected["cell_id"])].reset_index(drop=True).equals(expected)


LOST: dict[str, Damage] = {
    "a run that is gone": lambda run: (run.parent / "20260101T000000Z-0").symlink_to("nowhere"),
    "a run that is a file": lambda run: (run.parent / "20260101T000000Z-0").write_text(""),
    "a suite that is gone": lambda run: (run.parents[1] / "other").symlink_to("nowhere"),
    "cells that are a file": lambda run: (run / "cells").rename(run / "old") and (run / "cells").write_text(""),
    "a fragment": lambda run: (run / "cells" / "c1.parquet").write_text(""),
}


def typed(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, arguments)))
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.filterwarnings("ignore:.*set aside", "ignore:.*no experiment")
@pytest.mark.parametrize("damage", LOST.values(), ids=list(LOST))
def test_nothing_passes_without_what_was_left_out(
    damage: Damage, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = tmp_path / "good"
    write_run(good, "r1", [(Fake(), Toy(), fisher_cell())])
    results = run.parents[1]
    assert typed("check", results, "--against", good) == 0
    damage(run)
    capsys.readouterr()
    if (run / "cells").is_dir():
        assert typed("check", results, "--against", good) == 2
        assert "FAILED, because a part could not be read" in capsys.readouterr().out
        assert typed("check", good, "--against", results) != 0
        assert typed("check", results, "--against", good, "--format", "junit") == 2
        assert 'type="unreadable"' in capsys.readouterr().out
        assert typed("check", results, "--against", tmp_path / "baselines", "--update") == 2
        assert not (tmp_path / "baselines").exists()
    assert typed("claims", results) == 2
    assert "not all can be read" in capsys.readouterr().err


def test_links_lead_out_of_no_run(run: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text('{"files": [], "packages": {}}')
    for folder, name in (("logs", "c0.log"), ("libraries", "x.json"), ("blocks", "c0.npz")):
        (run / folder).mkdir(exist_ok=True)
        (run / folder / name).symlink_to(secret)
    with pytest.warns(store.SetAside, match="it is a link that leads out"):
        assert store.read_log(run, "c0") is None
    with pytest.warns(store.SetAside, match="it is a link that leads out"):
        assert store.read_libraries(run) == {"x": None}
    with pytest.raises(ValueError, match="it is a link that leads out"):
        store.read_blocks(run, "c0")


def test_a_run_writes_in_no_other_folder(run: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (run / "logs").rmdir() if (run / "logs").is_dir() else None
    (run / "logs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="a run writes in its own folder alone"):
        store.check_writable(run)


@pytest.mark.parametrize("name", ["..", ".", "a/b", "../x", "a\\b", "a\0", "", "x" * 300])
def test_names_from_results_are_no_paths(name: str) -> None:
    with pytest.raises(ValueError, match="can be the name of a folder"):
        store.refuse_path(name, "a suite")
