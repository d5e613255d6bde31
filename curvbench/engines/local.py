"""The engine of one machine: a process per task, with a hard time limit, several at a time."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import pickle
import signal
import time
import traceback
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, NamedTuple

from curvbench import store
from curvbench.engines import Event, Observer, Work, blocked, usage
from curvbench.engines.guard import Guard
from curvbench.engines.task import Outcome, Task, describe, run_cell
from curvbench.identity import libraries
from curvbench.registry import expect, loaded_files
from curvbench.spec import Status
from curvbench.words import death

GRACE = 2.0  # seconds between the request to end and the kill
TICK = 0.25  # seconds between two looks at memory and logs
SERVER_DIED = 255  # the exit code of a process whose fork server cannot tell it any more
SPARE = 0.95  # of the memory that can be had, what the cells may share


class LocalEngine:
    """Runs each task in a process group of its own, so that one that dies or hangs leaves a row and nothing else.

    A task that takes more than its share of the memory is ended. None of them outlives this process.
    """

    def run(self, work: Work, observe: Observer) -> None:
        """Run all tasks, up to ``work.jobs`` at a time; on KeyboardInterrupt end those that run and raise it again.

        Raises:
            OSError: results cannot be written any more.
        """
        guard = Guard()
        try:
            _Session(work, observe, guard).run()
        finally:
            guard.close()


class _Loaded(NamedTuple):
    """What a child has loaded before it begins, for one that cannot say it at its end; see ``Task.loaded``."""

    name: str | None = None


class _Session:
    """Waiting and running tasks of one run, and the references that failed."""

    def __init__(self, work: Work, observe: Observer, guard: Guard) -> None:
        self.work, self.observe, self.guard = work, observe, guard
        self.share = SPARE * usage.available() / work.jobs if work.memory is None else work.memory
        self.remedy = ": fewer --jobs leave it more" if work.memory is None and work.jobs > 1 else ""
        self.slots = _slots(work)
        self.context = _context(work.measure)
        self.server, self.forked = _watched_server(self.context, guard), False
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
        finally:
            if self.server is not None and self.forked:  # this process lives on, and its next run uses it
                self.guard.release_process(self.server)

    def _start(self) -> None:
        """Fill the free places. Over budget nothing is started; what is left stays without rows."""
        if time.monotonic() >= self.end:
            self.waiting.clear()
        while len(self.running) < self.work.jobs and (task := self._next()):
            self.waiting.remove(task)
            self.observe(Event("started", task))
            if answer := task.answered():  # another run in the same folder was faster
                self._finished(task, answer, 0.0)
                continue
            obstacle = blocked(task, self.failed)
            if obstacle is not None:
                self._finished(task, task.fail(obstacle, datetime.now(UTC)), 0.0)
                continue
            try:
                self.running.append(_Child(self.context, self.guard, task, self.work.timeout, self._slot(task)))
                self.forked = True
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                self._finished(task, task.fail(describe(error), datetime.now(UTC)), 0.0)

    def _next(self) -> Task | None:
        """The first task whose reference neither waits nor runs."""
        open_tasks = [*self.waiting, *(child.task for child in self.running)]
        pending = {task.reference for task in open_tasks if task.kind == "reference"}
        return next((t for t in self.waiting if t.kind == "reference" or t.reference not in pending), None)

    def _slot(self, task: Task) -> Sequence[str]:
        """The GPUs that fewest of the running tasks have, as many as the task needs; none where they see all."""
        taken = [gpu for child in self.running for gpu in child.slot]
        return sorted(self.slots, key=taken.count)[: task.devices]

    def _listen(self) -> None:
        """Sleep until a child speaks or ends, or is to be looked at."""
        if not self.running:
            return
        due = min(child.deadline for child in self.running) - time.monotonic()
        wait([source for child in self.running for source in child.sources()], max(min(due, TICK), 0.0))
        for child in self.running:
            child.look(self.share, self.remedy)

    def _collect(self) -> None:
        for child in list(self.running):
            for text in child.reports():
                self.observe(Event("reported", child.task, text))
            if child.alive() and child.result() is None and child.within_bounds():
                continue
            outcome = child.close()
            self.running.remove(child)
            self._finished(child.task, outcome, child.seconds)

    def _finished(self, task: Task, outcome: Outcome, seconds: float) -> None:
        if task.kind == "reference" and outcome.status is not Status.OK:
            self.failed[task.reference] = outcome
        self.observe(Event("finished", task, outcome=outcome, seconds=seconds))

    def _abandon(self) -> None:
        """End the children; the cells that were running get the status interrupted. Another interrupt ends the wait."""
        try:
            for child in self.running:
                child.ask()
            end = time.monotonic() + GRACE
            for child in self.running:
                child.process.join(max(end - time.monotonic(), 0.0))
        finally:
            for child in self.running:
                child.kill()
        for child in self.running:
            with contextlib.suppress(OSError):  # what stopped the run may be that nothing can be written
                child.task.fail(Outcome(Status.INTERRUPTED, "interrupted"), child.started_at)


def _slots(work: Work) -> list[str]:
    """The GPUs among which cells that ask for ``cuda`` are spread: those of the first one's model."""
    if work.jobs == 1 or not any(cell.device == "cuda" for cell in work.cells.values()):
        return []
    import torch

    count = torch.cuda.device_count()
    names = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name] or list(
        map(str, range(count))
    )
    models = [torch.cuda.get_device_name(index) for index in range(count)]
    return [name for name, model in zip(names, models, strict=False) if model == models[0]]


