"""Engines run the cells of a plan and leave one fragment per cell, whatever happens to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from curvbench.engines.task import Outcome, Task
from curvbench.spec import Cell, Status

MEASURE = "curvbench.cells.measure"
REFERENCE = "reference: "  # begins the reason of a cell that failed with its problem's reference


@dataclass(frozen=True)
class Work:
    """What an engine is asked to do: cells by id, the run's folder, seconds per cell (``timeout``) and in all.

    ``memory``: bytes that a cell may take; without it, an equal share of what can be had. ``measure`` names the module
    whose ``prepare``, ``measure`` and ``reference_identity`` do it, and may name modules that they ``PRELOAD``. What
    cells load is named as seen from ``root``, the suite's folder.
    """

    cells: Mapping[str, Cell]
    folder: Path
    environment: Mapping[str, Any]
    reference: Callable[[Cell], str]
    data: Path | None = None
    timeout: float = 3600.0
    budget: float | None = None
    jobs: int = 1
    memory: float | None = None
    measure: str = MEASURE
    root: Path = field(default_factory=Path.cwd)

    def tasks(self) -> list[Task]:
        """References, each followed by its cells."""
        groups: dict[str, list[Task]] = {}
        for identity, cell in self.cells.items():
            reference = self.reference(cell)
            groups.setdefault(reference, []).append(self._task("cell", identity, cell, reference))
        return [
            task
            for reference, tasks in groups.items()
            for task in (self._task("reference", reference, tasks[0].cell, reference), *tasks)
        ]

    def _task(self, kind: Literal["reference", "cell"], identity: str, cell: Cell, reference: str) -> Task:
        if kind == "reference":  # which no probe decides: that of the cell, and what it imports, is not loaded with it
            from curvbench.probes.identity import IdentityProbe  # imports torch, which engines need not wait for

            cell = replace(cell, probe=IdentityProbe())
        return Task(kind, identity, cell, self.folder, reference, self.data, self.environment, self.measure, self.root)


@dataclass(frozen=True)
class Event:
    """Something happened to a task: it started, says what it does, or finished after ``seconds`` with ``outcome``."""

    kind: Literal["started", "reported", "finished"]
    task: Task
    text: str = ""
    outcome: Outcome | None = None
    seconds: float = 0.0


Observer = Callable[[Event], None]


class Engine(Protocol):
    """Runs work. Every cell that was started has a fragment afterwards; KeyboardInterrupt is raised again."""

    def run(self, work: Work, observe: Observer) -> None:
        """Run all tasks and tell ``observe`` of each event, in the caller's thread."""


def blocked(task: Task, failed: Mapping[str, Outcome]) -> Outcome | None:
    """Why a cell cannot be measured: the outcome of its reference, unless that is there."""
    outcome = failed.get(task.reference)
    if outcome is None or outcome.status is Status.SKIPPED:
        return outcome
    return Outcome(outcome.status, f"{REFERENCE}{outcome.reason}")
