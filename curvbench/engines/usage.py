"""Host memory: how much this process may take, and how much another process and its children take."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")


class _Names(NamedTuple):
    """The names that a version of control groups gives to a limit of memory, its usage, and the cache within that."""

    limit: str
    usage: str
    cache: str


V1 = _Names("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = _Names("memory.max", "memory.current", "inactive_file")
_UNSHARED = re.compile(r"Rss(?:Anon|Shmem):\s*(\d+) kB")
_PARTS = re.compile(r"Pss_(?:Anon|Shmem):\s*(\d+) kB")


def available() -> float:
    """Bytes available now: the least of machine, control groups and Slurm job; infinite if all are unknown."""
    return min(_machine(), _container(), _job())


def used(pid: int) -> int:
    """Bytes of a process and its descendants that no file backs; 0 if the system does not report them."""
    return sum(_kilobytes(process) for process in _family(pid)) * 1024


def excess_below(pid: int, share: float) -> int:
    """Bytes of the descendants of a process that no file backs, if they are more than ``share``; else 0.

    A page that processes share, as after a fork, counts once. The system adds that up slowly, so it is asked only where
    the processes seem to take too much.
    """
    if sum(map(used, _children(pid))) <= share:
        return 0
    found = sum(map(_proportional, (process for child in _children(pid) for process in _family(child)))) * 1024
    return found if found > share else 0


def _machine() -> float:
    match = re.search(r"MemAvailable:\s*(\d+) kB", _text(PROC / "meminfo"))
    return int(match[1]) * 1024 if match else float("inf")


def _container() -> float:
    """The least that a control group of this process, or a group around it, leaves to it."""
    return min((free for group in _groups() for free in (_free(group, V1), _free(group, V2))), default=float("inf"))


def _groups() -> Iterator[Path]:
    """The folders of the control groups of this process that may limit its memory, and of all groups around them."""
    for line in _text(PROC / "self" / "cgroup").splitlines():
        _, controllers, place = line.split(":", 2)
        roots = (CGROUP, CGROUP / "unified") if not controllers else (CGROUP / "memory",)
        for root in roots if not controllers or "memory" in controllers.split(",") else ():
            inside = PurePosixPath(place.lstrip("/"))
            # in a container the path may be that outside: then only the root is there, which is the container's group
            yield from (root / part for part in (inside, *inside.parents))


def _free(group: Path, names: _Names) -> float:
    """The bytes that a group leaves; pages of files that were not used lately count, because the system drops them."""
    limit, now = _text(group / names.limit).strip(), _text(group / names.usage).strip()
    if not (limit.isdigit() and now.isdigit()):
        return float("inf")
    match = re.search(rf"^{names.cache} (\d+)$", _text(group / "memory.stat"), re.MULTILINE)
    return float(int(limit) - int(now) + (int(match[1]) if match else 0))


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


def _proportional(pid: int) -> int:
    """Kilobytes of a process, with its part of each page that others share; with all of it where that is unknown."""
    parts = _PARTS.findall(_text(PROC / str(pid) / "smaps_rollup"))
    return sum(map(int, parts)) if parts else _kilobytes(pid)


def _text(path: Path) -> str:
    """The text of a file of the system; empty if the file is absent or its process has ended meanwhile."""
    try:
        return path.read_text()
    except OSError:
        return ""
