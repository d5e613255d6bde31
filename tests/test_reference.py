"""What the cells of a problem share: named by what decides it, made once, refused where it would not fit."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import curvbench as cb
from curvbench.cells import measure, reference
from curvbench.fisher import budget
from curvbench.fisher.uncovered import covered_trace
from curvbench.planning.selection import select
from curvbench.spec import PARAMETERS, Cell, Meter, Parameters, Precision, Probe

PROBLEM = cb.problem("mlp", samples=12, hidden=5, depth=2)
SHARED = cb.problem("resnet", depth=8, width=4, samples=4)
COMPARED = ("error.relative", "error.diagonal", "direction.cosine")
WIDE = cb.problem("resnet", depth=8, width=2, outputs=30, mc_samples=5, samples=4)


def cell(probe: Probe, seed: int = 0) -> Cell:
    return Cell("test", PROBLEM, probe, seed, dtype="float64")


def silent(text: str) -> None:
    pass


def test_reference_is_named_by_what_decides_it() -> None:
    base = cell(cb.probe("identity"))
    name = reference.reference_identity(base)
    assert name == reference.reference_identity(replace(base, probe=cb.probe("kfac")))
    assert name != reference.reference_identity(replace(base, seed=1))
    assert name != reference.reference_identity(replace(base, problem=replace(PROBLEM, samples=13)))
    assert name != reference.reference_identity(replace(base, dtype="float32"))
    assert name != reference.reference_identity(replace(base, precision="float64"))
    assert name != reference.reference_identity(replace(base, parameters="weights"))


def test_reference_is_made_once(tmp_path: Path) -> None:
    reference.prepare(cell(cb.probe("identity")), tmp_path, None, silent)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    reference.prepare(cell(cb.probe("kfac")), tmp_path, None, silent)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert len(before) == 1


@pytest.mark.parametrize("damage", [b"", b"x", b"text\n" * 1000, None], ids=["empty", "a sign", "text", "cut"])
def test_a_damaged_reference_is_made_again(damage: bytes | None, tmp_path: Path) -> None:
    one = cell(cb.probe("identity"))
    reference.prepare(one, tmp_path, None, silent)
    (path,) = tmp_path.iterdir()
    whole, norm = path.read_bytes(), reference.load(one, tmp_path).fisher.frobenius_norm()
    path.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    reference.prepare(one, tmp_path, None, silent)
    assert reference.load(one, tmp_path).fisher.frobenius_norm() == norm
    torch.save([1], path)
    reference.prepare(one, tmp_path, None, silent)
    assert reference.load(one, tmp_path).fisher.frobenius_norm() == norm


def test_share_of_the_trace_is_that_of_the_stored_reference(tmp_path: Path) -> None:
    network = cb.problem("layers", network="batchnorm")
    normed = replace(cell(cb.probe("identity")), problem=network, parameters="weights")
    reference.prepare(normed, tmp_path / "normed", None, silent)
    rows = {row.metric: row.value for row in measure.measure(normed, tmp_path / "normed", None, silent)}
    expected = covered_trace(*reference.load(normed, tmp_path / "normed")[:2])
    assert rows["coverage.trace"] == pytest.approx(expected, rel=1e-12)
    assert 0.5 < expected < 1.0 and rows["coverage.parameters"] != expected


@pytest.mark.parametrize(
    ("parameters", "note"), [("all", ""), ("weights", "left out: '2.bias', '2.weight' (no weight ")]
)
def test_rows_say_what_is_left_out(parameters: Parameters, note: str, tmp_path: Path) -> None:
    network = cb.problem("layers", network="batchnorm")
    normed = replace(cell(cb.probe("diag")), problem=network, parameters=parameters)
    reference.prepare(normed, tmp_path, None, silent)
    rows = {(row.metric, row.scope): row for row in measure.measure(normed, tmp_path, None, silent)}
    covered = rows["coverage.parameters", "network"]
    assert covered.reason.startswith(note) and bool(covered.reason) == bool(note)
    assert (covered.value == 1.0) == (rows["coverage.trace", "network"].value == 1.0) == (parameters == "all")
    fisher = reference.load(normed, tmp_path).fisher
    assert fisher is not None and fisher.coverage == covered.value and PARAMETERS[parameters] in repr(fisher)


PRECISIONS: dict[Precision, str] = {"mixed": "mixed precision", "native": "float32", "float64": "float64"}


def single(precision: Precision, probe: str = "identity") -> Cell:
    return replace(cell(cb.probe(probe)), problem=SHARED, dtype="float32", precision=precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_precision_is_said(precision: Precision) -> None:
    assert reference.method(single(precision)) == f"exact type-2 Fisher in {PRECISIONS[precision]}"
    double = replace(single(precision), dtype="float64")
    assert reference.method(double) == "exact type-2 Fisher in float64"


def test_a_preset_of_no_precision_is_refused_and_the_others_reach_their_cells() -> None:
    with pytest.raises(ValueError, match="precision of a preset is one of mixed, native, float64, got 'double'"):
        cb.Preset([PROBLEM], [cb.probe("diag")], precision="double")  # type: ignore[arg-type]
    (chosen,) = select("test", cb.Preset([PROBLEM], [cb.probe("diag")], precision="float64"))
    assert chosen.precision == "float64"


@pytest.fixture(scope="module")
def grams(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Of one float32 network in every precision, stored and loaded, and in float64 throughout."""
    found = {}
    for precision in PRECISIONS:
        folder = tmp_path_factory.mktemp(precision)
        reference.prepare(single(precision), folder, None, silent)
        instance, fisher, _ = reference.load(single(precision), folder)
        assert fisher is not None
        found[precision] = fisher.gram()
    return {**found, "exact": cb.exact_fisher(instance.to(torch.float64)).gram()}


