"""One task, a reference or a cell, carried out in this process; every exception becomes an outcome."""

from __future__ import annotations

import errno
import importlib
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from curvbench import store
from curvbench.cells.launch import RankDied
from curvbench.identity import libraries
from curvbench.registry import loaded_suites, source
from curvbench.spec import Cell, Diverged, Row, Skip, Status, Unsupported
from curvbench.spec.pictures import collected
from curvbench.words import one_line

Report = Callable[[str], None]
ANSWERED = frozenset({Status.OK, Status.UNSUPPORTED})  # statuses whose cells are not run again
LONGEST_REASON = 500  # characters: every row of a cell repeats the reason


@dataclass(frozen=True)
class Outcome:
    """How a task ended, and why where it did not succeed."""

    status: Status = Status.OK
    reason: str = ""


@dataclass(frozen=True)
class Task:
    """A reference to prepare or a cell to measure, with all that another process needs to do it."""

    kind: Literal["reference", "cell"]
    id: str
    cell: Cell
    folder: Path
    reference: str
    data: Path | None
    environment: Mapping[str, Any]
    measure: str
    root: Path = field(default_factory=Path.cwd)

    @property
    def label(self) -> str:
        """The cell's label, or that of the problem whose reference it is."""
        if self.kind == "cell":
            return self.cell.label
        made = "start" if self.cell.training else "reference Fisher"
        return f"{made} of {self.cell.problem.label}, seed {self.cell.seed}"

    @property
    def devices(self) -> int:
        """How many it takes: a reference is made on one."""
        return self.cell.devices if self.kind == "cell" else 1

    @property
    def log(self) -> Path:
        """The file that takes what the task prints."""
        return store.cell_file(self.folder / "logs", self.id, ".log")

    @property
    def fragment(self) -> Path:
        """The file of the cell's rows."""
        return store.cell_file(self.folder / "cells", self.id)

    def answered(self) -> Outcome | None:
        """How the cell has ended for good, by whomever it was measured."""
        status = store.fragment_status(self.fragment) if self.kind == "cell" else None
        return Outcome(status) if status in ANSWERED else None

    def fail(self, outcome: Outcome, started: datetime, loaded: str | None = None) -> Outcome:
        """Write the row of a cell without a value, unless there is an answer: what is measured is never lost."""
        if answer := self.answered():
            return answer
        row = Row(status=outcome.status, reason=outcome.reason, scope="", epoch=self.cell.problem.epochs)
        return self.keep([row], started, loaded) if self.kind == "cell" else outcome

    def do(self, report: Report) -> Sequence[Row]:
        """The cell's rows; none for a reference, which is made."""
        import torch

        torch.set_num_threads(self.cell.threads)
        module = importlib.import_module(self.measure)
        reference = self.folder / "references" / self.reference
        if self.kind == "reference":
            module.prepare(self.cell, reference, self.data, report)
            return []
        with collected() as kept:
            rows: list[Row] = module.measure(self.cell, reference, self.data, report)
        if not rows:
            raise RuntimeError("the cell was measured without a single row")
        if kept:  # of a training that was measured on its way, the last
            store.write_blocks(self.folder, self.id, kept[-1])
        return rows

    def keep(self, rows: Sequence[Row], started: datetime, loaded: str | None = None) -> Outcome:
        """Write the cell's rows, and say how it ended; ``loaded`` names what its process had loaded, if that is known.

        See ``loaded``.
        """
        context = store.Context(self.folder.name, self.id, started, self.environment, loaded)
        table = store.rows_to_table(self.cell, rows, context)
        store.write_cell(self.folder / "cells", table)
        status = store.table_status(table)
        return Outcome(status, "" if status is Status.OK else store.reason(table, status))

    def loaded(self) -> str | None:
        """Keep what this process, which measures the cell, has loaded so far; None for a reference, which says it."""
        if self.kind == "reference":
            return None
        suites = loaded_suites() - {source(type(part)) for part in (self.cell.probe, self.cell.problem)}
        record = libraries.loaded(store.read_libraries(self.folder).values(), suites)
        return store.write_libraries(self.folder, record)


def run_cell(task: Task, report: Report) -> Outcome:
    """Carry out a task in this process and write the cell's fragment: what every engine calls.

    Only KeyboardInterrupt gets out, and OSError where the disk is full: that says nothing of the cell.
    """
    started = datetime.now(UTC)
    try:
        rows = task.do(report)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if full := _disk_full(error):
            raise full from error
        traceback.print_exc()
        return task.fail(describe(error), started, task.loaded())
    return task.keep(rows, started, task.loaded()) if task.kind == "cell" else Outcome()


def _disk_full(error: BaseException) -> OSError | None:
    """The error of a full disk that stands behind ``error``."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _FULL:
            return seen
        if isinstance(seen, RuntimeError) and "PytorchStreamWriter failed writing" in str(seen):
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        seen = seen.__cause__ or seen.__context__
    return None


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
_SAID = {Skip: Status.SKIPPED, Unsupported: Status.UNSUPPORTED, Diverged: Status.DIVERGED}  # their text is the reason


def describe(error: BaseException) -> Outcome:
    """Status and one-line reason for an exception."""
    for kind, status in _SAID.items():
        if isinstance(error, kind):
            return Outcome(status, one_line(error, LONGEST_REASON))
    if isinstance(error, RankDied):
        return Outcome(error.status, str(error))
    lines = "".join(traceback.format_exception_only(error)).strip()
    return Outcome(_failure(error), one_line(lines, LONGEST_REASON))


def _failure(error: BaseException) -> Status:
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return Status.OOM_DEVICE
    # torch has no exception of its own for a host allocation that failed
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)):
        return Status.OOM_HOST
    return Status.ERROR
