"""What a run shows while it works: a bar on a terminal, lines elsewhere, or JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from curvbench.engines import Event
from curvbench.spec import Status

GOOD = frozenset({Status.OK, Status.UNSUPPORTED, Status.SKIPPED})


class Display(Protocol):
    """A context manager that is told of every event."""

    def __enter__(self) -> Self: ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None: ...
    def __call__(self, event: Event) -> None: ...


class Tally:
    """Finished, failed and remaining cells, and the time that those may take."""

    def __init__(self, total: int, jobs: int) -> None:
        self.total, self.jobs = total, jobs
        self.finished = self.failed = 0
        self.started = time.monotonic()

    def add(self, event: Event) -> None:
        """Count a finished cell; references count only by the time they take."""
        if event.kind == "finished" and event.task.kind == "cell" and event.outcome is not None:
            self.finished += 1
            self.failed += event.outcome.status not in GOOD

    @property
    def left(self) -> float | None:
        """Seconds left if the remaining cells take what the finished ones took, references included."""
        if self.finished == 0:
            return None
        return (time.monotonic() - self.started) / self.finished * (self.total - self.finished)


class Lines:
    """One line per finished task."""

    def __init__(self, console: Console, tally: Tally) -> None:
        self.console, self.tally = console, tally

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, event: Event) -> None:
        """Print the line, and the reason of a cell without a value."""
        self.tally.add(event)
        if event.kind == "finished":
            self.console.print(line(event, self.tally), soft_wrap=True, markup=False, highlight=False)


class Bar:
    """A bar with counts, the time left and what is running; failures scroll above it."""

    def __init__(self, console: Console, tally: Tally) -> None:
        self.tally = tally
        columns = ("{task.description}", BarColumn(bar_width=16), MofNCompleteColumn(), "{task.fields[note]}")
        self.progress = Progress(
            *(TextColumn(c) if isinstance(c, str) else c for c in columns), console=console, transient=True
        )
        self.bar = self.progress.add_task("cells", total=tally.total, note="")
        self.running: dict[str, str] = {}

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def __call__(self, event: Event) -> None:
        """Redraw, and print the line of a finished task."""
        self.tally.add(event)
        key = event.task.id
        if event.kind == "finished":
            self.running.pop(key, None)
            self.progress.console.print(line(event, self.tally), soft_wrap=True, markup=False, highlight=False)
        else:
            self.running[key] = event.task.label + (f": {event.text}" if event.text else "")
        self.progress.update(self.bar, completed=self.tally.finished, note=escape(self._note()))

    def _note(self) -> str:
        left = self.tally.left
        parts = [f"{self.tally.failed} failed"] if self.tally.failed else []
        parts += [f"about {seconds(left)} left"] if left is not None else []
        return ", ".join([*parts, *self.running.values()])


class JsonLines:
    """One JSON object per event."""

    def __init__(self, tally: Tally) -> None:
        self.tally = tally

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, event: Event) -> None:
        """Print the event with the counts after it."""
        self.tally.add(event)
        print(json.dumps(as_json(event, self.tally)), flush=True)


def line(event: Event, tally: Tally) -> str:
    """``[ 3/24] ok      kfac on resnet, seed 0   4.1 s``, with the reason where there is no value."""
    width = len(str(tally.total))
    assert event.outcome is not None
    status = event.outcome.status if event.task.kind == "cell" else _reference_status(event.outcome.status)
    label = " ".join(event.task.label.split())
    text = f"[{tally.finished:{width}}/{tally.total}] {status:<11} {label}   {seconds(event.seconds)}"
    return f"{text}   {event.outcome.reason}" if event.outcome.reason else text


def as_json(event: Event, tally: Tally) -> Mapping[str, Any]:
    """An event as the object that ``--log-json`` prints."""
    content: dict[str, Any] = {"event": event.kind, "kind": event.task.kind, "id": event.task.id}
    content |= {"label": event.task.label, "seconds": round(event.seconds, 3)}
    content |= {"text": event.text} if event.text else {}
    if event.outcome is not None:
        content |= {"status": str(event.outcome.status), "reason": event.outcome.reason}
    return content | {"finished": tally.finished, "failed": tally.failed, "total": tally.total}


def seconds(value: float) -> str:
    """``4.1 s``, ``3 min 20 s`` or ``2 h 5 min``."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _reference_status(status: Status) -> str:
    return "reference" if status is Status.OK else str(status)