def test_precisions_are_as_good_as_they_say(grams: dict[str, Tensor]) -> None:
    """float64 to the bit, the others to rounding: of what is stored, and of the passes too."""
    error = {name: float((gram - grams["exact"]).norm() / grams["exact"].norm()) for name, gram in grams.items()}
    assert error["float64"] == 0.0
    assert 0.0 < error["mixed"] <= 2e-7
    assert error["mixed"] < error["native"] <= 1e-4


FAMILIES = ["identity", "diag", "unit", "full", "kfac", "ekfac", "eigen", "qng", "mbf"]
"""A probe for every family of operators that has an inner product of its own, and one that has none."""


@pytest.mark.parametrize("probe", FAMILIES)
def test_every_family_is_held_against_every_precision(probe: str, tmp_path: Path) -> None:
    """The rows say which, and agree."""
    judged: tuple[Meter, ...] = ("error", "direction")
    errors = {}
    for precision, said in PRECISIONS.items():
        chosen = replace(single(precision, probe), problem=PROBLEM, meters=judged)
        reference.prepare(chosen, tmp_path / precision, None, silent)
        rows = [row for row in measure.measure(chosen, tmp_path / precision, None, silent) if row.metric in COMPARED]
        assert rows and all(row.method.startswith(f"exact type-2 Fisher in {said}") for row in rows)
        errors[precision] = {(row.metric, row.scope): row.value for row in rows}
    assert errors["mixed"] == pytest.approx(errors["float64"], rel=1e-4, abs=1e-3)
    assert errors["native"] == pytest.approx(errors["float64"], rel=1e-4, abs=1e-3)


def test_a_sampled_reference_is_the_monte_carlo_fisher(tmp_path: Path) -> None:
    wide = replace(cell(cb.probe("identity")), problem=WIDE)
    reference.prepare(wide, tmp_path, None, silent)
    instance, fisher, _ = reference.load(wide, tmp_path)
    again = cb.exact_fisher(instance, "mc", WIDE.mc_samples, reference.STREAM)
    assert torch.equal(fisher.gram(), again.gram())
    assert fisher.gram().shape == (5 * 4, 5 * 4)
    assert fisher.coefficients is None


def test_a_reference_that_does_not_fit_is_refused_with_what_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "available_bytes", lambda device: 203 * 10**6)
    large = Cell("test", cb.problem("mlp", samples=600), cb.probe("identity"), 0)
    with pytest.raises(MemoryError) as caught:
        reference.prepare(large, tmp_path / "large", None, silent)
    found = re.fullmatch(
        r"600 samples of 9 columns need \d+\.\d GB, 0\.2 GB are free; (\d+) samples would fit", str(caught.value)
    )
    assert found is not None, str(caught.value)
    assert not (tmp_path / "large").exists()
    fitting = replace(large, problem=replace(large.problem, samples=int(found[1])))
    reference.prepare(fitting, tmp_path / "fitting", None, silent)
    one_more = replace(large, problem=replace(large.problem, samples=int(found[1]) + 1))
    with pytest.raises(MemoryError):
        reference.prepare(one_more, tmp_path / "more", None, silent)
    monkeypatch.setattr(budget, "available_bytes", lambda device: 10**6)
    with pytest.raises(MemoryError, match=r"not even one sample would fit$"):
        reference.prepare(large, tmp_path / "none", None, silent)
