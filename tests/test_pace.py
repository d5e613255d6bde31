"""Paces: what the steps of a training cost, by kind and by part."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from curvbench import probe, problem
from curvbench.cells import pace
from curvbench.meters.flops import FlopMeter
from curvbench.optim import NaturalGradient
from curvbench.spec import Cell, Probe, Row, Training

SPARSE = Training(epochs=1, lr=1e-3, batch=64, stat_every=5, refresh_every=50, paced=4)
OFTEN = replace(SPARSE, stat_every=1, refresh_every=1)
RESNET = problem("resnet", depth=8, width=4)


def rows(chosen: Probe, training: Training) -> dict[tuple[str, str], Row]:
    cell = Cell("s", RESNET, chosen, 0, training=training, parameters="weights")
    torch.manual_seed(0)
    found = pace.paced(cell, RESNET.model(), RESNET.data(None), lambda line: None)
    by_name = {(row.metric, row.scope): row for row in found}
    assert len(by_name) == len(found)
    return by_name


def flops(chosen: Probe, **settings: Any) -> list[float]:
    """FLOPs of the second to fifth step of a training loop in plain PyTorch."""
    torch.manual_seed(0)
    model, dataset = RESNET.model().train(), RESNET.data(None)
    assert isinstance(dataset.train_inputs, torch.Tensor)
    optimizer = NaturalGradient(model, chosen, 1e-3, 0.9, parameters="weights", **settings)
    counts = []
    for k in range(5):
        x, y = dataset.train_inputs[64 * k : 64 * k + 64], dataset.train_targets[64 * k : 64 * k + 64]
        optimizer.rest_checks()
        with FlopMeter() as meter:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(optimizer.forward(x, y), y).backward()
            optimizer.step()
        counts.append(float(meter.total))
    return counts[1:]


def test_the_mean_step_has_each_kind_as_often_as_the_training() -> None:
    kinds = {"plain": 2.0, "statistics": 7.0, "invert": 57.0}
    hundred = [57.0 if k % 50 == 0 else 7.0 if k % 5 == 0 else 2.0 for k in range(100)]
    assert pace.per_step(kinds, SPARSE) == pytest.approx(sum(hundred) / 100)
    assert pace.per_step({"statistics": 7.0, "invert": 57.0}, replace(SPARSE, stat_every=1)) == 7.0 + 50.0 / 50
    assert pace.per_step({"invert": 57.0}, OFTEN) == 57.0


def test_the_flops_of_a_mean_step_are_those_of_a_loop_in_plain_pytorch() -> None:
    chosen = probe("kfac", fisher_type="mc")
    plain, statistics, _, invert = flops(chosen, stat_every=2, refresh_every=4)
    expected = plain + (statistics - plain) / 5 + (invert - statistics) / 50
    found = rows(chosen, SPARSE)
    assert found["pace.flops", "step"].value == pytest.approx(expected, rel=0.02)  # batches of 62 and 63 samples
    sgd = rows(probe("sgdm"), OFTEN)["pace.flops_ratio", "step"].value
    assert sgd is not None and 1.0 <= sgd < 1.001
    ratio = found["pace.flops_ratio", "step"].value
    assert ratio is not None and ratio > 1.05


def test_fngd_is_clocked_after_its_first_epoch_and_ngd_is_not_spared_its_statistics() -> None:
    shared, first = (rows(probe("fngd", stage=stage), OFTEN) for stage in ("shared", "first"))
    assert (shared["pace.flops_ratio", "step"].value or 9.0) < 1.01
    assert (first["pace.flops_ratio", "step"].value or 0.0) > 2.0


def test_samples_are_turn_by_turn_and_the_clock_sees_every_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = iter(range(1, 1000))

    def clock(step: object, device: torch.device) -> float:
        assert callable(step)
        step()
        return float(next(taken))

    monkeypatch.setattr(pace, "seconds", clock)
    found = rows(probe("kfac", fisher_type="mc"), replace(SPARSE, paced=8))
    assert list(found["pace.seconds", "sgd"].samples) == [4.0, 12.0]  # 1, 3, 5 and 7, then 9, 11, 13 and 15
    assert list(found["pace.seconds", "invert"].samples) == [2.0, 10.0]
    assert list(found["pace.seconds", "plain"].samples) == [6.0, 14.0]  # 4 and 8, then 12 and 16
    assert list(found["pace.seconds", "statistics"].samples) == [6.0, 14.0]
    steps = [6.0 - 4.0 / 50, 14.0 - 4.0 / 50]
    assert list(found["pace.seconds", "step"].samples) == pytest.approx(steps)
    assert list(found["pace.ratio", "step"].samples) == pytest.approx([steps[0] / 4.0, steps[1] / 12.0])


def test_parts_of_a_step_make_up_the_step_and_none_counts_twice() -> None:
    found = rows(probe("fngd", stage="first"), OFTEN)
    parts = {name: found["pace.part", name].value or 0.0 for name in pace.PARTS}
    assert all(parts[name] > 0 for name in ("forward", "backward", "statistics", "precondition", "update"))
    shared = rows(probe("fngd", stage="shared"), OFTEN)
    assert (shared["pace.part", "precondition"].value or 0.0) > 0  # inside of the backward pass
    both = shared["pace.part", pace.BOTH].value or 0.0
    assert both == (shared["pace.part", "backward"].value or 0) + (shared["pace.part", "precondition"].value or 0)


def test_a_part_in_which_others_happen_is_given_without_them() -> None:
    spans = {"forward": (0, 10), "backward": (10, 40), "update": (40, 100), "statistics": (45, 65), "invert": (65, 75)}
    events = [(name, *span) for name, span in spans.items()]
    events += [("precondition", 15, 20), ("precondition", 25, 32), ("precondition", 80, 90)]
    made = [
        SimpleNamespace(
            name=f"curvbench.{name}",
            time_range=SimpleNamespace(start=start, end=end, elapsed_us=lambda taken=end - start: taken),
        )
        for name, start, end in events
    ]
    expected = {"forward": 10, "backward": 30 - 12, "statistics": 20, "invert": 10, "precondition": 22, "update": 20}
    assert pace._by_label(made) == pytest.approx({name: us / 1e6 for name, us in expected.items()})  # type: ignore[arg-type]
