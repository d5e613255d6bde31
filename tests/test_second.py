"""The second batch of a cell: which samples it has, what names its reference, and the rows that need it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import curvbench as cb
from curvbench import training
from curvbench.analysis import views
from curvbench.analysis.compare import compare
from curvbench.analysis.views import Quantity
from curvbench.cells import measure, reference, second
from curvbench.cells.given import Given
from curvbench.comparison import suite_of
from curvbench.meters.damping import GRID, scope_of, targets_of
from curvbench.spec import METERS, Cell, Meter, Row

PROBLEM = cb.problem("mlp", samples=12, hidden=5, depth=2)
WITH_GRID: tuple[Meter, ...] = (*METERS, "damping")


def cell(probe: str = "kfac", meters: tuple[Meter, ...] = ("damping",), **given: Any) -> Cell:
    return Cell("test", PROBLEM, cb.probe(probe), 0, dtype="float64", meters=meters, **given)


def silent(text: str) -> None:
    pass


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(6 + k, 4).double(), torch.randint(3, (6 + k,))) for k in range(count)]


def measured(one: Cell, folder: Path) -> dict[tuple[str, str], Row]:
    reference.prepare(one, folder, None, silent)
    return {(row.metric, row.scope): row for row in measure.measure(one, folder, None, silent)}


def test_a_cell_without_the_meter_keeps_its_reference(tmp_path: Path) -> None:
    plain = cell(meters=METERS)
    assert reference.reference_identity(plain) == reference.reference_identity(replace(plain, probe=cb.probe("diag")))
    assert reference.reference_identity(plain) != reference.reference_identity(replace(plain, meters=WITH_GRID))
    rows = measured(plain, tmp_path)
    assert not [metric for metric, _ in rows if metric.startswith("damping.")]
    stored = torch.load(tmp_path / "reference.pt", weights_only=True)
    assert not {"second", "targets"} & stored.keys()


def test_the_meter_alone_has_its_rows_and_no_others(tmp_path: Path) -> None:
    rows = measured(cell(), tmp_path)
    families = {metric.partition(".")[0] for metric, _ in rows}
    assert families == {"problem", "coverage", "damping"}
    assert rows["damping.best", "network"].value in GRID
    assert "on a second batch" in rows["damping.best", "network"].method
    assert rows["damping.best", "network"].method.startswith("exact type-2 Fisher in float64, target's damping 0.001")
    assert rows["damping.decrease", scope_of(GRID[0])].method == "at its best length, on a second batch"


def test_other_rows_are_those_of_a_cell_without_the_meter(tmp_path: Path) -> None:
    without = measured(cell(meters=("error", "direction", "health", "flops", "memory")), tmp_path / "a")
    with_grid = measured(cell(meters=("error", "direction", "health", "flops", "memory", "damping")), tmp_path / "b")
    assert {key: row.value for key, row in with_grid.items() if key in without} == {
        key: row.value for key, row in without.items()
    }


def test_the_second_batch_of_a_problem_is_another_draw(tmp_path: Path) -> None:
    one = cell()
    reference.prepare(one, tmp_path, None, silent)
    stored = torch.load(tmp_path / "reference.pt", weights_only=True)
    inputs, targets = training.batch(PROBLEM, PROBLEM.data(None), second.DRAWN, dtype=torch.float64)
    assert torch.equal(stored["second"][0], inputs) and torch.equal(stored["second"][1], targets)
    assert not torch.equal(stored["batch"][0], inputs)
    instance, fisher, _ = reference.load(one, tmp_path)
    assert fisher is not None
    targets_now = targets_of(fisher, instance.gradient(), 1e-3)
    found, descent = reference.judges(one, tmp_path, instance)
    for a, b in zip(found, targets_now, strict=True):
        assert torch.allclose(a, b, rtol=1e-9)
    step, other = instance.gradient(), cb.Instance(instance.model, inputs, targets)
    assert descent.loss(step)(2.0) == pytest.approx(other.loss_along(step)(2.0), rel=1e-12)


@pytest.mark.parametrize(("count", "where"), [(1, "the batch itself"), (3, "the next batch")])
def test_given_batches_are_each_others_second(count: int, where: str, tmp_path: Path) -> None:
    held = batches(count)
    problem = Given.of(network(), held, "cross_entropy")
    for seed in range(count):
        one = replace(cell(), problem=problem, seed=seed)
        rows = measured(one, tmp_path / str(seed))
        assert rows["damping.best", "network"].method.endswith(f"on {where}")
        stored = torch.load(tmp_path / str(seed) / "reference.pt", weights_only=True)
        assert torch.equal(stored["second"][0], held[(seed + 1) % count][0])


def test_a_probe_that_holds_its_damping_is_fitted_at_each(tmp_path: Path) -> None:
    """CW-NGD's damping is in units of the sum over the batch."""
    rows = measured(cell("cwngd"), tmp_path)
    assert rows["damping.best", "network"].value in GRID
    assert all(rows["damping.quality", scope_of(d)].value is not None for d in GRID)


@pytest.mark.parametrize("probe", ["adam", "lngd", "sgdm", "shampoo"])
def test_a_probe_without_a_damping_has_no_grid(probe: str, tmp_path: Path) -> None:
    assert not [metric for metric, _ in measured(cell(probe), tmp_path) if metric.startswith("damping.")]


def frame_of_measure(*given: Any, **options: Any) -> pd.DataFrame:
    return cb.measure(*given, progress=False, **options).frame


def test_measure_has_the_grid_and_tables_take_it() -> None:
    frame = frame_of_measure(network(), *batches(1)[0], probes=["kfac", "adam"])
    of_kfac = frame[(frame["probe"] == "kfac") & frame["metric"].str.startswith("damping.")]
    curve = of_kfac[of_kfac["scope"].str.fullmatch(r"damping=\S+") & (of_kfac["metric"] == "damping.quality")]
    assert curve["scope"].tolist() == [scope_of(d) for d in GRID]
    assert not of_kfac.duplicated(["metric", "scope"]).any(), "a comparison takes the median of rows of one scope"
    assert set(frame["status"]) == {"ok"}
    problem = views.layers(frame, cb.analysis.frames.problems(frame)[0], "damping.quality")
    assert problem.columns.tolist() == ["network", "0", "2"]
    assert Quantity("damping.best", "network") in views.quantities(frame, views.FAMILIES)
    table = compare(frame, frame)
    of_grid = table[table["metric"].str.startswith("damping.")]
    assert set(of_grid["verdict"]) == {"equal"} and len(of_grid) == len(of_kfac)


def test_the_suite_of_a_model_has_the_grid() -> None:
    suite = suite_of(Given.of(network(), batches(1), "cross_entropy"), ["kfac"], None, "all")
    assert suite.presets["default"].meters == WITH_GRID


def test_a_gradient_of_zero_has_a_reason() -> None:
    model = nn.Linear(3, 2).double()
    inputs = torch.randn(5, 3).double()
    frame = frame_of_measure(model, inputs, model(inputs).detach(), loss="gaussian", probes=["kfac"])
    rows = frame[frame["metric"] == "damping.best"]
    assert rows["status"].tolist() == ["skipped"] and rows["reason"].iloc[0].startswith("the gradient is zero")
    assert "error" not in set(frame["status"])
