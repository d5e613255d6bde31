"""One task, a reference or a cell, carried out in this process. Every exception becomes an outcome."""

from __future__ import annotations

import errno
import importlib
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
TWICE = "another process has measured this cell with other values, which stay"
LONGEST_REASON = 500  # characters: every row of a cell repeats the reason


@dataclass(frozen=True)
class Outcome:
    """How a task ended, and the reason if it did not succeed."""

    status: Status = Status.OK
    reason: str = ""


@dataclass(frozen=True)
class Task:
    """A reference to prepare or a cell to measure, with all that another process needs for it."""

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
        """The cell's label, or the label of the problem of a reference."""
        if self.kind == "cell":
            return self.cell.label
        kind = "start" if self.cell.training else "reference Fisher"
        return f"{kind} of {self.cell.problem.label}, seed {self.cell.seed}"

    @property
    def devices(self) -> int:
        """The number of devices that the task needs; a reference needs one."""
        return self.cell.devices if self.kind == "cell" else 1

    @property
    def log(self) -> Path:
        """The file into which the task prints."""
        return store.cell_file(self.folder / "logs", self.id, ".log")

    @property
    def fragment(self) -> Path:
        """The file of the cell's rows."""
        return store.cell_file(self.folder / "cells", self.id)

    def answered(self) -> Outcome | None:
        """The final outcome if the cell's fragment already holds one, whichever process wrote it."""
        status = store.fragment_status(self.fragment) if self.kind == "cell" else None
        return Outcome(status) if status in ANSWERED else None

    def fail(self, outcome: Outcome, started: datetime, loaded: str | None = None) -> Outcome:
        """Write the row of a cell without a value, unless its fragment holds an answer: it must not be lost."""
        if answer := self.answered():
            return answer
        row = Row(status=outcome.status, reason=outcome.reason, scope="", epoch=self.cell.problem.epochs)
        return self.write([row], started, loaded) if self.kind == "cell" else outcome

    def do(self, report: Report) -> Sequence[Row]:
        """Measure the cell and return its rows, or make the reference and return no rows."""
        import torch

        torch.set_num_threads(self.cell.threads)
        module = importlib.import_module(self.measure)
        reference = self.folder / "references" / self.reference
        if self.kind == "reference":
            module.prepare(self.cell, reference, self.data, report)
            return []
        with collected() as blocks:
            rows: list[Row] = module.measure(self.cell, reference, self.data, report)
        if not rows:
            raise RuntimeError("the cell was measured without a single row")
        if blocks:  # a training that was measured on its way has several; the last are stored
            store.write_blocks(self.folder, self.id, blocks[-1])
        return rows

    def write(self, rows: Sequence[Row], started: datetime, loaded: str | None = None) -> Outcome:
        """Write the cell's rows and return its outcome.

        An answer that another process has written meanwhile stays; if its values are other ones, the reason says so.

        ``loaded``: the record of the libraries that its process had loaded, see ``loaded``. None means unknown.
        """
        context = store.Context(self.folder.name, self.id, started, self.environment, loaded)
        table = store.rows_to_table(self.cell, rows, context)
        status = store.table_status(table)
        if answer := self.answered():
            differing = "; ".join(store.differences(store.read_cell(self.fragment), table))
            return replace(answer, reason=one_line(f"{TWICE}: {differing}", LONGEST_REASON)) if differing else answer
        store.write_cell(self.folder / "cells", table)
        return Outcome(status, "" if status is Status.OK else store.reason(table, status))

    def loaded(self) -> str | None:
        """Store which libraries this process has loaded, and return the record's name; None for a reference."""
        if self.kind == "reference":
            return None
        suites = loaded_suites() - {source(type(part)) for part in (self.cell.probe, self.cell.problem)}
        record = libraries.loaded(store.read_libraries(self.folder).values(), suites)
        return store.write_libraries(self.folder, record)


def run_cell(task: Task, report: Report) -> Outcome:
    """Carry out a task in this process and write the cell's fragment: what every engine calls.

    Only KeyboardInterrupt is raised, and OSError if the disk is full, because that is no outcome of the cell.
    """
    started = datetime.now(UTC)
    try:
        rows = task.do(report)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if disk_error := _disk_full(error):
            raise disk_error from error
        traceback.print_exc()
        return task.fail(describe(error), started, task.loaded())
    return task.write(rows, started, task.loaded()) if task.kind == "cell" else Outcome()


def _disk_full(error: BaseException) -> OSError | None:
    """The error of a full disk that caused ``error``, if any."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _FULL:
            return cause
        if isinstance(cause, RuntimeError) and "PytorchStreamWriter failed writing" in str(cause):
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        cause = cause.__cause__ or cause.__context__
    return None


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
# The text of these exceptions is the reason of the status.
_STATUS_OF = {Skip: Status.SKIPPED, Unsupported: Status.UNSUPPORTED, Diverged: Status.DIVERGED}


def describe(error: BaseException) -> Outcome:
    """Status and one-line reason for an exception."""
    for kind, status in _STATUS_OF.items():
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
