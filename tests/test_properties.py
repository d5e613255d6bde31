"""Properties of what comes from outside: filters, suite files, result files."""

from __future__ import annotations

import math
import string
import tempfile
import warnings
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_store import run, table

from curvbench import registry, selection, store

FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NAMES = st.sampled_from(sorted(registry.probes()))
KEYS = st.sampled_from(["damping", "fisher_type", "mc_samples", "seed", "rank", "dampin", "", "a=b"])
VALUES = st.one_of(st.text(max_size=8), st.integers().map(str), st.floats().map(str), st.sampled_from(["mc", "none"]))


def refused_in_one_line(error: ValueError) -> None:
    assert "\n" not in str(error) and str(error)


@FEW
@given(st.one_of(st.text(max_size=40), st.text(alphabet="kfac[]=,.:py/\n \0", max_size=30)))
def test_any_filter_is_read_or_refused_in_one_line(text: str) -> None:
    try:
        registry.parse_probe(text)
    except ValueError as error:
        refused_in_one_line(error)


@FEW
@given(NAMES, st.lists(st.tuples(KEYS, VALUES), max_size=3))
def test_a_filter_that_is_read_comes_back_from_its_label(name: str, pairs: list[tuple[str, str]]) -> None:
    text = f"{name}[{','.join(f'{key}={value}' for key, value in pairs)}]"
    try:
        probe = registry.parse_probe(text)
    except ValueError as error:
        return refused_in_one_line(error)
    assert registry.parse_probe(registry.selector(probe)) == probe


@FEW
@given(st.floats(min_value=0, allow_infinity=False), st.integers(min_value=1, max_value=10**6))
def test_numbers_survive_the_filter(damping: float, draws: int) -> None:
    probe = registry.parse_probe(f"kfac[damping={damping!r},mc_samples={draws}]")
    assert probe.hyperparameters["damping"] == damping and probe.hyperparameters["mc_samples"] == draws
    assert registry.parse_probe(registry.selector(probe)) == probe


@FEW
@given(st.text(max_size=12))
def test_durations_and_seeds_are_read_or_refused(text: str) -> None:
    for read in (selection.duration, selection.seeds):
        try:
            found = read(text)
        except ValueError as error:
            assert repr(text) in str(error)
        else:
            numbers = found if isinstance(found, tuple) else (found,)
            assert numbers and all(math.isfinite(number) and number >= 0 for number in numbers)


@FEW
@given(st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode), st.just(b"SUITE = None\n" * 3)))
def test_any_suite_file_is_refused_in_one_line(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler, of what stands there
        path = Path(folder) / "suite.py"
        path.write_bytes(b"# -*- coding: utf-8 -*-\nif False:\n  0\n" + b'"""' + content.replace(b'"', b"") + b'"""')
        with pytest.raises(ValueError) as caught:
            registry.load_suite(path)
        refused_in_one_line(caught.value)


def whole() -> bytes:
    """A good fragment."""
    with tempfile.TemporaryDirectory() as folder:
        return store.write_cell(Path(folder), table()).read_bytes()


GOOD = whole()


def readable(folder: Path) -> set[str]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        frame = store.load(folder)
        store.cell_statuses(folder)
    assert list(frame.columns) == store.SCHEMA.names
    assert all("set aside" in str(warning.message) for warning in said)
    return set(frame["cell_id"])


@FEW
@given(st.lists(st.integers(0, 8 * len(GOOD) - 1), min_size=1, max_size=8))
def test_flipped_bits_never_stop_a_reader(tmp_path: Path, bits: list[int]) -> None:
    folder = tmp_path / "s" / "r1"
    if not folder.exists():
        run(tmp_path, "r1", "good")
    damaged = bytearray(GOOD)
    for bit in bits:
        damaged[bit // 8] ^= 1 << bit % 8
    (folder / "cells" / "bad.parquet").write_bytes(damaged)
    try:
        assert "good" in readable(tmp_path)
    except store.NewerSchema as error:  # a flip in the version: refused by name
        assert "bad.parquet" in str(error)


@FEW
@given(st.integers(0, len(GOOD) - 1), st.binary(max_size=20))
def test_cut_files_are_set_aside(tmp_path: Path, cut: int, more: bytes) -> None:
    folder = tmp_path / "s" / "r1"
    if not folder.exists():
        run(tmp_path, "r1", "good")
    (folder / "cells" / "bad.parquet").write_bytes(GOOD[:cut] + more)
    assert "good" in readable(tmp_path)


KINDS = st.sampled_from([pa.int64(), pa.string(), pa.float64(), pa.bool_(), pa.list_(pa.float64()), pa.null()])


@FEW
@given(st.dictionaries(st.sampled_from(store.SCHEMA.names), KINDS, max_size=29), st.integers(0, 3))
def test_another_schema_is_set_aside_or_cast(tmp_path: Path, kinds: dict[str, pa.DataType], rows: int) -> None:
    fields = [pa.field(f.name, kinds.get(f.name, f.type)) for f in store.SCHEMA]
    foreign = pa.table([pa.nulls(rows, f.type) for f in fields], schema=pa.schema(fields))
    pq.write_table(foreign, tmp_path / "foreign.parquet")
    store.write_cell(tmp_path, table("good"))
    assert "good" in readable(tmp_path)


@FEW
@given(st.one_of(st.text(max_size=200), st.sampled_from(["../../x", "a/b", ".", "..", "a\nb", "\0", "x" * 5000, ""])))
def test_no_id_leads_out_of_the_folder(tmp_path: Path, cell_id: str) -> None:
    allowed = set(cell_id) <= set(string.ascii_letters + string.digits + "_-") and 0 < len(cell_id) <= 100
    if allowed:
        assert store.cell_file(tmp_path, cell_id).parent == tmp_path
        return
    with pytest.raises(ValueError, match="expected a cell id"):
        store.write_cell(tmp_path, table(cell_id))
    assert list(tmp_path.iterdir()) == []
    assert store.read_log(tmp_path, cell_id) is None
