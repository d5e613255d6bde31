"""Engines run the cells of a plan. Every started cell leaves a fragment, however it ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from curvbench.engines.task import Outcome, Task
from curvbench.spec import Cell, Status
from curvbench.store import Stamp

MEASURE = "curvbench.cells.measure"
REFERENCE = "reference: "  # begins the reason of a cell whose reference failed


@dataclass(frozen=True)
class Work:
    """The cells that an engine runs, by id, and all that it needs to run them.

    ``timeout``: seconds per cell. ``budget``: seconds after which no cell is started. None means no budget. ``memory``:
    bytes per cell. None means an equal share of the available memory. ``measure``: the module whose ``prepare``,
    ``measure`` and ``reference_identity`` do the work; its ``PRELOAD`` may name modules to import beforehand. ``root``:
    the suite's folder, from which the files that cells load are named. ``seen``: the stamps of the fragments that cells
    had when the run was planned; a fragment with another stamp comes from another run in the same folder.
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
    seen: Mapping[str, Stamp] = field(default_factory=dict)

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
        if kind == "reference":  # no probe decides a reference, so that the file of the cell's probe is not loaded
            from curvbench.probes.identity import IdentityProbe  # imports torch, and engines need not wait for it

            cell = replace(cell, probe=IdentityProbe())
        folder, data = self.folder.absolute(), self.data and self.data.absolute()  # a cell may change its directory
        return Task(kind, identity, cell, folder, reference, data, self.environment, self.measure, self.root)


@dataclass(frozen=True)
class Event:
    """An event of a task: it started, reported a ``text``, or finished after ``seconds`` with ``outcome``.

    ``elsewhere``: another run in the same folder has measured it.
    """

    kind: Literal["started", "reported", "finished"]
    task: Task
    text: str = ""
    outcome: Outcome | None = None
    seconds: float = 0.0
    elsewhere: bool = False


Observer = Callable[[Event], None]


class Engine(Protocol):
    """Runs work. Every started cell has a fragment afterwards; KeyboardInterrupt is raised again."""

    def run(self, work: Work, observe: Observer) -> None:
        """Run all tasks, and call ``observe`` with each event in the caller's thread."""


def blocked(task: Task, failed: Mapping[str, Outcome]) -> Outcome | None:
    """The outcome of a cell whose reference failed. None means that the reference is there."""
    outcome = failed.get(task.reference)
    if outcome is None or outcome.status is Status.SKIPPED:
        return outcome
    return Outcome(outcome.status, f"{REFERENCE}{outcome.reason}")
