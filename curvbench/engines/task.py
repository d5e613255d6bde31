"""One task, a reference or a cell, carried out in this process. Every exception becomes an outcome."""

from __future__ import annotations

import contextlib
import errno
import importlib
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
from curvbench.words import one_line, printable

Report = Callable[[str], None]
ANSWERED = frozenset({Status.OK, Status.UNSUPPORTED})  # statuses whose cells are not run again
TWICE = "another process has measured this cell with other values, which stay"
LONGEST_REASON = 500  # characters: every row of a cell repeats the reason
_LONGEST_TEXT = 100 * LONGEST_REASON  # characters of which a reason is made, spaces and line ends included


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

    def written_since(self, stamp: store.Stamp) -> Outcome | None:
        """The outcome in the cell's fragment if it was written after ``store.stamp`` was taken of it."""
        if self.kind == "reference" or store.stamp(self.fragment) in (None, stamp):
            return None
        try:
            table = store.read_cell(self.fragment)
            status = store.table_status(table)
        except (OSError, ValueError, StopIteration):  # damaged, or removed meanwhile
            return None
        return Outcome(status, "" if status is Status.OK else store.reason(table, status))

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
        record = libraries.loaded(filter(None, store.read_libraries(self.folder).values()), suites)
        return store.write_libraries(self.folder, record)


def run_cell(task: Task, report: Report, tidy: Callable[[], None] = lambda: None) -> Outcome:
    """Carry out a task in this process and write the cell's fragment: what every engine calls.

    ``tidy`` is called before anything is written, because a task may leave the process in any state.

    Raises:
        KeyboardInterrupt: the run is interrupted.
        Unwritable: results cannot be written, which is no outcome of the cell. Other errors of the system are outcomes.
    """
    started = datetime.now(UTC)
    try:
        rows = task.do(report)
        tidy()
        return task.write(rows, started, task.loaded()) if task.kind == "cell" else Outcome()
    except (KeyboardInterrupt, store.Unwritable):
        raise
    except BaseException as error:
        tidy()
        if isinstance(error, OSError) and error.errno in _DISK:
            store.shorten_log(task.log)  # which may be what has filled the disk, and is then the cell's own fault
            store.check_writable(task.folder)  # the cell may have met the full disk of the results first
        with contextlib.suppress(OSError, ValueError):  # the cell may have closed its standard error
            traceback.print_exc()
        return task.fail(describe(error), started, task.loaded())


_DISK = store.FULL | {errno.EROFS}
# The text of these exceptions is the reason of the status.
_STATUS_OF = {Skip: Status.SKIPPED, Unsupported: Status.UNSUPPORTED, Diverged: Status.DIVERGED}


def describe(error: BaseException) -> Outcome:
    """Status and one-line reason for an exception."""
    status = next((status for kind, status in _STATUS_OF.items() if isinstance(error, kind)), None)
    status = error.status if isinstance(error, RankDied) else status
    text = "".join(traceback.format_exception_only(error)).strip() if status is None else _text(error)
    return Outcome(status or _failure(error), one_line(printable(text[:_LONGEST_TEXT]), LONGEST_REASON))


def _text(error: BaseException) -> str:
    """The text of an exception, whose class may be a user's."""
    try:
        return str(error)
    except Exception:
        return f"{type(error).__name__}, which has no text"


def _failure(error: BaseException) -> Status:
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return Status.OOM_DEVICE
    # torch has no exception of its own for a host allocation that failed
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in _text(error)):
        return Status.OOM_HOST
    return Status.ERROR
