"""Rows of methods of which the truth is known: gaps per seed, costs per phase in gradients, memory, dampings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from frames import row

STEP = "exact type-2 Fisher in float64, damping 0.001"


def planted(
    probe: str,
    gaps: Sequence[float | None],
    phases: tuple[float, float, float] | None = (0.0, 0.0, 0.5),
    memory: float | None = 2.0,
    damping: tuple[float, float, float] | None = None,
    shares: dict[str, float] | None = None,
    **other: Any,
) -> list[dict[str, Any]]:
    """The rows of one method, a cell per seed.

    ``gaps``: a share per seed; None means that there is none. ``phases``: gradients of statistics, factorization and
    preconditioning. ``damping``: the best one, the plateau in decades, and the gap there. ``shares``: of the error.
    """
    made = []
    for seed, gap in enumerate(gaps):
        facts = {"seed": seed, **other}
        if gap is not None:
            made.append(row(probe, "direction.gap_closed", gap, method=STEP, **facts))
        for phase, value in zip(("statistics", "invert", "precondition"), phases or (), strict=False):
            made.append(row(probe, "flops.ratio", value, phase, **facts))
        if memory is not None:
            made.append(row(probe, "memory.ratio", memory, "step", **facts))
        for metric, value in zip(("best", "plateau", "gap_closed"), damping or (), strict=False):
            made.append(row(probe, f"damping.{metric}", value, **facts))
        made += [row(probe, "error.share", share, layer, **facts) for layer, share in (shares or {}).items()]
    return made


def failed(probe: str, status: str, reason: str, seed: int = 0, **other: Any) -> dict[str, Any]:
    """The row of a cell that ended without a value."""
    return row(probe, "", None, "", status=status, reason=reason, seed=seed, epoch=None, **other)
