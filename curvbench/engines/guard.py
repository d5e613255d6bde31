"""The guard of a run: a small process that outlives it, and ends what it left when it dies, however it dies.

Run as a program it needs nothing but Python: a number with + before it is to be watched, with - no more; below zero it
is that of a group, as kill(2) has it. When its input ends, what is left is killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterable


class Guard:
    """Processes and groups that are not to outlive this one. In a session of its own, as Ctrl-C is not meant for it."""

    def __init__(self) -> None:
        command = [sys.executable, "-I", "-S", __file__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def watch(self, group: int) -> None:
        """Kill the group when this process ends."""
        self._say(f"+{-group}\n")

    def release(self, group: int) -> None:
        """The group has ended: its number may come back for another."""
        self._say(f"-{-group}\n")

    def watch_process(self, pid: int) -> None:
        """Kill one process when this one ends."""
        self._say(f"+{pid}\n")

    def release_process(self, pid: int) -> None:
        """The process may go on."""
        self._say(f"-{pid}\n")

    def close(self) -> None:
        """End the guard; what it still watches is killed."""
        with contextlib.suppress(BrokenPipeError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        self._process.wait()

    def _say(self, text: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # somebody has killed it: the run goes on without
            assert self._process.stdin is not None
            self._process.stdin.write(text.encode())
            self._process.stdin.flush()


def watched(lines: Iterable[str]) -> set[int]:
    """The numbers that are left when the last line has come."""
    left: set[int] = set()
    for line in lines:
        (left.add if line[0] == "+" else left.discard)(int(line[1:]))
    return left


if __name__ == "__main__":
    for left in watched(sys.stdin):
        with contextlib.suppress(ProcessLookupError):
            os.kill(left, signal.SIGKILL)
