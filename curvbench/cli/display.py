"""The progress of a run: a bar on a terminal, lines elsewhere, or JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from curvbench.engines import Event, Observer
from curvbench.spec import Status
from curvbench.words import duration, one_line

GOOD = frozenset({Status.OK, Status.UNSUPPORTED, Status.SKIPPED})
Display = AbstractContextManager[Observer]


class Tally:
    """Finished, failed and remaining cells, and an estimate of the time left."""

    def __init__(self, cells: int, references: int) -> None:
        self.total = cells
        self.started = time.monotonic()
        self._totals = {"cell": cells, "reference": references}
        self._seconds: dict[str, dict[str, float]] = {"cell": {}, "reference": {}}  # by the id of the task
        self._elsewhere: dict[str, set[str]] = {"cell": set(), "reference": set()}
        self._failed: set[str] = set()

    @property
    def finished(self) -> int:
        """The number of cells that have ended in any way."""
        return self._ended("cell")

    @property
    def elsewhere(self) -> int:
        """The number of cells that another run has measured."""
        return len(self._elsewhere["cell"])

    def _ended(self, kind: str) -> int:
        return len(self._seconds[kind].keys() | self._elsewhere[kind])

    @property
    def failed(self) -> int:
        """The number of cells that have failed; a cell that runs again counts as it ended last."""
        return len(self._failed)

    def add(self, event: Event) -> None:
        """Count a task if it has finished."""
        if event.kind == "finished" and event.outcome is not None:
            kind, identity = event.task.kind, event.task.id
            if event.elsewhere:
                self._elsewhere[kind].add(identity)
            else:
                self._seconds[kind][identity] = event.seconds
            if kind == "cell":
                (self._failed.discard if event.outcome.status in GOOD else self._failed.add)(identity)

    @property
    def seconds_left(self) -> float | None:
        """An estimate from the mean time of finished tasks and the tasks that ran at a time. None means unknown.

        A task of another run counts as long as the mean of its kind.
        """
        means = {kind: fmean(times.values()) for kind, times in self._seconds.items() if times}
        done = sum(mean * self._ended(kind) for kind, mean in means.items())
        if not self._seconds["cell"] or done == 0:
            return None
        work = sum(mean * max(self._totals[kind] - self._ended(kind), 0) for kind, mean in means.items())
        return work * (time.monotonic() - self.started) / done

    @property
    def note(self) -> str:
        """The numbers of failed cells and of cells of another run, and the time left."""
        parts = [f"{self.failed} failed"] if self.failed else []
        parts += [f"{self.elsewhere} measured by another run"] if self.elsewhere else []
        parts += [f"about {duration(self.seconds_left)} left"] if self.seconds_left else []
        return ", ".join(parts)


@contextmanager
def lines(say: Callable[[str], None], tally: Tally) -> Iterator[Observer]:
    """One line per finished task."""

    def observe(event: Event) -> None:
        tally.add(event)
        if event.kind == "finished":
            say(line(event, tally) + (f"   ({tally.note})" if tally.note else ""))

    yield observe


@contextmanager
def json_lines(tally: Tally) -> Iterator[Observer]:
    """One JSON object per event."""

    def observe(event: Event) -> None:
        tally.add(event)
        print(json.dumps(as_json(event, tally)), flush=True)

    yield observe


@contextmanager
def bar(console: Console, tally: Tally) -> Iterator[Observer]:
    """A bar with counts, the time left and the running tasks; finished tasks scroll above it."""
    running: dict[str, str] = {}
    columns = (BarColumn(bar_width=16), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as progress:
        bar_id = progress.add_task("", total=tally.total)

        def observe(event: Event) -> None:
            tally.add(event)
            running[event.task.id] = event.task.label + (f": {event.text}" if event.text else "")
            if event.kind == "finished":
                del running[event.task.id]
                progress.console.print(line(event, tally), soft_wrap=True, markup=False, highlight=False)
            note = ", ".join(filter(None, [tally.note, *running.values()]))
            progress.update(bar_id, completed=tally.finished, description=escape(one_line(note)))

        yield observe


def line(event: Event, tally: Tally) -> str:
    """``[ 3/24] ok          kfac on resnet, seed 0   4.1 s``, and the reason if there is no value."""
    assert event.outcome is not None
    is_made = event.task.kind == "reference" and event.outcome.status is Status.OK
    status = "reference" if is_made else str(event.outcome.status)
    count = f"{tally.finished:{len(str(tally.total))}}/{tally.total}"
    took = "by another run" if event.elsewhere else duration(event.seconds)
    text = f"[{count}] {status:<11} {one_line(event.task.label)}   {took}"
    return f"{text}   {event.outcome.reason}" if event.outcome.reason else text


def as_json(event: Event, tally: Tally) -> dict[str, Any]:
    """An event as the object that ``--log-json`` prints."""
    content: dict[str, Any] = {"event": event.kind, "kind": event.task.kind, "id": event.task.id}
    content |= {"label": event.task.label, "seconds": round(event.seconds, 3)}
    content |= {"text": event.text} if event.text else {}
    if event.outcome is not None:
        content |= {"status": str(event.outcome.status), "reason": event.outcome.reason}
    return content | {
        "finished": tally.finished,
        "failed": tally.failed,
        "total": tally.total,
        "elsewhere": tally.elsewhere,
    }
