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


@pytest.mark.parametrize("order", [1, 2, 3, 7, 30, 144])
@pytest.mark.parametrize("bands", [2, 3, 5])
def test_products_of_bands_serve_twice(order: int, bands: int) -> None:
    """A share of (bands + 1) / (2 bands) at every order that they divide, so that exponents stay what they are."""
    rows = torch.randn(2, order, 4, dtype=torch.float64)
    with FlopMeter() as meter:
        found = self_product(rows, bands)
    expected = torch.einsum("gis,gjs->gij", rows, rows)
    assert float((found - expected).norm()) <= 1e-13 * float(expected.norm())
    if order % bands == 0:
        assert meter.total == 2 * 2 * 4 * order**2 * (bands + 1) / (2 * bands)
