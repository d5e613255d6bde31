"""Families of processes: a process and all that descend from it, found and ended wherever they went.

A child that makes a session of its own, or whose parent ends, stays in the family if the process at its head has called
``adopt``. As a program, which needs nothing but Python, this file is the guard: it reads ``+`` and ``-`` with numbers
of processes and paths of folders, and when its input ends, it ends the families and removes the folders that were not
taken back.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

PROC = "/proc"
PATIENCE = 10.0  # seconds for which a family that makes new members is ended again and again
PAUSE = 0.005  # seconds in which killed processes vanish
_ADOPT = 36  # PR_SET_CHILD_SUBREAPER of <sys/prctl.h>


def adopt() -> bool:
    """Make this process the parent of descendants whose own parents end; False where no system call does that.

    Only Linux has it. Elsewhere a process that detaches itself leaves the family.
    """
    if sys.platform != "linux":
        return False
    return bool(ctypes.CDLL(None).prctl(_ADOPT, 1, 0, 0, 0) == 0)


def descendants(pid: int) -> list[int]:
    """The living processes below a process, which is not among them."""
    children = defaultdict(list)
    for process, parent in _parents().items():
        children[parent].append(process)
    return list(_below(pid, children))


def children(pid: int) -> list[int]:
    """The living children of a process."""
    return [process for process, parent in _parents().items() if parent == pid]


def lives(pid: int) -> bool:
    """Whether there is such a process, which has not ended."""
    return pid in _parents()


def end(pid: int) -> None:
    """Kill a process, after all that descend from it: while it lives, they cannot leave it."""
    end_descendants(pid)
    tell(pid, signal.SIGKILL)


def end_descendants(pid: int) -> None:
    """Kill all that descend from a process, until none is left."""
    deadline = time.monotonic() + PATIENCE
    while (found := descendants(pid)) and time.monotonic() < deadline:
        for process in found:
            tell(process, signal.SIGKILL)
        time.sleep(PAUSE)


def tell(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process, which may have ended already."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def watched(lines: Iterable[str]) -> list[str]:
    """The numbers and paths that are still watched after the last line, in the order in which they came."""
    names: dict[str, None] = {}
    for line in lines:
        sign, name = line[0], line[1:].rstrip("\n")
        names.pop(name, None)
        if sign == "+":
            names[name] = None
    return list(names)


def _below(pid: int, children: Mapping[int, Iterable[int]]) -> Iterator[int]:
    for child in children.get(pid, ()):
        yield child
        yield from _below(child, children)


def _parents() -> dict[int, int]:
    """Every living process with its parent; a process that has ended and is not yet waited for does not live."""
    if sys.platform == "linux":
        states = (_state(name) for name in os.listdir(PROC) if name.isdigit())
        return {pid: parent for pid, parent, state in filter(None, states) if state not in "ZX"}
    command = ["ps", "-A", "-o", "pid=,ppid=,stat="]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    return {int(pid): int(parent) for pid, parent, state in map(str.split, listed) if not state.startswith("Z")}


def _state(name: str) -> tuple[int, int, str] | None:
    """Number, parent and state of a process. None means that it has ended meanwhile."""
    try:
        with open(f"{PROC}/{name}/stat", errors="replace") as file:
            state, parent = file.read().rpartition(")")[2].split()[:2]
    except (OSError, ValueError):
        return None
    return int(name), int(parent), state


if __name__ == "__main__":
    for name in watched(sys.stdin):
        if name.isdigit():
            end(int(name))
        else:
            shutil.rmtree(name, ignore_errors=True)
