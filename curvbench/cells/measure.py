"""From a cell to its rows: a probe is held against the reference that all cells of its problem share."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from curvbench import numerics, training
from curvbench.cells import launch, reference, trial
from curvbench.cells.reference import prepare, reference_identity
from curvbench.fisher import ExactFisher, exact_fisher
from curvbench.identity import libraries
from curvbench.identity.libraries import Record
from curvbench.instance import Instance
from curvbench.instance.passes import full_precision
from curvbench.meters.cost import Stepper, cost_rows
from curvbench.meters.direction import direction_rows, how_damped, step_of, with_damping
from curvbench.meters.error import BLOCKS, NETWORK, error_rows
from curvbench.meters.exact import exact_rows
from curvbench.meters.health import health_rows, residual_row
from curvbench.meters.kept import keep_blocks
from curvbench.operators import Operator
from curvbench.spec import DAMPING, METERS, Cell, Meter, Probe, Row, Status, Unsupported
from curvbench.spec.pictures import Blocks, collected, keep

__all__ = ["accuracy_rows", "fit", "measure", "prepare", "reference_identity", "refuse_unsupported"]

PRELOAD = ("torch._dynamo",)  # torch imports it at an optimizer's first step: a fork server does so once for all cells
Report = Callable[[str], None]


@full_precision()
def fit(probe: Probe, instance: Instance) -> Operator:
    """The operator of a probe fitted to the whole batch, running averages off.

    Raises:
        Unsupported: the probe does not cover the instance; the text says why.
    """
    refuse_unsupported(probe, instance)
    return probe.operator(probe.fit(instance))


def refuse_unsupported(probe: Probe, instance: Instance) -> None:
    """Raise Unsupported with the probe's own reason."""
    reason = probe.unsupported(instance)
    if reason is not None:
        raise Unsupported(reason)


class Fitted(NamedTuple):
    """A probe's state after ``fit``, made once: its costs are those of the next step, its errors are its own."""

    probe: Probe
    instance: Instance
    state: Any
    retries: int

    @classmethod
    def of(cls, probe: Probe, instance: Instance) -> Fitted:
        """Fit a probe, and count the factorizations that had to be repeated."""
        with numerics.count_retries() as retries:
            state = probe.fit(instance)
        return cls(probe, instance, state, retries.count)


def measure(cell: Cell, folder: Path, data: Path | None, report: Report) -> list[Row]:
    """Every row of one cell, against the reference in ``folder``, or of its training from the snapshot there.

    Raises:
        Unsupported: the probe does not cover the problem.
    """
    if cell.training is not None:
        return (_trained if cell.devices == 1 else _trained_together)(cell, folder, data, report)
    instance, fisher, covered = reference.load(cell, folder)
    probe = _seeded(cell.probe, cell.seed)
    refuse_unsupported(probe, instance)
    gc.freeze()  # the memory meter collects garbage often: what was imported need not be looked through each time
    rows = [
        Row("problem.samples", float(instance.samples)),
        Row("problem.parameters", float(instance.size)),
        Row("coverage.parameters", instance.coverage),
    ]
    if not set(METERS).isdisjoint(cell.meters):
        report("fit")
        fitted = Fitted.of(probe, instance)
        report("cost")
        rows += cost_rows(Stepper(probe, instance, fitted.state), cell.meters)
    if fisher is not None:
        report("errors")
        rows.append(Row("coverage.trace", covered))
        found = accuracy_rows(fitted, fisher, cell.problem.mc_samples > 0, cell.meters, cell.damping)
        rows += [_against(reference.method(cell), row) for row in found]
    if "exact" in cell.meters:
        report("exact Fisher")
        rows += exact_rows(instance, cell.precision)
    instance.refuse_changed()
    return [replace(row, epoch=cell.problem.epochs) for row in [*rows, *_failed(rows)]]


def _failed(rows: list[Row]) -> list[Row]:
    """The row that ends a cell in which a number is no number: it keeps the others, but has not succeeded."""
    reasons = [row.reason for row in rows if row.status is Status.ERROR]
    return [Row(status=Status.ERROR, reason=reasons[0], scope="")] if reasons else []


def _against(reference: str, row: Row) -> Row:
    """The row, with the reference in its method if it compares with one."""
    compares = row.metric.startswith(("error.", "direction."))
    return replace(row, method=", ".join(filter(None, [reference, row.method]))) if compares else row


