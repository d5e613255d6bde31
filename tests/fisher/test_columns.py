"""Contractions of score columns with a matrix on one side, in both orders, against the dense block."""

from __future__ import annotations

import oracles
import pytest
import torch
from cases import Case, Truth, instance_of
from judging import group_blocks, near
from torch import Tensor

from curvbench.fisher import collect
from curvbench.fisher.columns import Columns
from curvbench.meters.flops import FlopMeter
from curvbench.spec import Layer


def symmetric(*shape: int) -> Tensor:
    matrix = torch.randn(*shape, dtype=torch.float64)
    return matrix + matrix.mT


@pytest.mark.parametrize("kernels", [True, False])
def test_contractions(case: Case, judge: Truth, kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over [i, a, j, b] of a block as (outputs, inputs, outputs, inputs)."""
    monkeypatch.setattr(Columns, "_kernels_are_cheaper", kernels)
    blocks = iter(group_blocks(judge, judge.fisher() * len(judge.terms)))
    for columns in collect(instance_of(case.name), "type-2"):
        groups, outputs, inputs = columns.layer.shape
        left, right = symmetric(groups, outputs, outputs), symmetric(groups, inputs, inputs)
        contractions = columns.contract_inputs(right), columns.contract_outputs(left), columns.contract_outputs()
        weights = [side.diagonal(dim1=1, dim2=2).contiguous() for side in (right, left)]
        weighted = columns.contract_inputs(weights[0]), columns.contract_outputs(weights[1])
        for group in range(groups):
            four = next(blocks)[1].reshape(outputs, inputs, outputs, inputs)
            assert near(contractions[0][group], torch.einsum("iajb,ab->ij", four, right[group]))
            assert near(contractions[1][group], torch.einsum("iajb,ij->ab", four, left[group]))
            assert near(weighted[0][group], torch.einsum("iaja,a->ij", four, weights[0][group]))
            assert near(weighted[1][group], torch.einsum("iaib,i->ab", four, weights[1][group]))
            assert near(contractions[2][group], oracles.partial_traces(four, outputs, inputs)[1])


def counted(columns: Columns) -> int:
    """FLOPs of both contractions."""
    groups, outputs, inputs = columns.layer.shape
    with FlopMeter() as meter:
        columns.contract_inputs(symmetric(groups, inputs, inputs))
        columns.contract_outputs(symmetric(groups, outputs, outputs))
    return meter.total


@pytest.mark.parametrize("positions", [1, 4, 16, 256])
@pytest.mark.parametrize(("draws", "outputs", "inputs"), [(1, 8, 8), (5, 8, 8), (1, 16, 4), (3, 4, 24)])
def test_the_cheaper_order_is_taken(
    positions: int, draws: int, outputs: int, inputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = Layer("", "linear", 1, outputs, inputs, False, 0)
    slopes = torch.randn(draws, 3, 1, outputs, positions, dtype=torch.float64)
    columns = Columns(layer, torch.randn(3, positions, inputs, dtype=torch.float64), slopes)
    chosen, forced = counted(columns), []
    for kernels in (True, False):
        monkeypatch.setattr(Columns, "_kernels_are_cheaper", kernels)
        forced.append(counted(columns))
    assert chosen <= 1.3 * min(forced)
