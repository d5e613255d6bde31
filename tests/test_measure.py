"""From a cell to rows: every metric of the contract, one shared reference, reasons instead of numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from judging import OF_A_PROBE

import curvbench as cb
from curvbench.cells import measure, reference
from curvbench.instance import Instance
from curvbench.meters.direction import direction_errors
from curvbench.operators import Diagonal, Identity, Operator
from curvbench.spec import PHASES, Cell, Meter, Probe, Row, Status, Unsupported

PROBLEM = cb.problem("mlp", samples=12, hidden=5, depth=2)


def cell(probe: Probe, seed: int = 0) -> Cell:
    return Cell("test", PROBLEM, probe, seed, dtype="float64")


def silent(text: str) -> None:
    pass


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference") / "whole"
    measure.prepare(cell(cb.probe("identity")), folder, None, silent)
    return folder


def rows_of(probe: Probe, stored: Path) -> pd.DataFrame:
    return pd.DataFrame([vars(row) for row in measure.measure(cell(probe), stored, None, silent)])


@pytest.fixture(scope="module")
def kfac(stored: Path) -> pd.DataFrame:
    return rows_of(cb.probe("kfac", fisher_type="mc"), stored)


def test_every_metric_is_measured(kfac: pd.DataFrame) -> None:
    assert set(kfac["metric"]) == OF_A_PROBE
    assert set(kfac["status"]) == {Status.OK}
    assert kfac["value"].notna().all()


@pytest.mark.parametrize(
    "family", ["flops.counted", "flops.ratio", "memory.peak", "memory.ratio", "time.cpu", "time.ratio"]
)
def test_costs_have_every_phase(kfac: pd.DataFrame, family: str) -> None:
    assert set(kfac.loc[kfac["metric"] == family, "scope"]) == set(PHASES)


def test_times_keep_their_raw_samples(kfac: pd.DataFrame) -> None:
    times = kfac[kfac["metric"] == "time.wall"]
    assert set(times["scope"]) == {"sgd", *PHASES}
    assert times["samples"].map(len).min() >= 1
    assert (times["value"] == times["samples"].map(lambda s: pd.Series(s).median())).all()


def test_step_is_gradient_and_all_phases(kfac: pd.DataFrame) -> None:
    counted = kfac[kfac["metric"] == "flops.counted"].set_index("scope")["value"]
    ratio = kfac[kfac["metric"] == "flops.ratio"].set_index("scope")["value"]
    gradient = counted["step"] - counted[["statistics", "invert", "precondition"]].sum()
    assert gradient > 0
    assert ratio["step"] == pytest.approx(counted["step"] / gradient, rel=1e-12)


def test_errors_have_network_blocks_and_layers(kfac: pd.DataFrame) -> None:
    scopes = set(kfac.loc[kfac["metric"] == "error.relative", "scope"])
    assert scopes == {"network", "layer blocks", "fc1", "fc2", "fc3"}


def test_sampling_error_is_the_distance_to_the_type_2_probe(kfac: pd.DataFrame, stored: Path) -> None:
    limit = rows_of(cb.probe("kfac"), stored).set_index(["metric", "scope"])["value"]
    values = kfac.set_index(["metric", "scope"])["value"]
    for scope in ("network", "layer blocks"):
        expected = values["error.relative", scope] - limit["error.relative", scope]
        assert values["error.sampling", scope] == pytest.approx(expected, rel=1e-12)


def test_stored_reference_gives_the_errors_of_a_fresh_one(kfac: pd.DataFrame, stored: Path) -> None:
    instance, fisher, _ = reference.load(cell(cb.probe("kfac")), stored)
    fresh = cb.exact_fisher(instance)
    assert torch.equal(fisher.gram(), fresh.gram())
    assert torch.equal(fisher.diagonal(), fresh.diagonal())
    operator = cb.fit(cb.probe("kfac", fisher_type="mc"), instance)
    values = kfac.set_index(["metric", "scope"])["value"]
    errors = cb.errors(operator, fresh)
    assert errors.pop("coverage") == fisher.coverage == instance.coverage == 1.0
    for name, value in errors.items():
        assert values[f"error.{name}", "network"] == pytest.approx(value, rel=1e-12)
    for layer in instance.layers:
        block = operator.block(layer.start, layer.start + layer.size)
        expected = cb.errors(block, fresh.layer(layer.name))["relative"]
        assert values["error.relative", layer.name] == pytest.approx(expected, rel=1e-12)


def test_seed_moves_the_label_draws(stored: Path) -> None:
    errors = []
    for seed in (0, 1):
        moved = replace(cell(cb.probe("kfac", fisher_type="mc")), seed=seed)
        rows = measure.measure(moved, stored, None, silent)
        errors += [row.value for row in rows if (row.metric, row.scope) == ("error.relative", "network")]
    assert errors[0] != errors[1]


COMPARES = ("error.", "direction.")


def compared(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["metric"].str.startswith(COMPARES)]


def test_what_compares_says_with_what(kfac: pd.DataFrame) -> None:
    assert compared(kfac)["method"].str.startswith("exact type-2 Fisher in float64").all()
    rest = kfac[~kfac["metric"].str.startswith(COMPARES)]
    assert not rest["method"].str.contains("Fisher").any()
    directions = kfac[kfac["metric"].str.startswith("direction.")]
    assert directions["method"].str.endswith(", damping 0.001").all()


WIDE = cb.problem("resnet", depth=8, width=2, outputs=30, mc_samples=5, samples=4)


def wide(probe: Probe, seed: int = 0) -> Cell:
    return Cell("test", WIDE, probe, seed, dtype="float64")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "whole"
    measure.prepare(wide(cb.probe("identity")), folder, None, silent)
    return folder


def test_a_sampled_reference_is_never_called_exact(drawn: Path) -> None:
    cells = [wide(cb.probe("kfac")), wide(cb.probe("kfac", fisher_type="mc"))]
    for one in cells:
        frame = pd.DataFrame([vars(row) for row in measure.measure(one, drawn, None, silent)])
        good = compared(frame)
        assert set(frame["metric"]) == OF_A_PROBE - {"error.sampling"}
        assert good["method"].str.startswith("Monte-Carlo Fisher of 5 draws in float64").all()
        assert not frame[["method", "reason"]].map(lambda text: "exact" in text).any(axis=None)


@pytest.mark.parametrize("seed", [0, 3])
def test_no_probe_shares_its_labels_with_a_sampled_reference(seed: int, tmp_path: Path) -> None:
    measure.prepare(wide(cb.probe("identity"), seed), tmp_path, None, silent)
    same = wide(cb.probe("full", fisher_type="mc", mc_samples=WIDE.mc_samples), seed)
    rows = measure.measure(same, tmp_path, None, silent)
    (error,) = [row.value for row in rows if (row.metric, row.scope) == ("error.relative", "network")]
    assert error is not None
    assert error >= 0.1


@dataclass(frozen=True)
class Picky(Probe):
    """Refuses everything."""

    def unsupported(self, instance: Instance) -> str | None:
        return "not today"

    def update(self, state: None, batch: Instance) -> None:
        raise AssertionError("never asked")

    def precondition(self, state: None, gradient: torch.Tensor) -> torch.Tensor:
        return gradient

    def operator(self, state: None) -> Identity:
        return Identity(1)


def test_unsupported_is_raised_with_its_reason(stored: Path) -> None:
    with pytest.raises(Unsupported, match="not today"):
        measure.measure(cell(Picky()), stored, None, silent)


class Whole(Picky):
    """An operator without layer blocks."""

    def unsupported(self, instance: Instance) -> str | None:
        return None

    def update(self, state: None, batch: Instance) -> Instance:
        return batch

    def operator(self, state: Instance) -> OneBlock:
        return OneBlock(state.size, torch.float64)


@dataclass(frozen=True)
class OneBlock(Identity):
    """The identity that does not know its blocks."""

    def _block(self, start: int, stop: int) -> Identity:
        raise ValueError("no blocks here")


def test_blocks_that_an_operator_lacks_are_rows_with_a_reason(stored: Path) -> None:
    rows = measure.measure(cell(Whole()), stored, None, silent)
    refused = [row for row in rows if row.status is Status.UNSUPPORTED]
    assert refused == [replace(row, epoch=0) for row in refused]
    assert [(row.metric, row.scope, row.reason) for row in refused] == [
        ("error.relative", "layer blocks", "no blocks here")
    ]
    assert Row in {type(row) for row in rows}


@pytest.mark.parametrize("meters", [("flops",), ("memory", "direction"), ("error",), ("health",)])
def test_metrics_of_other_meters_are_no_rows(meters: tuple[Meter, ...], stored: Path) -> None:
    chosen = replace(cell(cb.probe("diag")), meters=meters)
    families = {row.metric.partition(".")[0] for row in measure.measure(chosen, stored, None, silent)}
    assert families == {"problem", "coverage", *meters}


@dataclass(frozen=True)
class Flawed(cb.FisherProbe):
    """A diagonal and its step, each times a number in text, because a hyperparameter that is a number refuses NaN."""

    matrix: str = "1"
    step: str = "1"

    def update(self, state: None, batch: Instance) -> Diagonal:
        return Diagonal(cb.exact_fisher(batch).diagonal())

    def precondition(self, state: Diagonal, gradient: torch.Tensor) -> torch.Tensor:
        return times(state.solve(gradient, self.damping), float(self.step))

    def operator(self, state: Diagonal) -> Operator:
        return Diagonal(times(state.entries, float(self.matrix)))


def times(values: torch.Tensor, factor: float) -> torch.Tensor:
    return values * factor if math.isfinite(factor) else torch.full_like(values, factor)


FLAWS = {
    "NaN step": (Flawed(step="nan"), "the step is NaN in ", "direction."),
    "infinite step": (Flawed(step="inf"), "the step is infinite in ", "direction."),
    "NaN operator": (Flawed(matrix="nan"), "the trace of the operator is NaN", ("error.", "health.")),
    "infinite operator": (Flawed(matrix="inf"), "the trace of the operator is infinite", ("error.", "health.")),
}


@pytest.mark.parametrize(("probe", "reason", "families"), FLAWS.values(), ids=FLAWS)
def test_what_is_not_finite_ends_the_cell_in_an_error(
    probe: Flawed, reason: str, families: str | tuple[str, ...], stored: Path
) -> None:
    """The other rows are kept: what the cell costs is known, and one half of what it is good for."""
    rows = measure.measure(cell(probe), stored, None, silent)
    assert (rows[-1].metric, rows[-1].scope, rows[-1].status) == ("", "", Status.ERROR)
    assert rows[-1].reason.startswith(reason)
    failed = [row for row in rows[:-1] if row.status is Status.ERROR]
    assert failed and all(row.metric.startswith(families) and row.reason == rows[-1].reason for row in failed)
    remaining = {row.metric.partition(".")[0] for row in rows if row.status is Status.OK}
    assert {"flops", "time", "memory", "health"} <= remaining
    assert ("direction" in remaining) == (families != "direction.") and ("error" in remaining) == (
        families == "direction."
    )


def test_a_zero_step_is_no_error(stored: Path) -> None:
    rows = measure.measure(cell(Flawed(step="0")), stored, None, silent)
    assert Status.ERROR not in {row.status for row in rows}
    (quality,) = [row for row in rows if (row.metric, row.scope) == ("direction.quality", "network")]
    assert quality.status is Status.SKIPPED and "the step is zero" in quality.reason


def directions(probe: Probe, stored: Path, **settings: float) -> pd.DataFrame:
    chosen = replace(cell(probe), meters=("direction", "error", "health"), **settings)  # type: ignore[arg-type]
    frame = pd.DataFrame([vars(row) for row in measure.measure(chosen, stored, None, silent)])
    return frame[frame["metric"] != ""].set_index(["metric", "scope"])


JUDGED = ("direction.", "error.kl")  # what depends on the damping of the table, and not on the probe's own


@pytest.mark.parametrize("damping", [1e-3, 0.05])
def test_directions_are_held_against_one_damping_whatever_the_probes(damping: float, stored: Path) -> None:
    own, usual = (directions(cb.probe("kfac", damping=d), stored, damping=damping) for d in (0.5, damping))
    judged = [name for name in own.index if name[0].startswith(JUDGED)]
    assert own.loc[judged, "value"].tolist() == usual.loc[judged, "value"].tolist()
    assert own.loc[judged, "method"].str.endswith(f", damping {damping:g}").all()
    instance = reference.load(cell(cb.probe("kfac")), stored)[0]
    for name, value in direction_errors(cb.probe("kfac"), instance, damping).items():
        assert own.loc[(f"direction.{name}", "network"), "value"] == pytest.approx(value, rel=1e-9)


def test_the_condition_number_comes_by_request(stored: Path) -> None:
    """At the damping of the table, as divergences; a probe without a damped matrix has a reason, which is no error."""
    chosen = replace(cell(cb.probe("kfac", damping=0.5)), meters=("condition",), damping=0.05)
    rows = {row.metric: row for row in measure.measure(chosen, stored, None, silent)}
    assert "error.kl" not in rows and rows["error.condition"].value is not None
    assert rows["error.condition"].method == "exact type-2 Fisher in float64, damping 0.05"
    instance, fisher, _ = reference.load(chosen, stored)
    assert fisher is not None
    probe = cb.probe("kfac", damping=0.05)
    damped, eye = probe.damped(probe.refresh(probe.fit(instance))), torch.eye(instance.size, dtype=torch.float64)
    assert damped is not None
    values = torch.linalg.eigvals(torch.linalg.solve(damped.to_dense(), fisher.to_dense() + 0.05 * eye)).real
    assert rows["error.condition"].value == pytest.approx(float(values.max() / values.min()), rel=1e-3)
    plain = measure.measure(
        replace(chosen, probe=cb.probe("adam"), meters=("condition", "error")), stored, None, silent
    )
    reasons = {row.metric: row.reason for row in plain if row.status is Status.SKIPPED}
    assert "error.condition" in reasons and "error.kl" not in {row.metric for row in plain}
    assert Status.ERROR not in {row.status for row in plain}


def test_all_else_is_of_the_probe_as_it_is(stored: Path) -> None:
    """A matrix may depend on the damping too, and its condition does."""
    probe = cb.probe("hylo", variant="kid_public", damping=0.5)
    here, there = (directions(probe, stored, damping=damping) for damping in (1e-3, 0.1))
    rest = [name for name in here.index if not name[0].startswith(JUDGED)]
    assert here.loc[rest, "value"].tolist() == there.loc[rest, "value"].tolist()
    assert here.loc[("health.condition", "network"), "method"] == "damping 0.5"


def test_rows_say_how_the_probe_was_damped(stored: Path) -> None:
    for name, words in (("cwngd", "as the probe's damping=0.012"), ("adam", "own damping (epsilon is added")):
        methods = directions(cb.probe(name), stored).loc["direction.quality", "method"]
        assert methods.str.startswith(f"exact type-2 Fisher in float64, damping 0.001, {words}").all()


def test_arguments_of_another_kind_are_told_what_to_give() -> None:
    """The slips of a first hour: parameters instead of the module, a name instead of a probe, arguments exchanged."""
    model: Any = torch.nn.Linear(3, 2)
    instance = cb.Instance(model, torch.randn(5, 3), torch.randint(2, (5,)))
    fisher: Any = cb.exact_fisher(instance)
    operator: Any = cb.fit(cb.probe("diag"), instance)
    name: Any = "kfac"
    slips = {
        "give the module itself": lambda: cb.NaturalGradient(model.parameters(), cb.probe("kfac")),
        "probe must be of type Probe, got str": lambda: cb.NaturalGradient(model, name),
        r"give curvbench\.probe\(name\)": lambda: cb.fit(name, instance),
        "got str": lambda: cb.direction_errors(name, instance),
        r"give errors\(operator, ": lambda: cb.errors(fisher, operator),
    }
    for words, slip in slips.items():
        with pytest.raises(TypeError, match=words):
            slip()
    assert repr(fisher) == "ExactFisher(8 parameters, 1 layers, 5 terms; all parameters)"


@pytest.mark.parametrize(("name", "says"), [("kfac", True), ("ekfac", True), ("diag", False), ("full", False)])
def test_a_row_says_which_factors_are_diagonals(
    name: str, says: bool, stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("curvbench.parts.factors.LARGEST_SIDE", "curvbench.cells.measure.LARGEST_SIDE"):
        monkeypatch.setattr(place, 7)
    rows = rows_of(cb.probe(name), stored)
    found = rows[rows.metric == "coverage.parameters"].reason.item()
    assert found == ("factors above 7 rows are their diagonals: 'fc1', 'fc3'" if says else "")
