"""The engine of one machine: a process per task with a hard time limit, several at a time."""

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
from curvbench.engines.sharing import TICK, Sharing
from curvbench.engines.task import Outcome, Task, describe, run_cell
from curvbench.identity import libraries
from curvbench.registry import expect, loaded_files
from curvbench.spec import Status
from curvbench.words import death

GRACE = 2.0  # seconds between the request to end and the kill
SERVER_DIED = 255  # the exit code of a process whose fork server died before it could report one
SPARE = 0.95  # share of the available memory that the cells may take together


class LocalEngine:
    """Runs each task in a separate process group, so that a task that dies or hangs leaves a row and nothing else.

    A task that takes more than its share of the memory is ended. No task outlives this process.
    """

    def run(self, work: Work, observe: Observer) -> None:
        """Run all tasks, up to ``work.jobs`` at a time. On KeyboardInterrupt end the running tasks and raise it again.

        Raises:
            OSError: results can no longer be written.
        """
        guard = Guard()
        try:
            with Sharing(work) as sharing:
                _Session(work, observe, guard, sharing).run()
        finally:
            guard.close()


class _Loaded(NamedTuple):
    """The libraries that a child has loaded before its task begins, in case it dies; see ``Task.loaded``."""

    name: str | None = None


class _Session:
    """Waiting and running tasks of one run, and the references that failed."""

    def __init__(self, work: Work, observe: Observer, guard: Guard, sharing: Sharing) -> None:
        self.work, self.observe, self.guard, self.sharing = work, observe, guard, sharing
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
            if self.server is not None and self.forked:  # the next run of this process uses the server
                self.guard.release_process(self.server)

    def _start(self) -> None:
        """Start tasks on the free places. Once the budget is spent, the remaining tasks stay without rows."""
        if time.monotonic() >= self.end:
            self.waiting.clear()
        while len(self.running) < self.work.jobs and (task := self._next()):
            self.waiting.remove(task)
            self.observe(Event("started", task))
            if answer := self.sharing.answer(task):
                self._finished(task, answer, 0.0, elsewhere=True)
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
        return self.sharing.next(self.waiting, [child.task for child in self.running])

    def _slot(self, task: Task) -> Sequence[str]:
        """The GPUs that the fewest running tasks use, as many as the task needs; empty if every task sees all GPUs."""
        used = [gpu for child in self.running for gpu in child.slot]
        return sorted(self.slots, key=used.count)[: task.devices]

    def _listen(self) -> None:
        """Sleep until a child reports or ends, or until its memory and log are due for a look."""
        if not self.running:
            return time.sleep(TICK if self.waiting else 0.0)  # for cells that another run has in flight
        due = min(child.deadline for child in self.running) - time.monotonic()
        wait([source for child in self.running for source in child.sources()], max(min(due, TICK), 0.0))
        for child in self.running:
            child.look(self.share, self.remedy)

    def _collect(self) -> None:
        for child in list(self.running):
            for text in child.reports():
                self.observe(Event("reported", child.task, text))
            if child.is_alive() and child.result() is None and child.is_within_bounds():
                continue
            outcome = child.close()
            self.running.remove(child)
            self._finished(child.task, outcome, child.seconds)

    def _finished(self, task: Task, outcome: Outcome, seconds: float, elsewhere: bool = False) -> None:
        if task.kind == "reference" and outcome.status is not Status.OK:
            self.failed[task.reference] = outcome
        self.sharing.finished(task, outcome)
        self.observe(Event("finished", task, outcome=outcome, seconds=seconds, elsewhere=elsewhere))

    def _abandon(self) -> None:
        """End the children; their cells get the status interrupted. Another interrupt ends the wait."""
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
            with contextlib.suppress(OSError):  # perhaps the run stops because nothing can be written
                child.task.fail(Outcome(Status.INTERRUPTED, "interrupted"), child.started_at)


