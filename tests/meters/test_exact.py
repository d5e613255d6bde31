"""The meter of the exact Fisher itself: its counts against formulas, its statistics against sampling."""

from __future__ import annotations

import pytest
import torch
from cases import Case, Truth, fisher_of, instance_of, truth
from judging import OF_THE_EXACT_FISHER

import curvbench as cb
from curvbench.fisher import contraction
from curvbench.meters import exact
from curvbench.spec import METRICS, Precision

# torch's own: it scripts its forward-mode derivatives when the first is taken
torch_jit_is_deprecated = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")


@torch_jit_is_deprecated
def test_fisher_product_without_columns(case: Case, judge: Truth) -> None:
    instance = instance_of(case.name)
    v = torch.randn(judge.size, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    expected = judge.fisher() @ v
    assert float((instance.fisher_product(v) - expected).norm()) <= 1e-10 * float(expected.norm())


@torch_jit_is_deprecated
def test_every_stage_has_its_rows() -> None:
    instance = instance_of("mlp_tanh")
    measured = list(exact.exact_rows(instance))
    assert {row.method for row in measured if row.metric.startswith("time.")} == {"mixed precision"}
    rows = {(row.metric, row.scope): row.value for row in measured}
    assert {metric for metric, _ in rows} <= set(METRICS)
    assert {metric for metric, _ in rows} - {"time.wall", "flops.counted", "memory.peak"} == OF_THE_EXACT_FISHER
    for metric in ("time.wall", "time.floor", "flops.counted", "memory.peak"):
        stages = [rows[metric, stage] for stage in (*exact.Stages.names, "total")]
        assert all(value is not None and value > 0 for value in stages)
    for metric in ("time.wall", "flops.counted"):
        parts = [rows[metric, stage] or 0.0 for stage in exact.Stages.names]
        assert sum(parts) == pytest.approx(rows[metric, "total"])
    peak = rows["machine.peak", "float64"] or 0.0
    floor = (rows["flops.counted", "contraction"] or 0.0) / peak
    assert rows["time.floor", "contraction"] == pytest.approx((rows["time.wall", "contraction"] or 0.0) / floor)


def test_flops_are_counted_by_the_dtype_they_run_in() -> None:
    """Mixed precision runs forward passes in float64 and backward passes in float32."""
    single = instance_of("mlp_tanh").to(torch.float32)
    assert single.has_float64_values()  # tried by passes of its own, once
    mixed, native = (exact.count(single, precision).by_dtype["passes"] for precision in ("mixed", "native"))
    assert mixed.keys() == {torch.float32, torch.float64}
    assert 0 < mixed[torch.float32] < native[torch.float32]  # which has the forward pass too


@pytest.mark.parametrize("precision", ["mixed", "native", "float64"])
def test_the_precision_decides_in_what_stages_are_made(precision: Precision) -> None:
    stages = exact.Stages(instance_of("mlp_tanh").to(torch.float32), precision)
    stages.passes()
    assert stages.fisher.dtype == stages.dtype("contraction")
    assert stages.dtype("passes") == (torch.float32 if precision == "native" else torch.float64)


def test_contraction_takes_the_flops_that_choose_its_order() -> None:
    instance = instance_of("nasty_cnn")
    columns = cb.exact_fisher(instance).columns
    modelled = sum(contraction.cost(c, contraction.cheaper(c)) for c in columns)
    counted = exact.count(instance).flops["contraction"]
    assert 0.5 * modelled <= counted <= 3 * modelled  # small matrices: whole tiles, elementwise sums


def test_total_bytes_hold_the_columns_while_they_are_contracted() -> None:
    instance = instance_of("nasty_cnn")
    work = exact.count(instance)
    first, *others = cb.exact_fisher(instance).columns  # the first layer's input is the user's
    columns = first.slopes.nbytes + sum(c.slopes.nbytes + c.inputs.nbytes for c in others)
    assert work.bytes["total"] >= columns + work.bytes["contraction"]


def test_hutchinson_draws_give_the_error_they_promise() -> None:
    dense, error = truth("mlp_tanh").fisher(), 0.2
    draws = round(exact.hutchinson_draws(fisher_of("mlp_tanh"), error))
    z = torch.randn(len(dense), 400 * draws, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    norms = (dense @ z).square().sum(0).reshape(400, draws).mean(1).sqrt() / dense.norm()
    spread = float((norms - 1).square().mean().sqrt())
    assert 0.8 * error <= spread <= 1.2 * error
