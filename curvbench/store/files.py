"""Files that are written completely or not at all, and names from outside that cannot lead out of a folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

Stamp = tuple[int, int] | None

_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,100}")


def replace(path: Path, content: bytes) -> None:
    """Write a file atomically: after a crash there is the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def stamp(path: Path) -> Stamp:
    """Time and number of a file, which change when it is replaced. None means that there is no file."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_mtime_ns, stat.st_ino


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cell_file(folder: Path, cell_id: str, ending: str = ".parquet") -> Path:
    """The path of a cell's file in ``folder``; raises ValueError for an id that could lead out of the folder."""
    if not _PLAIN.fullmatch(cell_id):
        raise ValueError(f"expected a cell id of letters, digits, _ and -, 100 at most, got {cell_id[:50]!r}")
    return folder / f"{cell_id}{ending}"
