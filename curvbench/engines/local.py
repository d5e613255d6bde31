"""The engine of one machine: a process per task, with a hard time limit, several at a time."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from pathlib import Path

from curvbench.engines import Event, Observer, Work, blocked
from curvbench.engines.task import Outcome, Task, describe
from curvbench.registry import load_file, loaded_files
from curvbench.spec import Status

GRACE = 2.0  # seconds between the request to end and the kill


class LocalEngine:
    """Runs each task in a process group of its own, so that one that dies or hangs leaves a row and nothing else."""

    def run(self, work: Work, observe: Observer) -> None:
        """Run all tasks, up to ``work.jobs`` at a time; on KeyboardInterrupt end those that run and raise it again."""
        _Session(work, observe).run()


class _Session:
    """Waiting and running tasks of one run, and the references that failed."""

    def __init__(self, work: Work, observe: Observer) -> None:
        self.work, self.observe = work, observe
        self.context = _context(work.measure)
        self.end = time.monotonic() + work.budget if work.budget is not None else float("inf")
        self.waiting = work.tasks()
        self.running: list[_Child] = []
        self.failed: dict[str, Outcome] = {}

    def run(self) -> None:
        try:
            while self.waiting or self.running:
                self._start()
                self._listen()
                self._collect()
        except BaseException:
            self._abandon()
            raise

    def _start(self) -> None:
        """Fill the free places. Over budget nothing is started; what is left stays without rows."""
        if time.monotonic() >= self.end:
            self.waiting.clear()
        while len(self.running) < self.work.jobs and (task := self._next()):
            self.waiting.remove(task)
            self.observe(Event("started", task))
            obstacle = blocked(task, self.failed)
            if obstacle is not None:
                self._finished(task, task.fail(obstacle, datetime.now(UTC)), 0.0)
                continue
            try:
                self.running.append(_Child(self.context, task, self.work.timeout))
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                self._finished(task, task.fail(describe(error), datetime.now(UTC)), 0.0)

    def _next(self) -> Task | None:
        """The first task whose reference neither waits nor runs."""
        open_tasks = [*self.waiting, *(child.task for child in self.running)]
        pending = {task.reference for task in open_tasks if task.kind == "reference"}
        return next((t for t in self.waiting if t.kind == "reference" or t.reference not in pending), None)

    def _listen(self) -> None:
        """Sleep until a child speaks, ends or is due."""
        if not self.running:
            return
        due = min(child.deadline for child in self.running) - time.monotonic()
        wait([source for child in self.running for source in child.sources()], max(due, 0.0))

    def _collect(self) -> None:
        for child in list(self.running):
            for text in child.reports():
                self.observe(Event("reported", child.task, text))
            if child.alive() and child.result() is None and time.monotonic() < child.deadline:
                continue
            outcome = child.close()
            self.running.remove(child)
            self._finished(child.task, outcome, child.seconds)

    def _finished(self, task: Task, outcome: Outcome, seconds: float) -> None:
        if task.kind == "reference" and outcome.status is not Status.OK:
            self.failed[task.reference] = outcome
        self.observe(Event("finished", task, outcome=outcome, seconds=seconds))

    def _abandon(self) -> None:
        """End the children; the cells that were running get the status interrupted."""
        for child in self.running:
            child.kill()
            if child.result() is None:
                child.task.fail(Outcome(Status.INTERRUPTED, "interrupted"), child.started_at)


class _Child:
    """A process that carries out one task."""

    def __init__(self, context: BaseContext, task: Task, timeout: float) -> None:
        self.task, self.timeout = task, timeout
        self.started_at, self.started = datetime.now(UTC), time.monotonic()
        self.deadline = self.started + timeout
        self._said: list[str] = []
        self._result: Outcome | None = None
        self._pipe, theirs = context.Pipe(duplex=False)
        content = pickle.dumps(task)
        arguments = (loaded_files(), content, task.log, theirs)
        self.process = context.Process(target=_child, args=arguments)  # type: ignore[attr-defined]
        self.process.start()
        theirs.close()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def sources(self) -> Sequence[Connection | int]:
        """What becomes readable when the child speaks or ends."""
        return [self.process.sentinel] if self._pipe.closed else [self.process.sentinel, self._pipe]

    def alive(self) -> bool:
        return bool(self.process.is_alive())

    def reports(self) -> list[str]:
        """What the child has said since the last call."""
        self._receive()
        said, self._said = self._said, []
        return said

    def result(self) -> Outcome | None:
        """What the child said last of all: how its task ended."""
        self._receive()
        return self._result

    def close(self) -> Outcome:
        """End the child if it is not at its end, and say how its task ended."""
        if self.result() is not None:
            self.process.join(GRACE)
        overdue = self.alive()
        self.kill()
        failure = self._overdue() if overdue else self._death()
        return self.result() or self.task.fail(failure, self.started_at)

    def kill(self) -> None:
        """End the child and all its children: politely first, then for good."""
        if self.alive():
            self._signal(signal.SIGTERM)
            self.process.join(GRACE)
        self._signal(signal.SIGKILL)
        self.process.join()

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:  # the group is empty, or the child has not yet made it
            if self.alive():
                os.kill(self.process.pid, number)

    def _receive(self) -> None:
        try:
            while not self._pipe.closed and self._pipe.poll():
                message = self._pipe.recv()
                if isinstance(message, Outcome):
                    self._result = message
                else:
                    self._said.append(message)
        except EOFError:
            self._pipe.close()

    def _overdue(self) -> Outcome:
        return Outcome(Status.TIMEOUT, f"not finished within the time limit of {self.timeout:g} s")

    def _death(self) -> Outcome:
        code = self.process.exitcode
        log = self.task.log.relative_to(self.task.folder)
        if code == -signal.SIGKILL:
            return Outcome(Status.KILLED, "killed by SIGKILL, most often because memory ran out")
        if code is not None and code < 0:
            return Outcome(Status.CRASHED, f"died of {signal.Signals(-code).name}, see {log}")
        return Outcome(Status.CRASHED, f"left with exit code {code} and without a result, see {log}")


def _context(measure: str) -> BaseContext:
    """Processes forked from a server that has imported what is slow to import, and nothing else."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch._dynamo", "curvbench.engines.local", measure])
    return context


def _child(files: Sequence[Path], content: bytes, log: Path, pipe: Connection) -> None:
    """The child's main function. The files of users come first: what is unpickled may be defined there."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _print_into(log)
    threading.Thread(target=_follow_parent, daemon=True).start()
    try:
        for file in files:
            load_file(file)
        task: Task = pickle.loads(content)
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None
    pipe.send(task.execute(pipe.send))


def _print_into(log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _follow_parent() -> None:
    """A parent that is killed takes its children with it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.killpg(0, signal.SIGKILL)
