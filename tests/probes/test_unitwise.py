"""Unit-wise methods whose blocks are too large to be stored: the same matrix and step, formed in tiles."""

from __future__ import annotations

import pytest
from cases import CASES, instance_of

import curvbench as cb
from curvbench.fisher.units import UnitFisher
from curvbench.parts import storage
from curvbench.spec import Probe

PROBES = [
    cb.probe("unit"),
    cb.probe("unit", fisher_type="mc", mc_samples=2),
    cb.probe("cwngd"),
    cb.probe("cwngd", scaling="mean", score_scale="divided_by_N"),
    cb.probe("cwngd", fisher_type="type-2"),
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.label)
@pytest.mark.parametrize("factors_fit", [False, True])
def test_tiles_give_the_stored_matrix_and_step(
    case: str, probe: Probe, factors_fit: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = instance_of(case)
    stored = probe.refresh(probe.fit(instance))
    monkeypatch.setattr(storage, "LIMIT_BYTES", 0)
    tiled = probe.fit(instance)
    monkeypatch.setattr(storage, "LIMIT_BYTES", 2**32 if factors_fit else 0)
    tiled = probe.refresh(tiled)
    assert all((factor is not None) == factors_fit for factor in tiled.factors)
    found, expected = probe.operator(tiled), probe.operator(stored)
    assert all(isinstance(block, UnitFisher) for block in found.blocks)  # type: ignore[attr-defined]
    gradient = instance.gradient()
    for a, b in (
        (found.matvec(gradient), expected.matvec(gradient)),
        (probe.precondition(tiled, gradient), probe.precondition(stored, gradient)),
    ):
        assert float((a - b).norm()) <= 1e-8 * float(b.norm())
    norm = expected.frobenius_norm()
    assert abs(found.frobenius_norm() - norm) <= 1e-10 * norm
    fisher = cb.exact_fisher(instance)
    assert cb.errors(found, fisher)["relative"] == pytest.approx(
        cb.errors(expected, fisher)["relative"], rel=1e-9, nan_ok=True
    )


def test_factors_of_all_layers_together_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers whose factors would fit alone may not fit together: those that come last are factorized anew."""
    probe, instance = cb.probe("unit"), instance_of("mlp_tanh")
    expected = probe.precondition(probe.refresh(probe.fit(instance)), instance.gradient())
    monkeypatch.setattr(storage, "LIMIT_BYTES", 0)
    tiled = probe.fit(instance)
    numbers = [8 * block.size // block.columns.layer.inputs * block.small**2 for block in tiled.blocks]
    columns = sum(t.nbytes for block in tiled.blocks for t in (block.columns.inputs, block.columns.slopes))
    monkeypatch.setattr(storage, "LIMIT_BYTES", columns + max(numbers))
    tiled = probe.refresh(tiled)
    kept = [factors is not None for factors in tiled.factors]
    assert any(kept) and not all(kept)
    assert sum(n for n, is_kept in zip(numbers, kept, strict=True) if is_kept) <= max(numbers)
    assert float((probe.precondition(tiled, instance.gradient()) - expected).norm()) <= 1e-8 * float(expected.norm())


def test_without_damping_tiles_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "LIMIT_BYTES", 0)
    probe, instance = cb.probe("unit", damping=0.0), instance_of("mlp_tanh")
    state = probe.refresh(probe.fit(instance))
    with pytest.raises(ValueError, match="give a damping above zero"):
        probe.precondition(state, instance.gradient())
