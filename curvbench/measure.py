"""From a cell to its rows: snapshot and reference Fisher are made once, and every probe is held against them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from curvbench import identity, numerics, training, trial
from curvbench.fisher import ExactFisher, exact_fisher
from curvbench.fisher.columns import Columns
from curvbench.fisher.plan import available_bytes, largest_batch, planned_bytes
from curvbench.fisher.stream import Stream
from curvbench.fisher.uncovered import covered_trace
from curvbench.instance import Instance
from curvbench.meters.cost import cost_rows
from curvbench.meters.direction import direction_rows
from curvbench.meters.error import BLOCKS, error_rows
from curvbench.meters.exact import exact_rows
from curvbench.meters.health import health_rows
from curvbench.operators import Operator
from curvbench.spec import METERS, Cell, Meter, Probe, Row, Unsupported

DEFAULT_DAMPING = 1e-3
REFERENCE_STREAM = 2**31  # above the seeds of probes and cells; torch's generator takes a seed modulo 2^32
JUDGED: frozenset[Meter] = frozenset({"error", "direction", "health"})
_FILE = "reference.pt"
Report = Callable[[str], None]


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


def reference_identity(cell: Cell) -> str:
    """A short hash that names the reference of a cell: all cells that share snapshot, batch and precision share it."""
    versions = {"torch_version": torch.__version__, "device_name": identity.device_name(cell.device)}
    parts = identity.run_identity(cell, versions)
    parts |= {"fisher": needs_fisher(cell)}
    return identity.short_hash({"problem": identity.component(cell.problem), "seed": cell.seed, **parts})


def needs_fisher(cell: Cell) -> bool:
    """Whether a meter of the cell compares with the reference Fisher."""
    return cell.training is None and not JUDGED.isdisjoint(cell.meters)


def prepare(cell: Cell, folder: Path, data: Path | None, report: Report) -> None:
    """Train the problem's snapshot and compute its batch's reference Fisher into ``folder``, whole or not at all.

    A cell that trains needs the snapshot alone: there its training begins.

    Raises:
        MemoryError, torch.OutOfMemoryError: it would not fit; the text says how many samples would.
    """
    path = folder / _FILE
    if path.exists():
        return
    dtype = getattr(torch, cell.dtype)
    problem = cell.problem

    def tell(epoch: int, epochs: int, loss: float) -> None:
        report(f"training {problem.label}: epoch {epoch}/{epochs}, loss {loss:.4f}")

    model = training.snapshot(problem, cell.seed, data, cell.device, dtype, tell)
    inputs, targets = training.batch(problem, problem.data(data), cell.seed, cell.device, dtype)
    stored: dict[str, Any] = {"weights": model.state_dict(), "batch": (inputs, targets)}
    if needs_fisher(cell):
        instance = Instance(model, inputs, targets, problem.loss)
        refuse_oversized(instance, problem.mc_samples)
        report(f"{reference_method(cell)} of {problem.label}: {len(inputs)} samples")
        fisher = exact_fisher(instance, *_reference_type(cell))
        stored |= _packed(fisher) | {"covered_trace": covered_trace(instance, fisher, *_reference_type(cell))}
    folder.mkdir(parents=True, exist_ok=True)
    trial.write(stored, path)


def refuse_oversized(instance: Instance, mc_samples: int) -> None:
    """Raise an out-of-memory error where the reference would not fit into what is free; the text says what would."""
    columns = instance.columns_per_sample("mc" if mc_samples else "type-2", mc_samples)
    sizes, itemsize, free = list(instance.sizes.values()), instance.dtype.itemsize, available_bytes(instance.device)
    needed = planned_bytes(sizes, instance.samples, columns, itemsize)
    if needed <= free:
        return
    most = largest_batch(sizes, columns, itemsize, free, instance.samples)
    advice = f"samples={most} would fit" if most else "not even one sample would fit: mc_samples takes fewer columns"
    text = f"{instance.samples} samples of {columns} columns need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
    raise (MemoryError if instance.device.type == "cpu" else torch.OutOfMemoryError)(f"{text}; {advice}")


def reference_method(cell: Cell) -> str:
    """What the probes of a cell are held against, as the column ``method`` says it."""
    draws = cell.problem.mc_samples
    kind = f"Monte-Carlo Fisher of {draws} draw{'s' * (draws > 1)}" if draws else "exact type-2 Fisher"
    return f"{kind} in {'float64' if cell.dtype == 'float64' else 'mixed precision'}"


def _reference_type(cell: Cell) -> tuple[str, int, int]:
    """Fisher type, draws and their seed: of a stream of its own, for no probe may share labels with its judge."""
    draws = cell.problem.mc_samples
    return ("mc", draws, REFERENCE_STREAM + cell.seed) if draws else ("type-2", 1, 0)


def _packed(fisher: ExactFisher) -> dict[str, Any]:
    return {
        # a stream is made again by each reader
        "columns": None if isinstance(fisher.columns, Stream) else [(c.inputs, c.slopes) for c in fisher.columns],
        "coefficients": fisher.coefficients,
        "cache": fisher.cache(),
    }


class Reference(NamedTuple):
    """What ``prepare`` has stored: the batch at its snapshot, and the Fisher with the share of the trace it covers."""

    instance: Instance
    fisher: ExactFisher | None
    covered: float


def load_reference(cell: Cell, folder: Path) -> Reference:
    """The reference of a cell, no Fisher where no meter needs one; large tensors stay on disk until they are used."""
    model, stored = _load(cell, folder)
    inputs, targets = stored["batch"]
    instance = Instance(model, inputs, targets, cell.problem.loss)
    if not needs_fisher(cell):
        return Reference(instance, None, float("nan"))
    if stored["columns"] is None:
        fisher = exact_fisher(instance, *_reference_type(cell))
    else:
        columns = tuple(Columns(la, *pair) for la, pair in zip(instance.layers, stored["columns"], strict=True))
        fisher = ExactFisher(columns, instance.terms, stored["coefficients"])
    fisher.restore(stored["cache"])
    return Reference(instance, fisher, stored["covered_trace"])


def _load(cell: Cell, folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The snapshot in evaluation mode, and all that is stored with it."""
    stored = torch.load(folder / _FILE, map_location=cell.device, mmap=cell.device == "cpu", weights_only=True)
    model = cell.problem.model().to(cell.device, getattr(torch, cell.dtype)).eval()
    model.load_state_dict(stored["weights"])
    return model, stored


