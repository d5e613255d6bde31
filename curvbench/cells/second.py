"""The second batch of a cell, on which the meter ``damping`` takes real steps, and what judges these steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from curvbench import training
from curvbench.cells.given import Batch, Given
from curvbench.fisher import ExactFisher
from curvbench.instance import Instance
from curvbench.meters.damping import Descent, Targets, targets_of
from curvbench.spec import Cell

DRAWN = 2**30  # above the seeds of cells, below the labels of the reference: the second batch is a draw of its own


def stored(cell: Cell, data: Path | None, instance: Instance, fisher: ExactFisher) -> dict[str, Any]:
    """What a reference holds for the meter ``damping``: the second batch, and what judges every probe's steps."""
    targets = targets_of(fisher, instance.gradient(), cell.damping)
    return {"second": _batch(cell, data), "targets": targets._asdict()}


def loaded(cell: Cell, instance: Instance, content: dict[str, Any]) -> tuple[Targets, Descent]:
    """What judges steps, and the second batch, from the ``content`` of a reference."""
    other = instance.elsewhere(*content["second"])
    return Targets(**content["targets"]), Descent(other.loss_after, where(cell), torch.finfo(instance.dtype).eps)


def where(cell: Cell) -> str:
    """The second batch in words."""
    if not isinstance(cell.problem, Given):
        return "a second batch"
    return "the batch itself" if len(cell.problem.held.batches) == 1 else "the next batch"


def _batch(cell: Cell, data: Path | None) -> Batch:
    """Another draw from the data; of given batches the next one, which is the same if there is only one."""
    problem = cell.problem
    if isinstance(problem, Given):
        return problem.batch((cell.seed + 1) % len(problem.held.batches), cell.device)
    dtype: torch.dtype = getattr(torch, cell.dtype)
    return training.batch(problem, problem.data(data), DRAWN + cell.seed, cell.device, dtype)
