"""Properties of what comes from outside: filters, suite files, result files, data files."""

from __future__ import annotations

import gzip
import json
import math
import string
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from published import cifar_files, mnist_files, write
from test_store import run, table

from curvbench import data, registry, store
from curvbench.data import documents, sentences
from curvbench.planning import selection
from curvbench.spec import Dataset, Probe, labels

FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NAMES = st.sampled_from(sorted(registry.probes()))
KEYS = st.sampled_from(["damping", "fisher_type", "mc_samples", "seed", "rank", "dampin", "", "a=b"])
VALUES = st.one_of(st.text(max_size=8), st.integers().map(str), st.floats().map(str), st.sampled_from(["mc", "none"]))


def refused_in_one_line(error: ValueError) -> None:
    assert "\n" not in str(error) and str(error)


@FEW
@given(st.one_of(st.text(max_size=40), st.text(alphabet="kfacg[]=,\\.:py/\n \0", max_size=30)))
def test_any_filter_is_read_or_refused_in_one_line(text: str) -> None:
    try:
        registry.parse_probe(text)
    except ValueError as error:
        refused_in_one_line(error)


@FEW
@example("adafactor", [("damping", ""), ("damping", "\n")])
@given(NAMES, st.lists(st.tuples(KEYS, VALUES), max_size=3))
def test_a_filter_that_is_read_comes_back_from_its_label(name: str, pairs: list[tuple[str, str]]) -> None:
    text = f"{name}[{','.join(f'{key}={value}' for key, value in pairs)}]"
    try:
        probe = registry.parse_probe(text)
    except ValueError as error:
        return refused_in_one_line(error)
    assert registry.parse_probe(registry.selector(probe)) == probe


TEXTS = st.text(alphabet="ab,[]\\\\= .:", max_size=9).map(str.strip)


@FEW
@given(st.lists(st.tuples(st.from_regex(r"[a-z]+", fullmatch=True), TEXTS), max_size=4, unique_by=lambda pair: pair[0]))
def test_any_text_is_a_value_of_a_label(pairs: list[tuple[str, str]]) -> None:
    """Also within a label that is a value itself."""
    written = ",".join(f"{key}={labels.escaped(text)}" for key, text in pairs)
    for label in (f"name[{written}]", f"outer[one={labels.escaped('[,')},inner=name[{written}],two=2]"):
        name, arguments = labels.split_label(label)
        found = labels.arguments_of(arguments)
        if name == "outer":
            assert (list(found), found["two"]) == (["one", "inner", "two"], "2")
            name, arguments = labels.split_label(found["inner"])
            found = labels.arguments_of(arguments)
        assert name == "name" and {key: labels.unescaped(value) for key, value in found.items()} == dict(pairs)


def solvers(inner: st.SearchStrategy[Probe]) -> st.SearchStrategy[Probe]:
    options = st.fixed_dictionaries({}, optional={"iterations": st.integers(1, 99), "damping": st.floats(1e-9, 9)})
    return st.builds(lambda probe, given: registry.probe("cg", preconditioner=probe, **given), inner, options)


LINEAR = st.builds(
    lambda name, damping: registry.probe(name, damping=damping),
    st.sampled_from([name for name, kind in registry.probes().items() if kind.damping and not kind.has_own_momentum]),
    st.floats(1e-9, 9),
)


@FEW
@given(st.recursive(LINEAR, solvers, max_leaves=4))
def test_probes_within_probes_come_back_from_their_labels(probe: Probe) -> None:
    again = registry.parse_probe(probe.label)
    assert again == probe and again.label == probe.label == registry.selector(probe)
    assert registry.probe("cg", preconditioner=probe.label).inner == {"preconditioner": probe}


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


class Layout(NamedTuple):
    """Files as their authors publish them, what reads them, and whether a file tells that it is not whole."""

    files: dict[str, bytes]
    read: Callable[[Path], Dataset]
    by_size: bool = True
    by_checksum: bool = False

    def zipped(self) -> Layout:
        packed = {f"{name}.gz": gzip.compress(content) for name, content in self.files.items()}
        return self._replace(files=packed, by_checksum=True)


def translations() -> Layout:
    sides = {"en": "A dog runs.\nA dog, a cat.\n", "de": "Ein Hund läuft.\nEin Hund, eine Katze.\n"}
    files = {f"multi30k/{part}.{k}": v.encode() for part in ("train", "test_2016_flickr") for k, v in sides.items()}
    return Layout(files, lambda root: sentences.parallel("multi30k", root, vocabulary=6, length=6), by_size=False)


def summaries(task: str, folder: str, document: object, summary: object) -> Layout:
    keys = documents.CORPORA[task]
    line = json.dumps({keys.document: document, keys.summary: summary}).encode() + b"\n"
    read = partial(documents.summarisation, task, vocabulary=100, source=12, target=6)
    return Layout({f"{folder}/{part}.jsonl": 2 * line for part in ("train", "test")}, read, by_size=False)


LAYOUTS = {
    "mnist": Layout(mnist_files(), partial(data.load, "mnist")),
    "cifar10": Layout(cifar_files("cifar10", 1), partial(data.load, "cifar10")),
    "cifar100": Layout(cifar_files("cifar100", 1), partial(data.load, "cifar100")),
    "multi30k": translations(),
    "scitldr": summaries("scitldr", "scitldr-a", ["a deep model", "is caf\u00e9"], ["a model"]),
    "xsum": summaries("xsum", "xsum", "a long story", "a story"),
}
LAYOUTS |= {f"{name}.gz": LAYOUTS[name].zipped() for name in ("mnist", "cifar100", "multi30k", "scitldr")}
PLACES = st.integers(0, 2**20)
DAMAGES = st.one_of(
    st.lists(PLACES, min_size=1, max_size=4).map(lambda bits: partial(flipped, bits)),
    PLACES.map(lambda place: lambda content: content[: place % len(content)]),
    st.binary(min_size=1, max_size=30).map(lambda more: lambda content: content + more),
    st.binary(max_size=60).map(lambda other: lambda content: other),
)


def flipped(bits: list[int], content: bytes) -> bytes:
    damaged = bytearray(content)
    for bit in bits:
        damaged[bit // 8 % len(content)] ^= 1 << bit % 8
    return bytes(damaged)


def same(one: Dataset, other: Dataset) -> bool:
    parts = ("train_inputs", "train_targets", "test_inputs", "test_targets")
    return all(getattr(one, part).equal(getattr(other, part)) for part in parts)


@pytest.mark.parametrize("name", LAYOUTS)
@FEW
@given(st.integers(0, 99), DAMAGES)
def test_damaged_data_is_named_in_one_line(
    tmp_path: Path, name: str, which: int, damage: Callable[[bytes], bytes]
) -> None:
    """What is read all the same is as large as before where a size tells, and the same where a checksum does."""
    layout = LAYOUTS[name]
    file = sorted(layout.files)[which % len(layout.files)]
    after = damage(layout.files[file])
    try:
        found = layout.read(write(tmp_path, layout.files | {file: after}))
    except ValueError as error:
        refused_in_one_line(error)
        assert Path(file).name in str(error) and "is damaged: expected " in str(error)
        return
    assert len(found.train_inputs) == len(found.train_targets) and len(found.test_inputs) == len(found.test_targets)
    assert not layout.by_checksum or same(found, layout.read(write(tmp_path, layout.files)))
    assert not layout.by_size or layout.by_checksum or len(after) == len(layout.files[file])
