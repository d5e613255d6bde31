"""The engine of one machine: a process per task with a hard time limit, several at a time."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import time
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from curvbench import store
from curvbench.engines import Event, Observer, Work, blocked, family, keeper, usage
from curvbench.engines.guard import Guard
from curvbench.engines.news import Listener, Message, Teller
from curvbench.engines.server import Server, leave_server
from curvbench.engines.sharing import TICK, Sharing
from curvbench.engines.task import Outcome, Task, describe, run_cell
from curvbench.identity import libraries
from curvbench.registry import expect, loaded_files
from curvbench.spec import Status
from curvbench.words import death, one_line

GRACE = 2.0  # seconds between the request to end and the kill
DEATHS = 2  # deaths of fork servers while a task runs, after the first of which it runs alone, that are its own doing
SPARE = 0.95  # share of the available memory that the cells may take together


class LocalEngine:
    """Runs each task in a process of its own, so that a task that dies or hangs leaves a row and nothing else.

    A task that takes more than its share of the memory is ended, with all that it has started. Nothing outlives this
    process; on macOS, processes that a task detaches from itself do.
    """

    def run(self, work: Work, observe: Observer) -> None:
        """Run all tasks, up to ``work.jobs`` at a time. On KeyboardInterrupt end the running tasks and raise it again.

        Raises:
            Unwritable: results can no longer be written.
            OSError: no process can be started.
        """
        store.drop_temporary(work.folder)
        guard = Guard()
        try:
            with Sharing(work) as sharing:
                _Session(work, observe, guard, sharing).run()
        finally:
            guard.close()


class _Session:
    """Waiting and running tasks of one run, and the references that failed."""

    def __init__(self, work: Work, observe: Observer, guard: Guard, sharing: Sharing) -> None:
        self.work, self.observe, self.guard, self.sharing = work, observe, guard, sharing
        self.share = SPARE * usage.available() / work.jobs if work.memory is None else work.memory
        self.remedy = ": fewer --jobs leave it more" if work.memory is None and work.jobs > 1 else ""
        self.slots = _slots(work)
        self.server = Server(work.measure, guard)
        self.deaths: Counter[str] = Counter()  # of fork servers while a task ran
        self.end = time.monotonic() + work.budget if work.budget is not None else float("inf")
        self.waiting = work.tasks()
        self.running: list[_Child] = []
        self.finished: list[Task] = []
        self.is_second_time = False
        self.failed: dict[str, Outcome] = {}

    def run(self) -> None:
        try:
            while self.waiting or self.running:
                self._start()
                self.guard.revive()
                self._listen()
                self._collect()
                self._look_for_removed()
        except BaseException:
            self._abandon()
            raise
        finally:
            self.server.release()

    def _start(self) -> None:
        """Start tasks on the free places. Once the budget is spent, the remaining tasks stay without rows."""
        if time.monotonic() >= self.end:
            self.waiting.clear()
        while len(self.running) < self.work.jobs and (task := self._next()) and not self._must_wait(task):
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
                self.running.append(_Child(self.server, self.guard, task, self.work.timeout, self._slot(task)))
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                self._finished(task, task.fail(describe(error), datetime.now(UTC)), 0.0)

    def _next(self) -> Task | None:
        return self.sharing.next(self.waiting, [child.task for child in self.running])

    def _must_wait(self, task: Task) -> bool:
        """Whether the task cannot start now, because it or a running task is to run alone."""
        return any(self.deaths[one.id] for one in (task, *(child.task for child in self.running)) if self.running)

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
            if outcome is None:
                self._lost(child)
            else:
                self._finished(child.task, outcome, child.seconds)

    def _look_for_removed(self) -> None:
        """At the end, run the cells a second time whose fragments another cell has removed."""
        if not self.waiting and not self.running and not self.is_second_time:
            self.waiting = [task for task in self.finished if store.stamp(task.fragment) is None]
            self.is_second_time = True

    def _lost(self, child: _Child) -> None:
        """Run a task again whose fork server died, alone, to find out if the task kills the server."""
        task = child.task
        self.deaths[task.id] += 1
        if self.deaths[task.id] < DEATHS:
            return self.waiting.insert(0, task)
        reason = f"the server of processes died {DEATHS} times while it ran, at last alone"
        self._finished(task, task.fail(Outcome(Status.CRASHED, reason), child.started_at), child.seconds)

    def _finished(self, task: Task, outcome: Outcome, seconds: float, elsewhere: bool = False) -> None:
        if task.kind == "reference" and outcome.status is not Status.OK:
            self.failed[task.reference] = outcome
        if task.kind == "cell":
            self.finished.append(task)
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
    """A process that carries out one task, on the GPUs of ``slot`` if it names any, below its keeper.

    Raises:
        OSError: no process can be started.
    """

    def __init__(self, server: Server, guard: Guard, task: Task, timeout: float, slot: Sequence[str]) -> None:
        self.server, self.guard, self.task, self.timeout, self.slot = server, guard, task, timeout, slot
        self._reports: list[str] = []
        self._result: Outcome | None = None
        self._excess = ""
        self._failure: Outcome | None = None
        self._is_kept = False  # until its keeper has seen its end
        self._loaded: str | None = None
        content = pickle.dumps(task)
        variables = {"CUDA_VISIBLE_DEVICES": ",".join(slot)} if slot else {}
        self._stamp = store.stamp(task.fragment)
        self.begun = server.start(_child, task.log)  # waits for the imports, which are not part of the task's time
        self.process = self.begun.process
        self.started_at, self.started = datetime.now(UTC), time.monotonic()
        self.deadline = self.started + timeout
        guard.watch(self.process.pid)
        with contextlib.suppress(OSError):  # the child has died: ``_death`` says how
            # sent only now, because the guard has to watch the child before it runs anything
            self.begun.pipe.send((variables, loaded_files(), task.root, content))
        self._listener = Listener(self.begun.pipe)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def sources(self) -> Sequence[Connection[Any, Any] | int]:
        """The sources that become readable when the child reports or ends."""
        pipe = self._listener.pipe
        return [self.process.sentinel] if pipe.closed else [self.process.sentinel, pipe]

    def is_alive(self) -> bool:
        return bool(self.process.is_alive())

    def look(self, share: float, remedy: str) -> None:
        """Note if the child takes more than ``share`` bytes, with the ``remedy``, and keep its log short."""
        if bytes_used := usage.excess_below(self.process.pid, share):
            self._excess = f"took {bytes_used / 1e9:.2f} GB, more than its share of {share / 1e9:.2f} GB{remedy}"
        store.shorten_log(self.task.log)

    def is_within_bounds(self) -> bool:
        """Whether the child has time and memory left."""
        return not self._excess and time.monotonic() < self.deadline

    def reports(self) -> list[str]:
        """The reports of the child since the last call."""
        self._listen()
        reports, self._reports = self._reports, []
        return reports

    def result(self) -> Outcome | None:
        """The outcome of the task, if the child has sent it."""
        self._listen()
        return self._result

    def close(self) -> Outcome | None:
        """End the child if it still runs, and return the outcome of its task. None means that its server has died."""
        if self.result() is not None:
            self.process.join(GRACE)
        must_be_ended = self.is_alive()
        if must_be_ended and not self._excess:  # without the grace period, in which memory could go on growing
            self.ask()
            self.process.join(GRACE)
        self.kill()
        outcome = self.result() or self.task.written_since(self._stamp)
        if outcome or (self.begun.has_lost_server and not self._failure):
            return outcome
        failure = self._bound() if must_be_ended else self._untold() or self._death()
        return self.task.fail(failure, self.started_at, self._loaded)

    def ask(self) -> None:
        """Ask the child and its children to end."""
        for pid in family.descendants(self.process.pid):
            family.tell(pid, signal.SIGTERM)

    def kill(self) -> None:
        """End the child and all that descends from it for good."""
        if self.is_alive() or self.begun.has_lost_server:
            family.end(self.process.pid)
        self.process.join()
        self.guard.release(self.process.pid)
        self.server.end_strays()
        store.shorten_log(self.task.log)

    def _listen(self) -> None:
        for message in self._listener.messages():
            self._take(message)

    def _take(self, message: Message) -> None:
        first, *rest = message.texts or [""]
        if message.kind == "report":
            self._reports.append(first)
        elif message.kind == "loaded":
            self._loaded = first
        elif message.kind == "ended":
            self._is_kept = True
        elif message.kind == "failed":
            self._failure = _outcome(first, *rest)
        else:
            self._result = _outcome(first, *rest)

    def _bound(self) -> Outcome:
        if self._excess:
            return Outcome(Status.OOM_HOST, self._excess)
        return Outcome(Status.TIMEOUT, f"not finished within the time limit of {self.timeout:g} s")

    def _untold(self) -> Outcome | None:
        """The outcome of a child that could not begin, or not write results; raises Unwritable if none can."""
        if self._failure:
            store.check_writable(self.task.folder)
        return self._failure

    def _death(self) -> Outcome:
        if self.process.exitcode < 0 and not self._is_kept:
            return Outcome(Status.CRASHED, "the process that watches over it was killed while it ran")
        status, reason = death(self.process.exitcode)
        log = self.task.log.relative_to(self.task.folder)
        return Outcome(status, reason if status is Status.KILLED else f"{reason}, see {log}")


def _outcome(status: str, reason: str) -> Outcome | None:
    """The outcome that a child has told. None means that there is no such status."""
    return Outcome(Status(status), reason) if status in set(Status) else None


def _child(log: Path, pipe: Connection[Any, Any]) -> None:
    """The child's main function; it ends at once if the process that runs it has died before it sent the task."""
    teller = Teller(pipe)
    run = multiprocessing.parent_process()
    assert run is not None
    try:
        keeper.stay_behind(run.sentinel, teller)
    except OSError as error:
        return teller.tell("failed", Status.INTERRUPTED, f"no process could be started for it: {one_line(error)}")
    leave_server()
    _die_first()
    try:
        with store.writing():
            log.unlink(missing_ok=True)  # of an earlier attempt
            _print_into(log)
        variables, files, root, content = pipe.recv()
    except EOFError:
        return
    except store.Unwritable as error:
        return _tell_unwritable(teller, error)
    try:
        libraries.watch(root)
        task = _unpack(variables, files, content)
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None
    _carry_out(task, teller)


def _carry_out(task: Task, teller: Teller) -> None:
    started, mask, place = datetime.now(UTC), os.umask(0o022), os.getcwd()

    def tidy() -> None:
        """Undo what the task may have done to this process that would spoil its results."""
        os.umask(mask)
        with contextlib.suppress(OSError):
            os.chdir(place)
            _print_into(task.log)

    tidy()
    try:
        teller.tell("loaded", task.loaded() or "")
        outcome = run_cell(task, lambda text: teller.tell("report", text), tidy)
        teller.tell("done", outcome.status, outcome.reason)
    except store.Unwritable as error:
        _tell_unwritable(teller, error)
    except KeyboardInterrupt as error:  # the task's own, because no interrupt of the run reaches this session
        outcome = task.fail(describe(error), started)
        teller.tell("done", outcome.status, outcome.reason)


def _tell_unwritable(teller: Teller, error: store.Unwritable) -> None:
    """Say that this process cannot write results; if the run's process can, the reason is the outcome."""
    status = Status.INTERRUPTED if error.errno in store.FULL else Status.ERROR
    teller.tell("failed", status, f"its process could not write results: {one_line(OSError(*error.args))}")


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
    log.parent.mkdir(exist_ok=True)  # another cell may have removed it
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
