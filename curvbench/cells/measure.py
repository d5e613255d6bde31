"""From a cell to its rows: a probe is compared with the reference that all cells of its problem share."""

from __future__ import annotations

import gc
import math
from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from curvbench import numerics, training
from curvbench.cells import held, launch, pace, reference, trial
from curvbench.cells.given import Given
from curvbench.cells.reference import Reference, reference_identity
from curvbench.fisher import ExactFisher, exact_fisher
from curvbench.identity import libraries
from curvbench.identity.libraries import Record
from curvbench.instance import Instance
from curvbench.instance.extent import SHOWN
from curvbench.instance.passes import full_precision
from curvbench.meters import staleness
from curvbench.meters.conditioning import condition_rows
from curvbench.meters.cost import BUDGET_GRADIENTS, Stepper, cost_rows
from curvbench.meters.damping import GRID, Descent, Targets, damping_rows
from curvbench.meters.direction import direction_rows, how_damped, with_damping
from curvbench.meters.divergence import divergence_rows
from curvbench.meters.error import BLOCKS, NETWORK, error_rows
from curvbench.meters.exact import exact_rows
from curvbench.meters.gaussianity import input_rows
from curvbench.meters.grid import grid_steps, watched_fit
from curvbench.meters.health import health_rows, residual_rows
from curvbench.meters.held import Frozen
from curvbench.meters.kept import keep_blocks
from curvbench.meters.likeness import likeness_rows
from curvbench.meters.population import population_rows
from curvbench.operators import BlockDiagonal, Kronecker, Operator, RotatedDiagonal
from curvbench.parts.factors import LARGEST_SIDE, is_cut
from curvbench.spec import DAMPING, METERS, PROBED, Cell, Meter, NoMatrix, Probe, Report, Row, Status, Unsupported
from curvbench.spec.pictures import Blocks, collected, keep
from curvbench.words import refuse_type

__all__ = ["accuracy_rows", "fit", "measure", "prepare", "reference_identity", "refuse_unsupported"]

PRELOAD = ("torch._dynamo",)  # a slow import of an optimizer's first step, which a fork server makes once for all cells


@full_precision()
def fit(probe: Probe, instance: Instance) -> Operator:
    """The operator of a probe fitted to the whole batch, running averages off.

    Raises:
        Unsupported: the probe does not cover the instance; the text says why.
    """
    refuse_type("instance", instance, Instance, "give curvbench.Instance(model, inputs, targets)")
    refuse_unsupported(probe, instance)
    return probe.operator(probe.fit(instance))


def refuse_unsupported(probe: Probe, instance: Instance) -> None:
    """Raise Unsupported with the probe's own reason, and TypeError for what is no probe."""
    refuse_type("probe", probe, Probe, "give curvbench.probe(name)")
    reason = probe.unsupported(instance)
    if reason is not None:
        raise Unsupported(reason)


class Fitted(NamedTuple):
    """A probe's state after ``fit``. Errors are measured on this state, costs on the step after it."""

    probe: Probe
    instance: Instance
    state: Any
    retries: int
    is_damped: bool = False

    @classmethod
    def of(cls, probe: Probe, instance: Instance, watched: bool = False) -> Fitted:
        """Fit a probe, and count the factorizations that had to be repeated.

        ``watched``: find out if the state ``is_damped``, because the fit has read the damping.
        """
        with numerics.count_retries() as retries:
            state, is_damped = watched_fit(probe, instance) if watched else (probe.fit(instance), False)
        return cls(probe, instance, state, retries.count, is_damped)


def measure(cell: Cell, folder: Path, data: Path | None, report: Report) -> list[Row]:
    """Every row of one cell: of its measurement against the reference in ``folder``, or of its training from there.

    Raises:
        Unsupported: the probe does not cover the problem.
    """
    if cell.training is not None:
        return (_trained if cell.devices == 1 else _trained_together)(cell, folder, data, report)
    loaded = instance, fisher, covered = reference.load(cell, folder)
    reference.keep(folder, None)
    probe = cell.probe.reseeded(lambda seed: seed + cell.seed)  # moves the label draws
    refuse_unsupported(probe, instance)
    gc.freeze()  # the memory meter collects garbage often, which is faster without the imported objects
    rows = [
        Row("problem.samples", float(instance.samples)),
        Row("problem.parameters", float(instance.size)),
        Row("coverage.parameters", instance.coverage, reason=instance.extent.note),
    ]
    if not PROBED.isdisjoint(cell.meters):
        report("fit")
        fitted = Fitted.of(probe, instance, "damping" in cell.meters)
        notes = filter(None, [instance.extent.note, cut_factors(fitted)])
        rows[-1] = replace(rows[-1], reason="; ".join(notes))
        report("cost")
        is_given = isinstance(cell.problem, Given)
        competes = not is_given or probe.role == "method"  # a user waits: references have neither cost nor grid
        if competes:
            patience = BUDGET_GRADIENTS if is_given else math.inf
            stepper = Stepper(probe, instance, fitted.state, patience)
            rows += cost_rows(stepper, cell.meters)
    if fisher is not None:  # loaded for meters of PROBED alone, so that the probe was fitted
        report("errors")
        rows.append(Row("coverage.trace", covered))
        accuracies = accuracy_rows(fitted, fisher, cell.problem.mc_samples > 0, cell.meters, cell.damping)
        rows += [_against(reference.method(cell), row) for row in accuracies]
        if cell.population or cell.drift:  # of no given problem, so that there is a stepper
            report("other samples and later weights")
            rows += [_against(reference.method(cell), row) for row in _elsewhere(cell, folder, loaded, stepper)]
        if "damping" in cell.meters and competes:
            report("damping")
            grid = grid_rows(fitted, fisher, *reference.judges(cell, folder, instance))
            rows += [_against(reference.method(cell), row) for row in grid]
    if "exact" in cell.meters:
        report("exact Fisher")
        rows += exact_rows(instance, cell.precision)
    if "likeness" in cell.meters:
        report("likeness of layers")
        rows += likeness_rows(instance)
    if "inputs" in cell.meters:
        report("distribution of inputs")
        rows += input_rows(instance)
    instance.refuse_changed()
    reference.keep(folder, loaded)
    return [replace(row, epoch=cell.problem.epochs) for row in [*rows, *_failed(rows)]]


