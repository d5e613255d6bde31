"""The verb ``claims`` as its user sees it, on runs made by hand."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pytest
from frames import START

from curvbench import probe, problem, store
from curvbench.analysis.claims import Verdict
from curvbench.cli.app import main
from curvbench.spec import Cell, Row, Training

SUITE = "cwngd_t1_mnist"
ENVIRONMENT = {"git_sha": "abc", "git_dirty": False, "torch_version": "2.13", "device_name": "a cpu"}


def cell_rows(epoch1: float, epoch2: float, best: float, epochs: int | None) -> list[Row]:
    rows = [Row("test.accuracy", 0.1, epoch=0)]
    for epoch, value in ((1, epoch1), (2, epoch2), (epochs or 50, 1.0 if epochs else 0.99)):
        rows += [Row("train.accuracy", value, epoch=epoch), Row("test.accuracy", best, epoch=epoch)]
    return rows


# The paper's order in everything but the second epoch, where Adam leads.
PAPER = {
    "cwngd": cell_rows(0.88, 0.90, 0.989, 13),
    "adam": cell_rows(0.80, 0.97, 0.980, None),
    "kfac": cell_rows(0.92, 0.85, 0.975, 38),
}


def write(results: Path, surrogate: bool, names: Sequence[str] = tuple(PAPER)) -> Path:
    folder = results / SUITE / ("surrogate" if surrogate else "original")
    (folder / "cells").mkdir(parents=True)
    sizes = [problem("cnn", channels=4 * k, hidden=16 * k) for k in (1, 4)]
    for network, name, seed in product(sizes, names, range(3)):
        cell = Cell(SUITE, network, probe(name), seed, training=Training(2, 0.1), surrogate=surrogate)
        context = store.Context(folder.name, f"{name}-{seed}-{network.channels}", START, ENVIRONMENT)
        store.write_cell(folder / "cells", store.rows_to_table(cell, PAPER[name], context))
    store.write_run(folder, {"run_id": folder.name})
    return folder


def claims(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["claims", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, out, err


def test_json_has_every_claim_with_its_rulings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = claims(capsys, write(tmp_path, surrogate=False), "--format", "json")
    found = json.loads(out)
    assert code == 0 and len(found) > 60 and {c["original"]["verdict"] for c in found} <= set(Verdict)
    mine = {c["claim"]: c for c in found if c["suite"] == SUITE}
    assert [c["original"]["verdict"] for c in mine.values()] == ["holds", "holds", "holds", "refuted"]
    first = mine["fewest epochs to 100 % training accuracy"]
    assert first["reported"] == "CWNGD 13 < KFAC 38, ADAM 49"
    missed = {"name": "ADAM", "values": [None] * 3, "seeds": [0, 1, 2], "median": None, "missed": 3}
    assert missed in [{k: v for k, v in reading.items() if k != "reason"} for reading in first["original"]["readings"]]
    assert {c["surrogate"]["reason"] for c in mine.values()} == {"not run"}
    assert "E-C10" in [erratum["id"] for erratum in first["errata"]]


@pytest.mark.parametrize(("surrogate", "strict", "code"), [(False, True, 1), (False, False, 0), (True, True, 0)])
def test_strict_fails_where_the_original_is_refuted_and_for_no_surrogate(
    surrogate: bool, strict: bool, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--format", "markdown", *(["--strict"] if strict else [])]
    found = claims(capsys, write(tmp_path, surrogate), *options)
    assert found[0] == code
    assert "CWNGD 90.0, ADAM 97.0, KFAC 85.0" in found[1] and "CWNGD 90.0 &lt; ADAM 97.0; 7 apart," in found[1]
    original, stands_in = (part.split(": ")[1] for part in found[1].splitlines()[-2].split("; "))
    assert ("1 refuted" in original, "1 refuted" in stands_in) == (not surrogate, surrogate)


@pytest.mark.parametrize("below", ["", SUITE])
def test_of_a_folder_neither_an_original_nor_a_surrogate_hides_the_other(
    below: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run of the surrogate is the later one by its name."""
    write(tmp_path, surrogate=True)
    write(tmp_path, surrogate=False)
    code, out, _ = claims(capsys, tmp_path / below, "--format", "json")
    mine = [found for found in json.loads(out) if found["suite"] == SUITE]
    assert code == 0 and {found[kind]["seeds"] for found in mine for kind in ("original", "surrogate")} == {3}


def test_a_run_alone_is_judged_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, surrogate=True)
    _, out, _ = claims(capsys, write(tmp_path, surrogate=False), "--format", "json")
    assert {found["surrogate"]["seeds"] for found in json.loads(out)} == {0}


def test_markdown_tables_have_as_many_cells_in_every_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = claims(capsys, write(tmp_path, surrogate=False), "--format", "markdown")
    lines = [line for line in out.splitlines() if line.startswith("|")]
    assert len(lines) > 100 and {line.replace(r"\|", "").count("|") for line in lines} == {5}
    assert "### cwngd\\_t1\\_mnist: CW-NGD, Table I" in out


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ((tmp_path,), ("r7", "--results", tmp_path)):
        code, out, err = claims(capsys, *arguments)
        assert (code, out) == (2, "") and err.startswith("curvbench: no run") and err.count("\n") == 1


def test_results_without_an_experiment_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path, surrogate=False)
    other = tmp_path / "other" / folder.name
    other.parent.mkdir()
    folder.rename(other)
    for file in (other / "cells").glob("*.parquet"):
        file.unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        code, out, err = claims(capsys, other)
    assert code == 0 and "no experiment of a paper was run here" in err and "not run" in out