class _Child:
    """A process that carries out one task, on the GPUs of ``slot`` where there are any."""

    def __init__(self, context: BaseContext, guard: Guard, task: Task, timeout: float, slot: Sequence[str]) -> None:
        self.guard, self.task, self.timeout, self.slot = guard, task, timeout, slot
        self._said: list[str] = []
        self._result: Outcome | None = None
        self._excess = ""
        self._loaded = _Loaded()
        content = pickle.dumps(task)
        variables = {"CUDA_VISIBLE_DEVICES": ",".join(slot)} if slot else {}
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=_child, args=(task.log, theirs))  # type: ignore[attr-defined]
        self.process.start()  # which waits for the server's imports: they are not the cell's time
        self.started_at, self.started = datetime.now(UTC), time.monotonic()
        self.deadline = self.started + timeout
        theirs.close()
        guard.watch(self.process.pid)
        with contextlib.suppress(BrokenPipeError):  # how it died is found where all deaths are
            # only now: nothing runs that is not watched
            self._pipe.send((variables, loaded_files(), task.root, content))

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def sources(self) -> Sequence[Connection[Any, Any] | int]:
        """What becomes readable when the child speaks or ends."""
        return [self.process.sentinel] if self._pipe.closed else [self.process.sentinel, self._pipe]

    def alive(self) -> bool:
        return bool(self.process.is_alive())

    def look(self, share: float, remedy: str) -> None:
        """Note whether it takes more than ``share`` bytes, with the ``remedy``, and keep its log short."""
        if (took := usage.used(self.process.pid)) > share:
            self._excess = f"took {took / 1e9:.2f} GB, more than its share of {share / 1e9:.2f} GB{remedy}"
        store.shorten_log(self.task.log)

    def within_bounds(self) -> bool:
        """Whether it has time and memory left."""
        return not self._excess and time.monotonic() < self.deadline

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
        ended = self.alive()
        if ended and not self._excess:  # memory that grows waits for nobody
            self.ask()
            self.process.join(GRACE)
        self.kill()
        failure = self._bound() if ended else self._death()
        return self.result() or self.task.fail(failure, self.started_at, self._loaded.name)

    def ask(self) -> None:
        """Ask the child and its children to end."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the child and all its children for good."""
        self._signal(signal.SIGKILL)
        self.process.join()
        self.guard.release(self.process.pid)
        store.shorten_log(self.task.log)

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:  # the group is empty, or the child has not yet made it
            if self.alive():
                with contextlib.suppress(ProcessLookupError):  # it may end between the look and the signal
                    os.kill(self.process.pid, number)

    def _receive(self) -> None:
        try:
            while not self._pipe.closed and self._pipe.poll():
                message = self._pipe.recv()
                if isinstance(message, OSError):
                    raise message
                if isinstance(message, Outcome):
                    self._result = message
                elif isinstance(message, _Loaded):
                    self._loaded = message
                else:
                    self._said.append(message)
        except (EOFError, ConnectionResetError):
            self._pipe.close()

    def _bound(self) -> Outcome:
        if self._excess:
            return Outcome(Status.OOM_HOST, self._excess)
        return Outcome(Status.TIMEOUT, f"not finished within the time limit of {self.timeout:g} s")

    def _death(self) -> Outcome:
        code = self.process.exitcode
        log = self.task.log.relative_to(self.task.folder)
        if code == SERVER_DIED:
            return Outcome(
                Status.INTERRUPTED, f"the server of processes died with it, or it left with {code}, see {log}"
            )
        status, reason = death(code)
        return Outcome(status, reason if status is Status.KILLED else f"{reason}, see {log}")


def _context(measure: str) -> BaseContext:
    """Processes forked from a server that has imported what is slow to import, and nothing else."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    also = getattr(importlib.import_module(measure), "PRELOAD", ())
    context.set_forkserver_preload(["torch", *also, "curvbench.engines.local", measure, "curvbench.engines.warm"])
    return context


def _watched_server(context: BaseContext, guard: Guard) -> int | None:
    """The number of the fork server, which begins here: while it imports, it does not see that this process is gone."""
    if context.get_start_method() != "forkserver":
        return None
    forkserver.ensure_running()
    pid: int = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    guard.watch_process(pid)
    return pid


def _child(log: Path, pipe: Connection[Any, Any]) -> None:
    """The child's main function; it ends at once where the parent has died before it said what to do."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _die_first()
    try:
        _print_into(log)
        variables, files, root, content = pipe.recv()
    except EOFError:
        return
    except OSError as error:
        return pipe.send(error)
    try:
        libraries.watch(root)
        task = _unpack(variables, files, content)
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None
    try:
        pipe.send(_Loaded(task.loaded()))
        pipe.send(run_cell(task, pipe.send))
    except OSError as error:
        pipe.send(error)


def _unpack(variables: Mapping[str, str], files: Sequence[Path], content: bytes) -> Task:
    """The task. Of users' files those are loaded that define something of it."""
    os.environ.update(variables)
    expect(files)
    task: Task = pickle.loads(content)
    return task


def _die_first() -> None:
    """Where the machine's memory runs out, the system takes a cell before the process that knows what to do then."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def _print_into(log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
