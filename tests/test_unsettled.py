"""What it would take to measure the papers' claims that nothing has measured."""

from __future__ import annotations

import math
from typing import Any

import pytest

from curvbench import Preset, Search, Suite, Training, prediction, probe, problem, shipped
from curvbench.analysis.claims import Judged, Ruling
from curvbench.analysis.papers import Claim, Column, Entry, Experiment
from curvbench.analysis.verdicts import Verdict
from curvbench.cli.app import main
from curvbench.planning.unsettled import RATE, Unsettled, unsettled

NOTHING = Ruling(Verdict.NOT_MEASURED, "not run")
ACC, PACE = Column("%", "test.accuracy"), Column("x", "pace.ratio", scope="step")
ROWS = {"S": Entry("sgdm"), "K": Entry("kfac")}


def plan(presets: dict[str, Preset], column: Column = ACC, verdict: Ruling = NOTHING, **other: Any) -> list[Unsettled]:
    claim = Claim("t", ["S.c", "K.c"])
    known = Experiment("x", "P", "T", "c", "s", {"c": column}, ROWS, [claim], examples=1000, batch=64, **other)
    surrogate = Preset([problem("mlp")], [probe("sgdm")])
    suite = Suite("t", {"default": surrogate, **presets}, original=tuple(presets))
    return unsettled([Judged(known, claim, "", verdict, NOTHING)], {"x": suite})


def paper(**other: Any) -> Preset:
    training = Training(epochs=4, lr=0.1, batch=64)
    sparse = {"kfac": {"stat_every": 10, "refresh_every": 100}}
    methods = [probe("sgdm"), probe("kfac")]
    return Preset([problem("resnet")], methods, seeds=(0, 1, 2), training=training, tuned=sparse, **other)


def test_hours_are_those_of_all_steps_of_all_trainings_and_trials() -> None:
    search = Search({"lr": (0.1, 0.2), "damping": (0.1, 0.2, 0.3)}, seeds=(0,), epochs=2, valid=0.25)
    (found,) = plan({"paper": paper(search=search)}, shapes={"": "resnet50"}, needs="photographs")
    assert (found.cells, found.trials) == (6, 2 + 6)
    per_epoch = math.ceil(1000 / 64)
    network = prediction.shapes("resnet50")
    sgd, kfac = (prediction.cost(network, name, samples=64) for name in ("sgdm", "kfac"))
    mean = kfac.gradient + kfac.precondition + kfac.statistics / 10 + kfac.invert / 100
    expected = per_epoch * ((4 * 3 + 2 * 0.75 * 2) * sgd.gradient + (4 * 3 + 2 * 0.75 * 6) * mean)
    assert found.flops == pytest.approx(expected, rel=1e-3)  # SGD's step holds a few FLOPs of its own
    assert found.hours == pytest.approx(expected / RATE / 3600, rel=1e-3)
    assert found.command == "curvbench run papers/x --preset paper --device cuda --data DIR"


def test_claims_about_cost_take_the_preset_that_clocks_steps() -> None:
    clocked = Preset([problem("resnet")], [probe("sgdm")], training=Training(epochs=1, lr=0.1, paced=4))
    (found,) = plan({"paper": paper(), "steps": clocked}, PACE, shapes={"": "resnet50"})
    assert "--preset steps" in found.command
    step = prediction.cost(prediction.shapes("resnet50"), "sgdm", samples=128).gradient
    assert found.flops == pytest.approx(4 * step, rel=1e-3)


def test_what_is_measured_is_not_planned_and_unknown_networks_have_no_hours() -> None:
    assert plan({"paper": paper()}, verdict=Ruling(Verdict.REFUTED)) == []
    (found,) = plan({"paper": paper()})
    assert found.flops is None and found.hours is None and found.cells == 6


def test_the_verb_lists_what_is_missing_with_commands_the_cheapest_first(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["claims", "--plan"])
    out = capsys.readouterr().out
    assert ended.value.code == 0
    hours = [float(line.split()[0].replace(",", "")) for line in out.splitlines() if "GPU hours" in line]
    assert len(hours) > 5 and hours == sorted(hours)
    assert "curvbench run papers/fngd_f7_imagenet --preset paper --device cuda --data DIR" in out
    assert "Cannot be measured: " in out
    assert not list((shipped.DATA / "reference").rglob("rows.copy")), "what is shipped stays as it was made"
