"""Counted claims: where nothing was measured, layer shapes decide, and the ruling says so."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

import curvbench as cb
from curvbench.analysis.claims import judge
from curvbench.analysis.counted import Counted
from curvbench.analysis.papers import Claim, experiments
from curvbench.analysis.verdicts import Verdict
from curvbench.prediction.files import dumped, shipped
from curvbench.registry import parse_problem

KNOWN = {experiment.id: experiment for experiment in experiments()}
COUNTED = {
    "ginger_t1_cifar100": 8,
    "ginger_t2_xsum": 6,
    "lngd_t2_imagenet": 1,
    "lngd_t3_wmt": 1,
    "lngd_t5_ablation": 1,
}
GINGER = KNOWN["ginger_t1_cifar100"]
SCRIPT = Path(__file__).parents[2] / "scripts" / "make_shapes.py"


def nothing() -> pd.DataFrame:
    columns = ("suite", "probe", "probe_args", "problem", "problem_args", "seed", "metric", "scope", "status", "method")
    return pd.DataFrame({name: pd.Series(dtype=str) for name in (*columns, "cell_id", "started_at", "epoch", "value")})


def test_costs_that_were_not_measured_are_counted_and_say_so() -> None:
    judged = judge(nothing(), KNOWN.values())
    counted = [entry for entry in judged if entry.original.counted_only]
    assert pd.Series([entry.experiment.id for entry in counted]).value_counts().to_dict() == COUNTED
    for entry in counted:
        assert entry.original.reason.startswith("counted only: ") and entry.original.seeds == 0
        assert entry.original.verdict is not Verdict.NOT_MEASURED
        assert entry.surrogate.verdict is Verdict.NOT_MEASURED
        has_seconds = "s_per" in str(entry.claim.chain)
        assert (", no seconds" in entry.original.reason) is has_seconds


def test_a_step_is_over_sgds_and_memory_too() -> None:
    """Ginger by hand: a second gradient, 8 K + 2 K (K + 1) + 6 and 4 K + 2 FLOPs per parameter, and K numbers kept."""
    counted, network = Counted(GINGER), cb.shapes("resnet18-cifar100")
    sgd = cb.cost(network, "sgdm", samples=128)
    P, K = network.parameters, 32
    own = (8 * K + 2 * K * (K + 1) + 6 + 4 * K + 2) * P
    passes = sgd.gradient - 4 * P
    flops = counted.read("resnet18.GINGER32.flops").middle
    assert flops == pytest.approx((sgd.gradient + passes + own) / sgd.gradient, rel=1e-3)
    memory = counted.read("resnet18.GINGER32.mem_gb").middle
    assert memory > 1 + K * 4 * P / sgd.total
    assert counted.read("resnet18.Momentum.flops").middle == pytest.approx(1, abs=1e-3)
    assert counted.read("resnet18.Momentum.mem_gb").middle == 1


def test_other_columns_and_rows_without_shapes_are_not_counted() -> None:
    counted = Counted(GINGER)
    assert counted.decides(Claim("", ["resnet18.Adam.flops", 2.0]))
    assert not counted.decides(Claim("", ["resnet18.Adam.flops", "resnet18.Momentum.acc"]))
    assert not Counted(replace(GINGER, shapes={})).decides(Claim("", ["resnet18.Adam.flops", 2.0]))


def test_shapes_are_traced_as_an_instance_has_them() -> None:
    spec = importlib.util.spec_from_file_location("make_shapes", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert set(script.NETWORKS) <= set(shipped())
    name = "resnet18-cifar100"
    assert dumped(script.shapes(name)) == dumped(cb.shapes(name))
    problem = parse_problem("resnet[depth=50,width=4]")
    inputs, targets = torch.randn(2, 1, 8, 8), torch.tensor([0, 3])
    expected = cb.shapes(cb.Instance(problem.model().eval(), inputs, targets))
    script.NETWORKS["small"] = script.Network("resnet[depth=50,width=4]", "He et al. 2016")
    traced = script.shapes("small")
    assert traced.parameters == expected.parameters
    products = [sum(la.product for la in found.layers) for found in (traced, expected)]
    assert math.isclose(*products, rel_tol=1e-12)