def _trained(cell: Cell, folder: Path, data: Path | None, report: Report) -> list[Row]:
    """Every row of a cell that trains; at the epochs of ``measure_at`` with the errors of its probe fitted anew."""
    model, _ = reference.load_snapshot(cell, folder)
    cell = replace(cell, probe=_seeded(cell.probe, cell.seed))
    dataset = cell.problem.data(data)

    def inspect(probe: Probe) -> list[Row]:
        batch = training.batch(cell.problem, dataset, cell.seed, cell.device, getattr(torch, cell.dtype))
        instance = Instance(model.eval(), *batch, cell.problem.loss)
        report(f"exact Fisher of {instance.samples} samples")
        fisher = exact_fisher(instance, precision=cell.precision)
        rows = list(accuracy_rows(Fitted.of(probe, instance), fisher, damping=cell.damping))
        instance.refuse_changed()
        return rows

    return trial.Trial(cell, model, dataset, inspect).run(trial.checkpoint_path(cell, folder), report)


def _trained_together(cell: Cell, folder: Path, data: Path | None, report: Report) -> list[Row]:
    """The same of a cell that trains on several devices: what the first of its ranks finds."""
    work = partial(_as_rank, cell, folder, data)
    rows, kept, loaded = launch.together(work, cell.devices, cell.device, report)
    libraries.count_in(loaded)
    for found in kept:
        keep(found)
    return rows


def _as_rank(
    cell: Cell, folder: Path, data: Path | None, rank: int, report: Report
) -> tuple[list[Row], list[Blocks], Record]:
    """Rows and blocks of a rank, and what it has loaded."""
    torch.set_num_threads(cell.threads)
    mine = replace(cell, device=f"cuda:{rank}") if cell.device == "cuda" else cell
    with collected() as kept:
        return _trained(mine, folder, data, report), kept[-1:], libraries.loaded()


def accuracy_rows(
    fitted: Fitted,
    fisher: ExactFisher,
    sampled: bool = False,
    meters: Collection[Meter] = METERS,
    damping: float = DAMPING,
) -> Iterator[Row]:
    """Errors, sampling error, health and directions, as far as asked for, of a fitted probe against a Fisher.

    ``sampled``: that Fisher is itself of drawn labels. ``damping``: of the exact step, and for its own step of a probe
    that has such a damping: it is fitted anew where its own is another one. All else is of the probe as it is.
    """
    probe, instance, state, retries = fitted
    gradient = instance.gradient()
    with numerics.count_retries() as repeated:
        state = probe.refresh(state)
        step = probe.precondition(state, gradient.clone())  # whatever a probe does to it
    operator = probe.operator(state)
    if "error" in meters:
        found = list(error_rows(operator, fisher))
        yield from found
        if found[0].status is not Status.ERROR:
            keep_blocks(operator, fisher)
            if not sampled:
                yield from _sampling_rows(probe, instance, fisher, found)
    if "health" in meters:
        yield from health_rows(operator, damping if probe.damping is None else probe.damping, retries + repeated.count)
        if probe.solves_with is not None:
            yield residual_row(operator, step, gradient, probe.solves_with)
    if "direction" in meters:
        if (judged := with_damping(probe, damping, instance.terms)) != probe:
            step = step_of(judged, instance, gradient)
        yield from direction_rows(step, fisher, gradient, damping, how_damped(probe, damping, instance.terms))


def _sampling_rows(probe: Probe, instance: Instance, fisher: ExactFisher, found: list[Row]) -> Iterator[Row]:
    """For sampled labels: what of the relative error more samples would remove."""
    if probe.fisher_type != "mc":
        return
    limit = fit(replace(probe, fisher_type="type-2"), instance)  # type: ignore[type-var]
    wholes = {row.scope: row for row in error_rows(limit, fisher) if row.metric == "error.relative"}
    for row in found:
        if row.metric == "error.relative" and row.scope in (NETWORK, BLOCKS) and row.value is not None:
            whole = wholes.get(row.scope, wholes[NETWORK])
            gap = None if whole.value is None else row.value - whole.value
            yield Row("error.sampling", gap, row.scope, status=whole.status, reason=whole.reason)


def _seeded(probe: Probe, seed: int) -> Probe:
    """The probe with its label draws moved by the cell's seed."""
    return probe if probe.seed is None else replace(probe, seed=probe.seed + seed)  # type: ignore[type-var]
