"""Files that are written completely or not at all, and names from outside that cannot lead out of a folder."""

from __future__ import annotations

import errno
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

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
        path.parent.mkdir(exist_ok=True)  # not its parents: a run that was removed is not begun again
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            with suppress(OSError):  # it was renamed, or it cannot be removed for the reason that is raised
                temporary.unlink()


def replace(path: Path, content: bytes) -> None:
    """Write a file atomically; raises Unwritable."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
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
