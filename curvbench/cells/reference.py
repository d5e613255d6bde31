"""The reference that all cells of a problem share: snapshot, batch and reference Fisher, computed once and stored."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from curvbench import identity, store, training
from curvbench.cells import second, shipped
from curvbench.cells.given import Given
from curvbench.cells.tensors import write
from curvbench.fisher import ExactFisher, budget, exact_fisher
from curvbench.fisher.stream import Stream
from curvbench.fisher.tied import from_pairs, pairs_of
from curvbench.fisher.uncovered import covered_trace
from curvbench.identity import libraries
from curvbench.instance import Inputs, Instance
from curvbench.meters.damping import TARGETS, Descent, Targets
from curvbench.spec import PROBED, Cell, Meter, Report

STREAM = 2**31  # above the seeds of probes and cells; torch's generator takes a seed modulo 2^32
COMPARING: frozenset[Meter] = PROBED - {"clock", "flops", "memory"}
_FILE = "reference.pt"


class Reference(NamedTuple):
    """A stored reference: the batch at its snapshot, and the Fisher with the share of the trace that it covers.

    The Fisher None means that no meter of the cell compares with it.
    """

    instance: Instance
    fisher: ExactFisher | None
    covered: float


def reference_identity(cell: Cell) -> str:
    """A short hash that names a reference, which cells of one snapshot, batch, precision and parameters share."""
    versions = {"torch_version": torch.__version__, "device_name": identity.device_name(cell.device)}
    parts = identity.run_identity(cell, versions)
    parts |= {"fisher": needs_fisher(cell), "precision": cell.precision, "weights": cell.weights}
    parts |= identity.held_elsewhere(cell)
    parts |= {"second": True} if "damping" in cell.meters else {}
    return identity.short_hash({"problem": identity.component(cell.problem), "seed": cell.seed, **parts})


def needs_fisher(cell: Cell) -> bool:
    """Whether a meter of the cell compares with the reference Fisher."""
    return cell.training is None and not COMPARING.isdisjoint(cell.meters)


def method(cell: Cell) -> str:
    """The reference of a cell in words, for the column ``method``."""
    draws = cell.problem.mc_samples
    kind = f"Monte-Carlo Fisher of {draws} draw{'s' * (draws > 1)}" if draws else "exact type-2 Fisher"
    precision = cell.dtype if cell.precision == "native" else cell.precision
    mixed = precision == "mixed" and cell.dtype != "float64"
    return f"{kind} in {'mixed precision' if mixed else precision.replace('mixed', 'float64')}{_at(cell)}"


def _at(cell: Cell) -> str:
    """Where the weights of a trained snapshot come from, and the step of a drift; empty for untrained weights."""
    origin = " at shipped weights" if cell.weights else " at weights trained here"
    return (origin if cell.problem.epochs else "") + (f" at {cell.drift.words}" if cell.drift else "")


def prepare(cell: Cell, folder: Path, data: Path | None, report: Report) -> None:
    """Store the problem's snapshot and its batch's reference Fisher in ``folder``, completely or not at all.

    A cell that trains needs the snapshot alone, from which its training begins. A stored reference is kept unless other
    libraries have made it or its file is damaged.

    Raises:
        MemoryError, torch.OutOfMemoryError: the Fisher would not fit; the text says how many samples would fit.
        ValueError: the shipped snapshot that the cell names cannot be used.
    """
    path = folder / _FILE
    if path.exists() and _is_current(path, cell):
        return
    dtype = getattr(torch, cell.dtype)
    problem = cell.problem
    model = _snapshot(cell, data, report)
    later = _drifted(cell, model, data, report)
    if isinstance(problem, Given):
        inputs, targets = problem.batch(cell.seed, cell.device)
    else:
        inputs, targets = training.batch(problem, problem.data(data), cell.seed, cell.device, dtype)
    stored: dict[str, Any] = {"weights": model.state_dict(), "batch": (inputs, targets), "drifted": later}
    if needs_fisher(cell):
        instance = instance_of(cell, model, inputs, targets)
        refuse_oversized(instance, cell)
        report(f"{method(cell)} of {problem.label}: {len(targets)} samples")
        fisher = fisher_of(cell, instance)
        stored |= _packed(fisher) | {"covered_trace": covered_trace(instance, fisher, *_fisher_type(cell))}
        if "damping" in cell.meters:
            report(f"targets of {len(TARGETS)} dampings")
            stored |= second.stored(cell, data, instance, fisher)
    with store.writing():
        folder.mkdir(parents=True, exist_ok=True)
    write(stored | {"libraries": libraries.loaded()}, path)


def _snapshot(cell: Cell, data: Path | None, report: Report) -> nn.Module:
    """The model that is measured: the shipped snapshot that the cell names, or a snapshot that is trained here."""
    problem, place = cell.problem, (cell.device, getattr(torch, cell.dtype))

    def progress(epoch: int, epochs: int, loss: float) -> None:
        report(f"training {problem.label}: epoch {epoch}/{epochs}, loss {loss:.4f}")

    if isinstance(problem, Given):
        return problem.model().to(cell.device)
    if cell.weights:
        return shipped.load(problem, cell.seed, cell.weights, data).to(*place)
    return training.snapshot(problem, cell.seed, data, *place, progress)


def _drifted(cell: Cell, model: nn.Module, data: Path | None, report: Report) -> dict[int, Any]:
    """The weights of a drift by age, to whose beginning the model is moved; empty for a cell without a drift."""
    if cell.drift is None:
        return {}
    report(f"training {cell.problem.label}: {cell.drift.words} and {cell.drift.ages[-1]} steps more")
    later = training.drifted(cell.problem, model, cell.drift, cell.seed, data)
    model.load_state_dict(later[0])
    return later


_kept: dict[tuple[Path, int], Reference] = {}  # of the last cell, because the next one in this process has it too


def load(cell: Cell, folder: Path) -> Reference:
    """The stored reference of a cell; large tensors stay on disk until they are used.

    The reference that this process has given to ``keep`` is not read again.
    """
    kept = _kept.get(_key(folder))
    return _loaded(cell, folder) if kept is None else kept._replace(instance=kept.instance.again())


def keep(folder: Path, loaded: Reference | None) -> None:
    """Keep a reference whose batch and model have not changed for the next cell; None lets go of the one before."""
    _kept.clear()
    if loaded is not None:
        _kept[_key(folder)] = loaded


def _key(folder: Path) -> tuple[Path, int]:
    return folder, (folder / _FILE).stat().st_mtime_ns


def _loaded(cell: Cell, folder: Path) -> Reference:
    model, stored = load_snapshot(cell, folder)
    inputs, targets = stored["batch"]
    instance = instance_of(cell, model, inputs, targets)
    if not needs_fisher(cell):
        return Reference(instance, None, float("nan"))
    if stored["columns"] is None:
        fisher = fisher_of(cell, instance)
    else:
        columns = tuple(from_pairs(la, pairs) for la, pairs in zip(instance.layers, stored["columns"], strict=True))
        fisher = ExactFisher(columns, instance.terms, stored["coefficients"], extent=instance.extent)
    fisher.restore(stored["cache"])
    return Reference(instance, fisher, stored["covered_trace"])


def judges(cell: Cell, folder: Path, instance: Instance) -> tuple[Targets, Descent]:
    """What judges the steps of the meter ``damping``, and the second batch, for the instance that ``load`` gave."""
    return second.loaded(cell, instance, _stored(folder / _FILE, cell))


def load_snapshot(cell: Cell, folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The snapshot in evaluation mode, and the content of its file."""
    stored = _stored(folder / _FILE, cell)
    libraries.count_in(stored["libraries"])
    model = cell.problem.model().to(cell.device)
    if not isinstance(cell.problem, Given):  # which keeps its own dtypes
        model = model.to(getattr(torch, cell.dtype))
    model.eval().load_state_dict(stored["weights"])
    return model, stored


