"""The guard of a run: a small process that outlives the run and ends the processes that the run left."""

from __future__ import annotations

import contextlib
import subprocess
import sys

from curvbench.engines import family


class Guard:
    """Ends families of processes when this process ends, from a separate session, which Ctrl-C does not reach."""

    def __init__(self) -> None:
        self._names: dict[int | str, None] = {}
        self._process = self._started()

    def revive(self) -> None:
        """Start the guard again if it was killed."""
        if self._process.poll() is not None:
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            self._process = self._started()
            for name in self._names:
                self._say(f"+{name}\n")

    def watch(self, name: int | str) -> None:
        """End a process and all that descend from it, or remove a folder, when this process ends."""
        self._names[name] = None
        self._say(f"+{name}\n")

    def release(self, name: int | str) -> None:
        """Stop watching a process, which may go on, or has ended: the system may give its number to another one."""
        self._names.pop(name, None)
        self._say(f"-{name}\n")

    def close(self) -> None:
        """End the guard, which ends all that it still watches."""
        with contextlib.suppress(BrokenPipeError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        self._process.wait()

    def _started(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-I", "-S", family.__file__]
        return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def _say(self, text: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # the guard was killed: ``revive`` tells the next one
            assert self._process.stdin is not None
            self._process.stdin.write(text.encode())
            self._process.stdin.flush()
