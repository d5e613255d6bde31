"""Every probe on batches permuted, tied, saturated, dead or tiny, in four precisions: rows have numbers or reasons."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import curvbench as cb
from curvbench import registry
from curvbench.cells.measure import Fitted, accuracy_rows
from curvbench.spec import Row, Status

KINDS = ("permuted", "tied", "saturated", "confident", "dead", "tiny")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def instance(kind: str, dtype: torch.dtype, seed: int) -> cb.Instance:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(6, 5, generator=generator), torch.randint(3, (6,), generator=generator)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    with torch.no_grad():
        if kind == "saturated":  # one wrong sample, its logits 170 apart
            model[2].bias.copy_(torch.tensor([170.0, 0.0, 0.0]))
            y = torch.zeros_like(y).index_fill(0, torch.tensor([2]), 1)
        if kind == "confident":
            model[2].weight.mul_(50.0)
        if kind == "dead":
            model[0].bias[1] = -100.0
    rows = {"tied": [0, 0, 1, 1, 0, 0], "permuted": [5, 3, 1, 0, 2, 4], "tiny": [0]}.get(kind, range(6))
    chosen = torch.tensor(list(rows))
    return cb.Instance(model.to(dtype), x[chosen].to(dtype), y[chosen])


def rows_of(probe: cb.Probe, found: cb.Instance) -> list[Row]:
    return list(accuracy_rows(Fitted.of(probe, found), cb.exact_fisher(found)))


def few_updates(name: str) -> cb.Probe:
    """The probe with at most 32 updates, because a method that takes hundreds shows no more in the others."""
    return cb.probe(name, updates=32) if cb.probe(name).updates > 32 else cb.probe(name)


@pytest.mark.parametrize("name", sorted(registry.probes()))
@settings(max_examples=6, deadline=None)
@given(kind=st.sampled_from(KINDS), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 20))
def test_every_row_has_a_finite_value_or_a_reason(name: str, kind: str, dtype: torch.dtype, seed: int) -> None:
    """An error is one of an operator or a step that says of itself that it is none, or a lack of digits."""
    probe, found = few_updates(name), instance(kind, dtype, seed)
    if probe.unsupported(found):
        return
    try:
        rows = rows_of(probe, found)
    except ValueError as refusal:  # a sum in float32 may be further from PSD than the damping: an error's reason
        assert dtype != torch.float64 and "singular to working precision" in str(refusal), refusal
        return
    assert rows
    for row in rows:
        numbers = [row.value, *row.samples] if row.status == Status.OK else []
        assert all(number is not None and math.isfinite(number) for number in numbers), row
        assert row.status == Status.OK or row.reason, row