def instance_of(cell: Cell, model: nn.Module, inputs: Inputs, targets: Tensor) -> Instance:
    """The cell's instance on a batch of its problem."""
    options = cell.problem.held.options if isinstance(cell.problem, Given) else {}
    return Instance(model, inputs, targets, cell.problem.loss, parameters=cell.parameters, **options)


def _stored(path: Path, cell: Cell) -> dict[str, Any]:
    stored: dict[str, Any] = torch.load(path, map_location=cell.device, mmap=cell.device == "cpu", weights_only=True)
    return stored


def _is_current(path: Path, cell: Cell) -> bool:
    """Whether a stored reference can be read, and the libraries of this process have made it."""
    try:
        return not libraries.changes(_stored(path, cell)["libraries"])
    except (RuntimeError, ValueError, LookupError, TypeError, EOFError, UnpicklingError):
        return False


def fisher_of(cell: Cell, instance: Instance, stream: int = STREAM) -> ExactFisher:
    """The reference Fisher of a cell, on an instance of its problem; ``stream``: the seed of drawn labels at seed 0."""
    return exact_fisher(instance, *_fisher_type(cell, stream), precision=cell.precision)


def refuse_oversized(instance: Instance, cell: Cell) -> None:
    """Raise an out-of-memory error if the reference needs more than the free memory; the text says what would fit."""
    mc_samples = cell.problem.mc_samples
    columns = instance.columns_per_sample("mc" if mc_samples else "type-2", mc_samples)
    itemsize = 8 if cell.precision == "float64" else instance.dtype.itemsize
    budget.refuse_oversized(list(instance.sizes.values()), instance.samples, columns, itemsize, instance.device)


def _fisher_type(cell: Cell, stream: int = STREAM) -> tuple[str, int, int]:
    """Fisher type, draws and their seed, which no probe has, because no probe may share labels with its judge."""
    draws = cell.problem.mc_samples
    return ("mc", draws, stream + cell.seed) if draws else ("type-2", 1, 0)


def _packed(fisher: ExactFisher) -> dict[str, Any]:
    return {
        # None for a stream, because each reader computes its columns again
        "columns": None if isinstance(fisher.columns, Stream) else [pairs_of(c) for c in fisher.columns],
        "coefficients": fisher.coefficients,
        "cache": fisher.cache(),
    }
