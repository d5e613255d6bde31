"""SOAP and Shampoo against a public package, from which no code was taken: the extra ``public``.

The package makes its later bases in float32, whatever the weights, so that digits fall to those of float32 with the
first new basis. No package on PyPI has KL-Shampoo: ``tests/probes/test_klshampoo.py`` has the authors' recursion.
"""

from __future__ import annotations

import pytest
from matrix_steps import by_optimizer, trained
from streams import relative

import curvbench as cb

public = pytest.importorskip("pytorch_optimizer", reason="install curvbench[public]")

SQUARE, ONE_SIDED = (5, 5, 5), (3, 6, 3)  # with a basis of the side of 6 a part of it would be arbitrary


@pytest.mark.parametrize(("steps", "digits"), [(5, 1e-10), (14, 1e-4)])
@pytest.mark.parametrize(("widths", "longest"), [(SQUARE, 100), (ONE_SIDED, 4)])
def test_soap(widths: tuple[int, ...], longest: int, steps: int, digits: float) -> None:
    """Over no new basis, and over two."""
    probe = cb.probe("soap", basis_every=5, max_precond_dim=longest)
    found = trained(probe, *widths, steps=steps, rate=0.01)
    expected = by_optimizer(
        lambda p: public.SOAP(p, lr=0.01, weight_decay=0.0, precondition_frequency=5, max_precondition_dim=longest),
        *widths,
        steps=steps,
    )
    assert all(relative(p, q) < digits for p, q in zip(found, expected, strict=True))
    other = trained(cb.probe("soap", basis_every=5, beta2=0.9), *widths, steps=steps, rate=0.01)
    assert any(relative(p, q) > 1e-4 for p, q in zip(other, expected, strict=True))


def test_shampoo() -> None:
    probe = cb.probe("shampoo", epsilon=1e-3)
    found = trained(probe, *ONE_SIDED, steps=8, rate=0.05)
    expected = by_optimizer(lambda p: public.Shampoo(p, lr=0.05, matrix_eps=1e-3), *ONE_SIDED, steps=8)
    assert all(relative(p, q) < 1e-10 for p, q in zip(found, expected, strict=True))
    other = trained(cb.probe("shampoo", epsilon=1e-3, exponent=0.5), *ONE_SIDED, steps=8, rate=0.05)
    assert any(relative(p, q) > 1e-4 for p, q in zip(other, expected, strict=True))
