"""Files that are written completely or not at all, read if they are files, and named inside their folder."""

from __future__ import annotations

import errno
import os
import re
import stat
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

Stamp = tuple[int, int] | None
RUN = r"\d{8}T\d{6}Z-"  # the beginning of the name of a run
_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,100}")
_TEMPORARY = re.compile(r"\..+\.(?P<host>[^.]*)\.(?P<pid>\d+)\.tmp")
_STALE = 3600.0  # seconds after which a temporary file of another machine has no writer any more
_ROOM = 2**16  # bytes: more than the rows of a cell take
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class Unwritable(OSError):
    """Results cannot be written. No cell can help that, so that it ends a run."""

    def __str__(self) -> str:
        return f"results cannot be written ({super().__str__()}): the same command continues once they can"


@contextmanager
def writing(path: Path | None = None) -> Iterator[None]:
    """Within, a file or folder that cannot be written raises Unwritable instead of OSError; ``path`` names it."""
    try:
        yield
    except Unwritable:
        raise
    except OSError as error:
        raise Unwritable(error.errno, error.strerror or str(error), str(path) if path else error.filename) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``, which takes the place of ``path`` at the end.

    After a crash there is the old file or the new one.

    Raises:
        Unwritable: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{_host()}.{os.getpid()}.tmp")
    with writing(path):
        temporary.unlink(missing_ok=True)
        path.parent.mkdir(exist_ok=True)  # not its parents: a run that was removed is not begun again
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            with suppress(OSError):  # it was renamed, or it cannot be removed for the reason that is raised
                temporary.unlink()


def replace(path: Path, content: bytes) -> None:
    """Write a file atomically; raises Unwritable."""
    with replacing(path) as temporary, open(temporary, "xb") as file:  # never through a link that lies there
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    with writing():
        _sync_folder(path.parent)


def drop_temporary(folder: Path) -> None:
    """Remove the temporary files below ``folder`` whose writers were killed."""
    for place, _, names in os.walk(folder):
        for name in names:
            if (match := _TEMPORARY.fullmatch(name)) and _is_left(Path(place, name), match["host"], int(match["pid"])):
                with suppress(OSError):  # another run in the same folder was faster
                    Path(place, name).unlink()


def refuse_unwritable(folder: Path) -> None:
    """Raise Unwritable if the rows of a cell cannot be written into ``folder``."""
    with writing(), tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"x" * _ROOM)


def _is_left(path: Path, host: str, pid: int) -> bool:
    """Whether the writer of a temporary file is dead, as far as this machine can know."""
    if host == _host():
        try:
            os.kill(pid, 0)
        except OSError as error:
            return error.errno == errno.ESRCH
        return False
    try:
        return time.time() - path.stat().st_mtime > _STALE
    except OSError:
        return False


def _host() -> str:
    """The name of this machine, without dots."""
    return re.sub(r"[^A-Za-z0-9-]", "-", os.uname().nodename)


class SetAside(UserWarning):
    """Something in a folder of results could not be read, and everything else was read without it."""


_noted: ContextVar[list[str] | None] = ContextVar("noted", default=None)


@contextmanager
def noting() -> Iterator[list[str]]:
    """Within, this thread notes what it leaves out in the list, and warns of nothing."""
    texts: list[str] = []
    token = _noted.set(texts)
    try:
        yield texts
    finally:
        _noted.reset(token)


def set_aside(path: Path, fault: object) -> None:
    """Warn that something was left out, and why; within ``noting`` note it."""
    text, noted = f"{path} set aside: {fault}", _noted.get()
    if noted is None:
        warnings.warn(text, SetAside, stacklevel=3)
    elif text not in noted:
        noted.append(text)


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


def size_and_time(path: Path) -> tuple[int, int]:
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


def stamp(path: Path) -> Stamp:
    """Time and number of a file, which change when it is replaced. None means that there is no file."""
    try:
        at = path.stat()
    except OSError:
        return None
    return at.st_mtime_ns, at.st_ino


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
