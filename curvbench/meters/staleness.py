"""Statistics of step t of a training, held k steps later: error, quality, the Fisher's own drift, and the cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain

from curvbench.meters.cost import BASELINE, Stepper
from curvbench.meters.flops import FlopMeter
from curvbench.meters.held import Frozen, Held, error_rows, floor_rows, quality_rows
from curvbench.spec import Row
from curvbench.spec.probe import Follows


def staleness_rows(frozen: Frozen, later: Iterable[tuple[int, Held]], damping: float) -> Iterator[Row]:
    """Error, drift and quality at every age; ``later``: the same samples at later weights, by age."""
    for age, held in later:
        rows = chain(
            error_rows("stale.error", frozen, held),
            floor_rows("stale.floor", held),
            quality_rows("stale.quality", frozen, held, damping),
        )
        for row in rows:
            yield aged(replace(row, method=", ".join(filter(None, [f"{age} steps later", row.method]))), age)


def cost_rows(stepper: Stepper, ages: Iterable[int]) -> Iterator[Row]:
    """The cost of a step, in gradients and beside its own gradient, if statistics are refreshed every k steps."""
    refresh, between, always = costs(stepper)
    for age in ages:
        interval = max(age, 1)
        amortized = refresh / interval + between * (1 - 1 / interval) + always
        yield aged(Row("stale.cost", amortized, "step", method=f"refreshed every {interval} steps"), age)


def costs(stepper: Stepper) -> tuple[float, float, float]:
    """FLOPs over a gradient's: of a refresh, of what a step without one needs of its batch, and of preconditioning."""
    work = stepper.work().flops
    gradient = work[BASELINE].total
    with FlopMeter() as following:
        if isinstance(stepper.probe, Follows) and stepper.probe.needs_every_batch:
            stepper.probe.follow(stepper.refreshed, stepper.instance)
    refresh = work["statistics"].total + work["invert"].total
    return refresh / gradient, following.total / gradient, work["precondition"].total / gradient


def aged(row: Row, age: int) -> Row:
    """The row at an age: in ``step``, and in the scope, because comparisons of runs tell rows apart by scope."""
    return replace(row, scope=f"{row.scope}, age {age}", step=age)