def _slots(work: Work) -> list[str]:
    """The GPUs over which cells that ask for ``cuda`` are spread: all of the same model as the first GPU."""
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
    """A process that carries out one task, on the GPUs of ``slot`` if it names any."""

    def __init__(self, context: BaseContext, guard: Guard, task: Task, timeout: float, slot: Sequence[str]) -> None:
        self.guard, self.task, self.timeout, self.slot = guard, task, timeout, slot
        self._reports: list[str] = []
        self._result: Outcome | None = None
        self._excess = ""
        self._loaded = _Loaded()
        content = pickle.dumps(task)
        variables = {"CUDA_VISIBLE_DEVICES": ",".join(slot)} if slot else {}
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=_child, args=(task.log, theirs))  # type: ignore[attr-defined]
        self.process.start()  # waits for the imports of the server, which are not part of the cell's time
        self.started_at, self.started = datetime.now(UTC), time.monotonic()
        self.deadline = self.started + timeout
        theirs.close()
        guard.watch(self.process.pid)
        with contextlib.suppress(BrokenPipeError):  # the child has died: ``_death`` says how
            # sent only now, because the guard has to watch the child before it runs anything
            self._pipe.send((variables, loaded_files(), task.root, content))

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def sources(self) -> Sequence[Connection[Any, Any] | int]:
        """The sources that become readable when the child reports or ends."""
        return [self.process.sentinel] if self._pipe.closed else [self.process.sentinel, self._pipe]

    def is_alive(self) -> bool:
        return bool(self.process.is_alive())

    def look(self, share: float, remedy: str) -> None:
        """Note if the child takes more than ``share`` bytes, with the ``remedy``, and keep its log short."""
        if (bytes_used := usage.used(self.process.pid)) > share:
            self._excess = f"took {bytes_used / 1e9:.2f} GB, more than its share of {share / 1e9:.2f} GB{remedy}"
        store.shorten_log(self.task.log)

    def is_within_bounds(self) -> bool:
        """Whether the child has time and memory left."""
        return not self._excess and time.monotonic() < self.deadline

    def reports(self) -> list[str]:
        """The reports of the child since the last call."""
        self._receive()
        reports, self._reports = self._reports, []
        return reports

    def result(self) -> Outcome | None:
        """The outcome of the task, if the child has sent it."""
        self._receive()
        return self._result

    def close(self) -> Outcome:
        """End the child if it still runs, and return the outcome of its task."""
        if self.result() is not None:
            self.process.join(GRACE)
        must_be_ended = self.is_alive()
        if must_be_ended and not self._excess:  # without the grace period, in which memory could go on growing
            self.ask()
            self.process.join(GRACE)
        self.kill()
        failure = self._bound() if must_be_ended else self._death()
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
        except ProcessLookupError:  # the group is empty, or the child has not made it yet
            if self.is_alive():
                with contextlib.suppress(ProcessLookupError):  # it may end between the check and the signal
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
                    self._reports.append(message)
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
    """Processes forked from a server that has imported the slow modules, and nothing else."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    also = getattr(importlib.import_module(measure), "PRELOAD", ())
    context.set_forkserver_preload(["torch", *also, "curvbench.engines.local", measure, "curvbench.engines.warm"])
    return context


def _watched_server(context: BaseContext, guard: Guard) -> int | None:
    """Start the fork server and watch it: while it imports, it does not notice that this process has died."""
    if context.get_start_method() != "forkserver":
        return None
    forkserver.ensure_running()
    pid: int = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    guard.watch_process(pid)
    return pid


def _child(log: Path, pipe: Connection[Any, Any]) -> None:
    """The child's main function; it ends at once if the parent has died before it sent the task."""
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
    """The task; users' files that define a part of it are loaded."""
    os.environ.update(variables)
    expect(files)
    task: Task = pickle.loads(content)
    return task


def _die_first() -> None:
    """Make the system end this cell first when memory runs out, because the parent process can handle that."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def _print_into(log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