def prepare(cell: Cell, folder: Path, data: Path | None, report: Report) -> None:
    """Store in ``folder`` what all cells of the problem share: the reference, and what it is held against beside it."""
    reference.prepare(cell, folder, data, report)
    held.prepare(cell, folder, data, report)


def _elsewhere(cell: Cell, folder: Path, found: Reference, stepper: Stepper) -> Iterator[Row]:
    """The rows of the probe held against other samples and later weights, as far as the cell's meters ask."""
    frozen = Frozen.of(stepper.probe, stepper.instance, stepper.before, cell.damping)
    if cell.population:
        yield from population_rows(frozen, held.population(cell, folder, found), cell.damping)
    if cell.drift:
        later = held.later(cell, folder, found)
        yield from staleness.staleness_rows(frozen, later, cell.damping)
        yield from staleness.cost_rows(stepper, cell.drift.ages)


def cut_factors(fitted: Fitted) -> str:
    """Which blocks have a Kronecker factor that is its diagonal because it is too large; empty if none has."""
    layers = fitted.instance.layers
    large = [i for i, la in enumerate(layers) if la.kind not in ("lookup", "vector") and any(map(is_cut, la.shape[1:]))]
    if not large or not isinstance(operator := fitted.probe.operator(fitted.state), BlockDiagonal):
        return ""
    names = [layers[i].name for i in large if isinstance(operator.blocks[i], Kronecker | RotatedDiagonal)]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    shown = ", ".join(map(repr, names[:SHOWN]))
    return f"factors above {LARGEST_SIDE:,} rows are their diagonals: {shown}{more}" if names else ""


def _failed(rows: list[Row]) -> list[Row]:
    """A row with status error for the whole cell, if one of its rows has that status; none otherwise."""
    reasons = [row.reason for row in rows if row.status is Status.ERROR]
    return [Row(status=Status.ERROR, reason=reasons[0], scope="")] if reasons else []


def _against(reference: str, row: Row) -> Row:
    """The row, with the reference in ``method`` if the metric compares with a reference."""
    of_none = ("damping.decrease", "stale.cost")  # of a loss, of FLOPs
    compares = row.metric.startswith(("error.", "direction.", "damping.", "stale.")) and row.metric not in of_none
    return replace(row, method=", ".join(filter(None, [reference, row.method]))) if compares else row


def _trained(cell: Cell, folder: Path, data: Path | None, report: Report) -> list[Row]:
    """Every row of a cell that trains, with the errors of a freshly fitted probe at the epochs of ``measure_at``."""
    model, _ = reference.load_snapshot(cell, folder)
    cell = replace(cell, probe=cell.probe.reseeded(lambda seed: seed + cell.seed))
    dataset = cell.problem.data(data)
    if cell.training and cell.training.paced:
        return pace.paced(cell, model, dataset, report)

    def inspect(probe: Probe) -> list[Row]:
        batch = training.batch(cell.problem, dataset, cell.seed, cell.device, getattr(torch, cell.dtype))
        instance = Instance(model.eval(), *batch, cell.problem.loss, parameters=cell.parameters)
        report(f"exact Fisher of {instance.samples} samples")
        fisher = exact_fisher(instance, precision=cell.precision)
        rows = list(accuracy_rows(Fitted.of(probe, instance), fisher, damping=cell.damping))
        instance.refuse_changed()
        return rows

    return trial.Trial(cell, model, dataset, inspect).run(trial.checkpoint_path(cell, folder), report)


def _trained_together(cell: Cell, folder: Path, data: Path | None, report: Report) -> list[Row]:
    """Every row of a cell that trains on several devices: the rows of the first rank."""
    work = partial(_as_rank, cell, folder, data)
    rows, pictures, loaded = launch.together(work, cell.devices, cell.device, report)
    libraries.count_in(loaded)
    for blocks in pictures:
        keep(blocks)
    return rows


