"""Shards: parts of a run that the local engine carries out elsewhere; their fragments bring the results back."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Collection
from dataclasses import replace
from datetime import UTC, datetime

from curvbench import store
from curvbench.engines import Event, Observer, Work
from curvbench.engines.local import LocalEngine
from curvbench.engines.task import Outcome, Task
from curvbench.registry import load_file, loaded_files
from curvbench.spec import Status

LENGTH = 8  # bytes of the number of bytes that follow


def split(work: Work, size: int) -> tuple[list[Work], list[Work]]:
    """Leaders make one reference and measure one cell each; followers measure up to ``size`` cells of one reference."""
    work = replace(work, folder=work.folder.resolve(), data=work.data and work.data.resolve(), budget=None)
    groups: dict[str, list[str]] = {}
    for identity, cell in work.cells.items():
        groups.setdefault(work.reference(cell), []).append(identity)
    leaders = [group[:1] for group in groups.values()]
    followers = [group[k : k + size] for group in groups.values() for k in range(1, len(group), size)]
    return [_part(work, ids) for ids in leaders], [_part(work, ids) for ids in followers]


def pack(work: Work) -> bytes:
    """A shard as bytes for another process."""
    return pickle.dumps((loaded_files(), pickle.dumps(work)))


def run_shard(content: bytes) -> None:
    """Carry out a shard in this process and its children; a cluster ends it with SIGTERM."""
    files, packed = pickle.loads(content)
    for file in files:  # loaded first, because they may define what is unpickled
        load_file(file)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        LocalEngine().run(pickle.loads(packed), lambda event: None)
    finally:
        signal.signal(signal.SIGTERM, before)


def run_apart(content: bytes) -> None:
    """Carry out a shard in a separate interpreter, which ends with this process.

    Raises:
        subprocess.CalledProcessError: the interpreter died.
    """
    command = [sys.executable, "-m", "curvbench.engines.shard"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) as process:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died already
            process.stdin.write(len(content).to_bytes(LENGTH) + content)
            process.stdin.flush()
        code = process.wait()  # the pipe stays open meanwhile: its end tells the shard that this process is gone
    if code:
        raise subprocess.CalledProcessError(code, command)


def _run_sent() -> None:
    """Carry out the shard that ``run_apart`` sends to this process."""
    source = sys.stdin.buffer
    content = source.read(int.from_bytes(source.read(LENGTH)))
    threading.Thread(target=_end_with_the_sender, daemon=True).start()
    run_shard(content)


def _end_with_the_sender() -> None:
    os.read(sys.stdin.fileno(), 1)  # returns when the other end of the pipe is closed
    os.kill(os.getpid(), signal.SIGTERM)


class Gathering:
    """The cells of a run that are measured elsewhere: each finishes when its fragment comes, or is given up."""

    def __init__(self, work: Work, observe: Observer) -> None:
        self.observe = observe
        self.left = {task.id: task for task in work.tasks() if task.kind == "cell"}
        self._seen = work.seen
        self._logs = {identity: store.stamp(task.log) for identity, task in self.left.items()}

    def collect(self) -> None:
        """Report the cells whose fragments have come; an interrupted cell may yet be begun again."""
        for task in list(self.left.values()):
            if (outcome := self._ended(task)) and outcome.status is not Status.INTERRUPTED:
                self._finish(task, outcome)

    def give_up(self, cells: Collection[str], outcome: Outcome) -> None:
        """No more fragments come for ``cells``: those that have begun end with ``outcome``, the others get no row."""
        self.collect()
        for identity in [i for i in cells if i in self.left]:
            task = self.left[identity]
            if ended := self._ended(task):
                self._finish(task, ended)
            elif store.stamp(task.log) != self._logs[identity]:
                self._finish(task, task.fail(outcome, datetime.now(UTC)))
            else:
                del self.left[identity]

    def _ended(self, task: Task) -> Outcome | None:
        """The outcome in a fragment that has come since the run was planned."""
        if store.stamp(task.fragment) == self._seen.get(task.id):
            return None
        status = store.fragment_status(task.fragment)
        return None if status is None else Outcome(status)

    def _finish(self, task: Task, outcome: Outcome) -> None:
        del self.left[task.id]
        self.observe(Event("finished", task, outcome=outcome))


def _part(work: Work, ids: Collection[str]) -> Work:
    seen = {identity: work.seen.get(identity) for identity in ids}
    return replace(work, cells={identity: work.cells[identity] for identity in ids}, seen=seen)


if __name__ == "__main__":
    _run_sent()
