"""Host memory: how much this process may take, and how much another process and its children take."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")
_UNSHARED = re.compile(r"Rss(?:Anon|Shmem):\s*(\d+) kB")


def available() -> float:
    """Bytes available now: the least of machine, container and Slurm job; infinite if all are unknown."""
    return min(_machine(), _container(), _job())


def used(pid: int) -> int:
    """Bytes of a process and its descendants that no file backs; 0 if the system does not report them."""
    return sum(_kilobytes(process) for process in _family(pid)) * 1024


def used_below(pid: int) -> int:
    """Bytes of the descendants of a process that no file backs."""
    return sum(map(used, _children(pid)))


def _machine() -> float:
    match = re.search(r"MemAvailable:\s*(\d+) kB", _text(PROC / "meminfo"))
    return int(match[1]) * 1024 if match else float("inf")


def _container() -> float:
    limit, now = _text(CGROUP / "memory.max").strip(), _text(CGROUP / "memory.current").strip()
    return float(int(limit) - int(now)) if limit.isdigit() and now.isdigit() else float("inf")


def _job() -> float:
    megabytes = os.environ.get("SLURM_MEM_PER_NODE", "")
    return int(megabytes) * 2.0**20 if megabytes.isdigit() and int(megabytes) else float("inf")


def _family(pid: int) -> Iterator[int]:
    yield pid
    for child in _children(pid):
        yield from _family(child)


def _children(pid: int) -> Iterator[int]:
    threads = PROC / str(pid) / "task"
    for thread in _names(threads):
        yield from map(int, _text(threads / thread / "children").split())


def _names(folder: Path) -> list[str]:
    """The names in a folder of the system; empty if the folder is absent or vanishes meanwhile."""
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _kilobytes(pid: int) -> int:
    return sum(map(int, _UNSHARED.findall(_text(PROC / str(pid) / "status"))))


def _text(path: Path) -> str:
    """The text of a file of the system; empty if the file is absent or its process has ended meanwhile."""
    try:
        return path.read_text()
    except OSError:
        return ""
