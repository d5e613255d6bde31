"""The server that forks the processes of cells: it has imported the slow modules, and is started again if it dies."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from curvbench.engines import family
from curvbench.engines.guard import Guard
from curvbench.words import one_line

STARTS = 3  # tries to start a process
PAUSE = 0.5  # seconds between two tries, in which other processes may end
_DIED_WITH_SERVER = 255  # the exit code of a process whose server died before it could report one
_LAST = 2**12  # bytes of the server's last words that are read


class Started(NamedTuple):
    """A process, the pipe to it, and the number of the server that has forked it."""

    process: Any  # of a class that multiprocessing does not name in its types
    pipe: Connection[Any, Any]
    server: int

    @property
    def has_lost_server(self) -> bool:
        """Whether the server died while the process ran, so that nobody knows if the process still runs."""
        return self.process.exitcode == _DIED_WITH_SERVER and not family.lives(self.server)


class Server:
    """The fork server of this process, watched by ``guard``: while it imports, it notices no death of this process."""

    def __init__(self, measure: str, guard: Guard) -> None:
        self._context = multiprocessing.get_context("forkserver")
        also = getattr(importlib.import_module(measure), "PRELOAD", ())
        modules = ["torch", *also, "curvbench.engines.local", measure, "curvbench.engines.warm"]
        self._context.set_forkserver_preload(modules)
        self._guard, self._has_forked, self.pid = guard, False, 0
        self._sockets = util.get_temp_dir()  # multiprocessing removes it if this process ends in an orderly way
        guard.watch(self._sockets)
        self._words = tempfile.TemporaryFile()  # the server's standard error

    def start(self, target: Callable[..., None], log: Path) -> Started:
        """Start ``target(log, pipe)`` in a new process.

        Raises:
            OSError: that failed several times.
        """
        for _ in range(STARTS):
            try:
                return self._started(target, log)
            except (EOFError, OSError) as error:  # the server has died, or the system has no process left
                failure = error
                time.sleep(PAUSE)
        raise OSError(
            f"no process can be started ({self._last_words() or one_line(failure) or 'the server of processes died'}): "
            f"free memory, or raise the limits of processes and files (ulimit -a); the same command continues"
        )

    def ensure(self) -> None:
        """Start the server if there is none, or if it has died."""
        with self._hears_server():
            forkserver.ensure_running()
        pid: int = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
        if pid != self.pid:
            self._guard.release(self.pid)
            self._guard.watch(pid)
            self.pid = pid

    def end_strays(self) -> None:
        """End the processes whose keepers were killed, which the server has adopted."""
        known = {process.pid for process in multiprocessing.active_children()}
        for pid in set(family.children(self.pid)) - known:
            family.end(pid)

    def release(self) -> None:
        """Let the server go on: the next run of this process uses it."""
        self._words.close()
        self._guard.release(self._sockets)
        if self._has_forked:
            self._guard.release(self.pid)

    def _started(self, target: Callable[..., None], log: Path) -> Started:
        self.ensure()
        ours, theirs = self._context.Pipe()
        with theirs:
            process = self._context.Process(target=target, args=(log, theirs))
            try:
                process.start()
            except BaseException:
                ours.close()
                raise
        self._has_forked = True
        return Started(process, ours, self.pid)

    @contextlib.contextmanager
    def _hears_server(self) -> Iterator[None]:
        """Within, a process that is started prints its errors to ``self._words``, and not on a user's terminal."""
        before = os.dup(2)
        os.dup2(self._words.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(before, 2)
            os.close(before)

    def _last_words(self) -> str:
        """The last line that the server printed."""
        self._words.seek(max(self._words.seek(0, os.SEEK_END) - _LAST, 0))
        lines = self._words.read().decode(errors="replace").split("\n")
        return next((one_line(line) for line in reversed(lines) if line.strip()), "")


def leave_server() -> None:
    """Close what a child has of its server: what it wrote there would end the server, or the tracker of resources."""
    holders: dict[str, Any] = {
        "_forkserver_alive_fd": forkserver._forkserver,
        "_fd": resource_tracker._resource_tracker,
    }
    for name, holder in holders.items():
        if (descriptor := getattr(holder, name)) is not None:
            os.close(descriptor)
            setattr(holder, name, None)