def _as_rank(
    cell: Cell, folder: Path, data: Path | None, rank: int, report: Report
) -> tuple[list[Row], list[Blocks], Record]:
    """The rows of a rank, its last blocks, and the libraries that it has loaded."""
    torch.set_num_threads(cell.threads)
    cell = replace(cell, device=f"cuda:{rank}") if cell.device == "cuda" else cell
    with collected() as pictures:
        return _trained(cell, folder, data, report), pictures[-1:], libraries.loaded()


def accuracy_rows(
    fitted: Fitted,
    fisher: ExactFisher,
    sampled: bool = False,
    meters: Collection[Meter] = METERS,
    damping: float = DAMPING,
) -> Iterator[Row]:
    """Errors, sampling error, health and directions of a fitted probe against a Fisher, as far as ``meters`` ask.

    ``sampled``: whether the Fisher itself is of drawn labels. ``damping``: the damping of the exact step. For
    directions, divergences and the condition number, a probe with another damping of its own is fitted again with this
    damping. All other rows are of the probe as it is.
    """
    probe, instance, state, retries, _ = fitted
    gradient = instance.gradient()
    with numerics.count_retries() as repeated:
        state = probe.refresh(state)
        step = probe.precondition(state, gradient.clone())  # a copy, because a probe may write to it
    yield from probe.own_rows(state)
    operator = _matrix(probe, state)
    is_finite = False
    if isinstance(operator, str):
        yield from (Row(metric, scope=s, status=Status.SKIPPED, reason=operator) for metric, s in _of_matrix(meters))
        meters = set(meters) - {"error", "health", "condition"}
    elif "error" in meters:
        errors = list(error_rows(operator, fisher, _included(probe, instance.terms)))
        yield from errors
        is_finite = errors[0].status is not Status.ERROR
        if is_finite:
            keep_blocks(operator, fisher)
            if not sampled:
                yield from _sampling_rows(probe, instance, fisher, errors)
    if not isinstance(operator, str) and "health" in meters:
        added = damping if probe.damping is None else probe.damping
        yield from health_rows(operator, None if probe.represents_damped else added, retries + repeated.count)
        del operator  # because the damped matrix may be as large
        yield from residual_rows(probe.damped(state), step, gradient)
    how, judged = how_damped(probe, damping, instance.terms), with_damping(probe, damping, instance.terms)
    if judged != probe and not {"error", "condition", "direction"}.isdisjoint(meters):
        state = judged.refresh(judged.fit(instance))
        step = judged.precondition(state, gradient.clone())
    if "error" in meters and is_finite:
        yield from divergence_rows(judged.damped(state), fisher, damping, how)
    if "condition" in meters:
        yield from condition_rows(judged.damped(state), fisher, damping, how)
    if "direction" in meters:
        remarked = ", ".join(filter(None, [how, probe.remark(fitted.state)]))
        yield from direction_rows(step, fisher, gradient, damping, remarked)


def _matrix(probe: Probe, state: Any) -> Operator | str:
    """The represented matrix, or why the state represents none."""
    try:
        return probe.operator(state)
    except NoMatrix as reason:
        return str(reason)


def _of_matrix(meters: Collection[Meter]) -> Iterator[tuple[str, str]]:
    """Metrics and scopes that stand for all rows of a matrix if there is none."""
    if "error" in meters:
        yield from (("error.relative", NETWORK), ("error.relative", BLOCKS), ("error.scale_optimal", BLOCKS))
    if "health" in meters:
        yield "health.condition", NETWORK


def _included(probe: Probe, terms: int) -> float | None:
    """The damping of the mean Fisher that F^ includes; None if it includes none."""
    unit = probe.damping_unit(terms)
    if not probe.represents_damped or probe.damping is None or unit is None:
        return None
    return probe.damping / unit


def grid_rows(fitted: Fitted, fisher: ExactFisher, targets: Targets, descent: Descent) -> Iterator[Row]:
    """The rows of the meter ``damping``; a probe without a damping has none."""
    probe, instance = fitted.probe, fitted.instance
    if probe.damping_unit(instance.terms) is None:
        return
    gradient = instance.gradient()
    steps = grid_steps(probe, fitted.state, fitted.is_damped, instance, gradient, GRID)
    yield from damping_rows(steps, fisher, gradient, targets, descent)


def _sampling_rows(probe: Probe, instance: Instance, fisher: ExactFisher, errors: list[Row]) -> Iterator[Row]:
    """The part of the relative error that more sampled labels would remove."""
    if probe.fisher_type != "mc":
        return
    limit = fit(replace(probe, fisher_type="type-2"), instance)  # type: ignore[type-var]
    unsampled = {row.scope: row for row in error_rows(limit, fisher) if row.metric == "error.relative"}
    for row in errors:
        if row.metric == "error.relative" and row.scope in (NETWORK, BLOCKS) and row.value is not None:
            least = unsampled.get(row.scope, unsampled[NETWORK])
            gap = None if least.value is None else row.value - least.value
            yield Row("error.sampling", gap, row.scope, status=least.status, reason=least.reason)
