"""The guard of a run: a small process that outlives the run and kills the processes that the run left.

The guard program needs nothing but Python. It reads numbers of processes: ``+`` begins to watch a number, ``-`` ends
it, and a negative number is a process group, as in kill(2). When its input ends, it kills all that it watches.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterable


class Guard:
    """Kills processes and groups when this process ends, from a separate session, which Ctrl-C does not reach."""

    def __init__(self) -> None:
        command = [sys.executable, "-I", "-S", __file__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def watch(self, group: int) -> None:
        """Kill the group when this process ends."""
        self._say(f"+{-group}\n")

    def release(self, group: int) -> None:
        """Stop watching a group that has ended: the system may give its number to another group."""
        self._say(f"-{-group}\n")

    def watch_process(self, pid: int) -> None:
        """Kill one process when this process ends."""
        self._say(f"+{pid}\n")

    def release_process(self, pid: int) -> None:
        """Stop watching a process, which may then go on."""
        self._say(f"-{pid}\n")

    def close(self) -> None:
        """End the guard, which kills all that it still watches."""
        with contextlib.suppress(BrokenPipeError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        self._process.wait()

    def _say(self, text: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # the guard was killed: the run goes on without it
            assert self._process.stdin is not None
            self._process.stdin.write(text.encode())
            self._process.stdin.flush()


def watched(lines: Iterable[str]) -> set[int]:
    """The numbers that are still watched after the last line."""
    numbers: set[int] = set()
    for line in lines:
        (numbers.add if line[0] == "+" else numbers.discard)(int(line[1:]))
    return numbers


if __name__ == "__main__":
    for number in watched(sys.stdin):
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
