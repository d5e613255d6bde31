"""The suites that come with curvbench: every preset can be planned, and none measures a cell twice."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

import curvbench as cb
from curvbench.planning.selection import select
from curvbench.registry import load_suite
from curvbench.spec import Cell, Kind, Preset
from curvbench.training import batch, snapshot

SUITES = Path(__file__).parent.parent / "suites"
FILES = sorted([*SUITES.glob("*.py"), *(SUITES / "papers").glob("*.py")])
PRESETS = {(f.stem, name): preset for f in FILES for name, preset in load_suite(f)[1].presets.items()}


def cells(suite: str, preset: Preset) -> list[Cell]:
    return select(suite, preset)


@pytest.mark.parametrize(("suite", "preset"), PRESETS)
def test_cells_are_different(suite: str, preset: str) -> None:
    found = cells(suite, PRESETS[suite, preset])
    assert len(set(found)) == len(found) > 0


@pytest.mark.parametrize("suite", [suite for (suite, name), p in PRESETS.items() if name == "default" and p.training])
def test_a_training_that_is_measured_has_a_range(suite: str) -> None:
    """Training amplifies rounding, and another machine finds another number: of three seeds there is a range."""
    assert len(set(PRESETS[suite, "default"].seeds)) >= 3


@pytest.mark.parametrize("preset", ["default", "quick"])
def test_kinds_has_every_kind_of_block_and_all_parameters(preset: str) -> None:
    found = set()
    for problem in PRESETS["kinds", preset].problems:
        instance = cb.Instance(snapshot(problem, 0, None), *batch(problem, problem.data(None), 0))
        assert instance.coverage == 1.0
        found |= {layer.kind for layer in instance.layers}
    assert found == set(get_args(Kind)) - {"conv1d"}


def test_convergence_has_updates_rank_and_decay_beside_the_bound_of_every_rank() -> None:
    probes = [
        cell.probe.hyperparameters | {"name": cell.probe.name} for cell in cells("c", PRESETS["convergence", "default"])
    ]
    bounds = {p["rank"] for p in probes if p["name"] == "eigen"}
    ginger, qng = ([p for p in probes if p["name"] == name] for name in ("ginger", "qng"))
    assert len({p["decay"] for p in ginger}) >= 3
    assert {p["update_form"] for p in ginger} == {"direct", "fix_a", "fix_b", "printed"}
    assert bounds == {p["memory"] for p in qng} and bounds <= {p["rank"] for p in ginger}
    for rank in bounds:
        steps = [{p["updates"] for p in ps if p[key] == rank} for ps, key in ((ginger, "rank"), (qng, "memory"))]
        assert len(steps[0]) >= 5 and steps[0] == steps[1]
    for p in probes:
        if p["name"] == "fngd":
            assert p["stage"] == "shared"
    fngd = {p["updates"] > p["batches"] for p in probes if p["name"] == "fngd"}
    assert fngd == {False, True}
