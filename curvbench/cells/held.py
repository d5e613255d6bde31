"""What a cell holds its statistics against beside its reference: other samples, and later weights.

Both are computed once for all cells of a reference, and stored in its folder.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from curvbench import training
from curvbench.cells import reference
from curvbench.cells.reference import Reference
from curvbench.cells.tensors import write
from curvbench.fisher import ExactFisher
from curvbench.identity import libraries
from curvbench.instance import Instance
from curvbench.meters.held import Held, Yardstick, restored, yardstick
from curvbench.spec import Cell, Report

OTHER_STREAM = reference.STREAM + 2**30  # of the labels of other samples, which share no draws with the reference's
_FILE = "held.pt"


def prepare(cell: Cell, folder: Path, data: Path | None, report: Report) -> None:
    """Store what the cell asks for, completely or not at all; the reference is in ``folder`` already.

    Raises:
        MemoryError, torch.OutOfMemoryError: the Fisher of other samples would not fit.
        ValueError: there are too few samples.
    """
    path = folder / _FILE
    if not (cell.population or cell.drift):
        return
    if path.exists() and not libraries.changes(_stored(path, cell)["libraries"]):
        return
    found = reference.load(cell, folder)
    content: dict[str, Any] = {}
    if cell.population:
        report(f"{reference.method(cell)} of {cell.population} other samples")
        batch = _other_batch(cell, data)
        instance = reference.instance_of(cell, found.instance.model, *batch)
        reference.refuse_oversized(instance, cell)
        fisher = reference.fisher_of(cell, instance, OTHER_STREAM)
        content["population"] = {"batch": batch, **_measured(cell, instance, fisher, found)}
    if cell.drift:
        report(f"{reference.method(cell)} at {len(cell.drift.ages)} ages")
        weights = _weights(cell, folder)
        content["ages"] = {age: _measured(cell, *_at_age(cell, found, age, weights), found) for age in cell.drift.ages}
    write(content | {"libraries": libraries.loaded()}, path)


def _measured(cell: Cell, instance: Instance, fisher: ExactFisher, found: Reference) -> dict[str, Any]:
    assert found.fisher is not None, "meters that hold statistics elsewhere need the reference Fisher"
    return {"yardstick": yardstick(instance, fisher, found.fisher, cell.damping)._asdict()}


def population(cell: Cell, folder: Path, found: Reference) -> Held:
    """The other samples of the cell."""
    content = _stored(folder / _FILE, cell)
    libraries.count_in(content["libraries"])
    stored = content["population"]
    instance = reference.instance_of(cell, found.instance.model, *stored["batch"])
    numbers = Yardstick(**stored["yardstick"])
    return Held(instance, restored(reference.fisher_of(cell, instance, OTHER_STREAM), numbers), numbers)


def later(cell: Cell, folder: Path, found: Reference) -> Iterator[tuple[int, Held]]:
    """The reference's samples at the weights of every age; at age 0 they are the reference itself."""
    stored = _stored(folder / _FILE, cell)
    libraries.count_in(stored["libraries"])
    weights = _weights(cell, folder)
    for age, content in stored["ages"].items():
        instance, fisher = _at_age(cell, found, age, weights)
        numbers = Yardstick(**content["yardstick"])
        yield age, Held(instance, fisher if fisher is found.fisher else restored(fisher, numbers), numbers)


def _weights(cell: Cell, folder: Path) -> Mapping[int, Any]:
    """The weights of every age."""
    weights: Mapping[int, Any] = reference.load_snapshot(cell, folder)[1]["drifted"]
    return weights


def _at_age(cell: Cell, found: Reference, age: int, weights: Mapping[int, Any]) -> tuple[Instance, ExactFisher]:
    assert found.fisher is not None, "meters that hold statistics elsewhere need the reference Fisher"
    if age == 0:
        return found.instance, found.fisher
    model = copy.deepcopy(found.instance.model)
    model.load_state_dict(weights[age])
    instance = reference.instance_of(cell, model, found.instance.inputs, found.instance.targets)
    return instance, reference.fisher_of(cell, instance)


def _other_batch(cell: Cell, data: Path | None) -> tuple[Any, torch.Tensor]:
    problem = cell.problem
    place = (cell.device, getattr(torch, cell.dtype))
    return training.other_batch(problem, problem.data(data), cell.seed, cell.population, *place)


def _stored(path: Path, cell: Cell) -> dict[str, Any]:
    stored: dict[str, Any] = torch.load(path, map_location=cell.device, weights_only=True)
    return stored
