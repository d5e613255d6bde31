"""Files that are written completely or not at all, read if they are files, and named inside their folder."""

from __future__ import annotations

import os
import re
import stat
import warnings
from pathlib import Path

RUN = r"\d{8}T\d{6}Z-"  # the beginning of the name of a run
_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,100}")


def replace(path: Path, content: bytes) -> None:
    """Write a file atomically: after a crash there is the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        with open(temporary, "xb") as file:  # never through a link that lies there
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


class SetAside(UserWarning):
    """Something in a folder of results could not be read, and everything else was read without it."""


def set_aside(path: Path, fault: object) -> None:
    """Warn that something was left out, and why."""
    warnings.warn(f"{path} set aside: {fault}", SetAside, stacklevel=3)


def name_lost_folder(path: Path) -> None:
    """Warn if something in a folder of results should be a folder with rows, by its name, and cannot be listed."""
    if not os.path.exists(path):
        set_aside(path, "it is a link that leads nowhere")
    elif (path.name == "cells" or re.match(RUN, path.name)) and not os.path.isdir(path):
        set_aside(path, "it is no folder")


def read(path: Path, inside: Path | None = None) -> bytes:
    """The content of a regular file; raises ValueError for anything else, such as a pipe that nobody fills.

    ``inside``: a folder out of which no link may lead. None means that links are followed.
    """
    if inside is not None and not _resolved(path).is_relative_to(_resolved(inside)):
        raise ValueError(f"it is a link that leads out of {inside}")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would wait for its writer
    except OSError as error:
        raise ValueError(_why(path, error)) from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is no regular file")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    except OSError as error:
        raise ValueError(_why(path, error)) from error
    finally:
        os.close(descriptor)


def stamp(path: Path) -> tuple[int, int]:
    """Size and time of a file; those of the link itself if it leads nowhere, and zeros if there is nothing."""
    for follow in (True, False):
        try:
            at = os.stat(path, follow_symlinks=follow)
        except (OSError, ValueError):
            continue
        return at.st_size, at.st_mtime_ns
    return 0, 0


def _why(path: Path, error: OSError) -> str:
    return "it is a link that leads nowhere" if path.is_symlink() else f"it cannot be read ({error.strerror})"


def _resolved(path: Path) -> Path:
    return Path(os.path.realpath(path))  # Path.resolve raises RuntimeError for links in a circle


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refuse_path(name: str, what: str) -> str:
    """The name of a file or folder; raises ValueError if it could lead elsewhere."""
    if not name.strip(". ") or not name.isprintable() or set(name) & set("/\\") or len(name.encode()) > 200:
        raise ValueError(f"expected {what} that can be the name of a folder, got {name[:50]!r}")
    return name


def cell_file(folder: Path, cell_id: str, ending: str = ".parquet") -> Path:
    """The path of a cell's file in ``folder``; raises ValueError for an id that could lead out of the folder."""
    if not _PLAIN.fullmatch(cell_id):
        raise ValueError(f"expected a cell id of letters, digits, _ and -, 100 at most, got {cell_id[:50]!r}")
    return folder / f"{cell_id}{ending}"