def measure(cell: Cell, folder: Path, data: Path | None, report: Report) -> list[Row]:
    """Every row of one cell, against the reference in ``folder``, or of its training from the snapshot there.

    Raises:
        Unsupported: the probe does not cover the problem.
    """
    if cell.training is not None:
        return _trained(cell, folder, data, report)
    instance, fisher, covered = load_reference(cell, folder)
    probe = _seeded(cell.probe, cell.seed)
    refuse_unsupported(probe, instance)
    report("cost")
    gc.freeze()  # the memory meter collects garbage often: what was imported need not be looked through each time
    rows = [
        Row("problem.samples", float(instance.samples)),
        Row("problem.parameters", float(instance.size)),
        Row("coverage.parameters", instance.coverage),
        *cost_rows(probe, instance, cell.meters),
    ]
    if fisher is not None:
        report("errors")
        rows.append(Row("coverage.trace", covered))
        found = accuracy_rows(probe, instance, fisher, cell.problem.mc_samples > 0, cell.meters)
        rows += [_against(reference_method(cell), row) for row in found]
    if "exact" in cell.meters:
        report("exact Fisher")
        rows += exact_rows(instance)
    return [replace(row, epoch=cell.problem.epochs) for row in rows]


def _against(reference: str, row: Row) -> Row:
    """The row, with the reference in its method if it compares with one."""
    compares = row.metric.startswith(("error.", "direction."))
    return replace(row, method=", ".join(filter(None, [reference, row.method]))) if compares else row


def _trained(cell: Cell, folder: Path, data: Path | None, report: Report) -> list[Row]:
    """Every row of a cell that trains; at the epochs of ``measure_at`` with the errors of its probe fitted anew."""
    model, _ = _load(cell, folder)
    cell = replace(cell, probe=_seeded(cell.probe, cell.seed))
    dataset = cell.problem.data(data)

    def inspect() -> list[Row]:
        batch = training.batch(cell.problem, dataset, cell.seed, cell.device, getattr(torch, cell.dtype))
        instance = Instance(model.eval(), *batch, cell.problem.loss)
        report(f"exact Fisher of {instance.samples} samples")
        return list(accuracy_rows(cell.probe, instance, exact_fisher(instance)))

    return trial.Trial(cell, model, dataset, inspect).run(trial.checkpoint_path(cell, folder), report)


def accuracy_rows(
    probe: Probe,
    instance: Instance,
    fisher: ExactFisher,
    sampled: bool = False,
    meters: Collection[Meter] = METERS,
) -> Iterator[Row]:
    """Errors, sampling error, health and directions, as far as asked for, of a probe against a Fisher.

    ``sampled``: that Fisher is itself of drawn labels.
    """
    damping = getattr(probe, "damping", DEFAULT_DAMPING)
    gradient = instance.gradient()
    with numerics.count_retries() as retries:
        state = probe.refresh(probe.fit(instance))
        step = probe.precondition(state, gradient)
    operator = probe.operator(state)
    if "error" in meters:
        found = list(error_rows(operator, fisher))
        yield from found
        if not sampled:
            yield from _sampling_rows(probe, instance, fisher, found)
    if "health" in meters:
        yield from health_rows(operator, damping, retries.count)
    if "direction" in meters:
        yield from direction_rows(step, fisher, gradient, damping)


def _sampling_rows(probe: Probe, instance: Instance, fisher: ExactFisher, found: list[Row]) -> Iterator[Row]:
    """For sampled labels: what of the relative error more samples would remove."""
    if getattr(probe, "fisher_type", None) != "mc":
        return
    limit = fit(replace(probe, fisher_type="type-2"), instance)  # type: ignore[type-var]
    wholes = {row.scope: row.value for row in error_rows(limit, fisher) if row.metric == "error.relative"}
    for row in found:
        if row.metric == "error.relative" and row.scope in ("network", BLOCKS) and row.value is not None:
            yield Row("error.sampling", row.value - (wholes[row.scope] or 0.0), row.scope)


def _seeded(probe: Probe, seed: int) -> Probe:
    """The probe with its label draws moved by the cell's seed."""
    if not any(f.name == "seed" for f in fields(probe)):  # type: ignore[arg-type]
        return probe
    return replace(probe, seed=probe.seed + seed)  # type: ignore[attr-defined, type-var]
