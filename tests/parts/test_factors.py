"""Symmetric products in halves against the product as it is written."""

from __future__ import annotations

import pytest
import torch

from curvbench.meters.flops import FlopMeter
from curvbench.parts.factors import self_product


@pytest.mark.parametrize("order", [3, 1023, 1024, 2051])
def test_half_of_a_large_product_is_computed(order: int) -> None:
    rows = torch.randn(2, order, 3, dtype=torch.float64)
    with FlopMeter() as meter:
        found = self_product(rows)
    expected = torch.einsum("gis,gjs->gij", rows, rows)
    assert float((found - expected).norm()) <= 1e-13 * float(expected.norm())
    share = meter.total / (2 * 2 * 3 * order**2)
    assert share == 1 if order < 1024 else 0.5 < share <= 0.75 + 1e-3
