"""Planned memory: against live tensor bytes, term by term, and the largest batch that fits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import curvbench as cb
from curvbench import training
from curvbench.fisher.budget import GRAPH_BYTES, SCRATCH, available_bytes, largest_batch, planned_bytes
from curvbench.meters.memory import MemoryMeter
from curvbench.spec import LayerSize, Problem

LINEAR = LayerSize(1, 10, 21, 1)
CONV = LayerSize(2, 4, 19, 36, 9)


@pytest.mark.parametrize("itemsize", [4, 8])
def test_terms_of_the_sum(itemsize: int) -> None:
    N, R = 6, 9
    slopes, inputs = N * R * 2 * 4 * 36, N * 2 * 36 * (19 // 9)  # of the convolution, which is larger
    patches, parameters = N * 2 * 19 * 36, 10 * 21 + 2 * 4 * 19
    contraction = 3 * 8 * (N * R) ** 2 + patches * itemsize + 16 * parameters + SCRATCH
    assert planned_bytes([LINEAR, CONV], N, R, itemsize) == (slopes + inputs) * itemsize + contraction


def test_a_long_pass_counts_instead_of_the_grams() -> None:
    wide = LayerSize(1, 10**4, 2, 10**4)
    assert planned_bytes([wide], 2, 1, 4) == 2 * (10**8 + 2 * 10**4) * 4 + GRAPH_BYTES + 10**8 * 24


@pytest.mark.parametrize("columns", [1, 9, 99])
@pytest.mark.parametrize("available", [10**5, 10**9, 10**10])
def test_largest_batch_fits_and_one_more_does_not(columns: int, available: int) -> None:
    largest = largest_batch([LINEAR, CONV], columns, 4, available, 10**7)
    assert largest == 0 or planned_bytes([LINEAR, CONV], largest, columns, 4) <= available
    assert planned_bytes([LINEAR, CONV], largest + 1, columns, 4) > available
    assert largest_batch([LINEAR, CONV], columns, 4, available, 3) == min(largest, 3)


@pytest.mark.parametrize(
    ("problem", "dtype"),
    [
        (cb.problem("mlp", samples=150), torch.float64),
        (cb.problem("transformer", samples=8), torch.float32),
        (cb.problem("vgg", width=16, samples=40), torch.float32),
    ],
    ids=lambda part: getattr(part, "name", ""),
)
def test_plan_holds_what_is_used_and_little_more(problem: Problem, dtype: torch.dtype) -> None:
    model = training.snapshot(problem, 0, None, dtype=dtype)
    instance = cb.Instance(model, *training.batch(problem, problem.data(None), 0, dtype=dtype))
    with MemoryMeter() as meter:
        fisher = cb.exact_fisher(instance, memory=0)
        fisher.gram()
        fisher.diagonal()
    columns = instance.terms_per_sample * (instance.classes - 1)
    planned = planned_bytes(list(instance.sizes.values()), instance.samples, columns, dtype.itemsize)
    assert planned - SCRATCH <= 1.1 * meter.peak
    assert meter.peak <= planned


def test_available_memory_is_no_more_than_there_is() -> None:
    available = available_bytes(torch.device("cpu"))
    assert available > 0
    if Path("/proc/meminfo").is_file():
        total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
        assert available <= total
