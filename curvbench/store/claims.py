"""Claims: what a process has in flight in a run's folder, so that other runs in the same folder leave it alone.

A claim is a locked file in ``claims/``. The system gives the lock back when the process ends, however it ends. The
file goes with its claim; files of killed processes go when the next process has no more to claim.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from curvbench.store import files

PATIENCE = 60.0  # seconds after which a lock that is held for moments only is thought to be stuck
ATTEMPTS = 10
_FOLDER, _ENDING = "claims", ".lock"
_PRESENCE = "run-"


class Claims:
    """The claims of this process in a run's folder."""

    def __init__(self, run: Path) -> None:
        """Show by a lock that this process works in the run.

        Raises:
            OSError: locks do not work in this folder.
        """
        self._folder = run / _FOLDER
        self._held: dict[str, FileLock] = {}
        try:
            presence = self._enter()
            if not _is_locked(presence):
                raise OSError(f"a locked file in {self._folder} can be locked again")
        except OSError:
            self.close()
            raise

    def _enter(self) -> Path:
        """Lock a file of this process alone, which keeps the folder from being removed, and return the file."""
        name = f"{_PRESENCE}{uuid4().hex}"
        lock = _lock(self._file(name))
        for _ in range(ATTEMPTS):
            self._folder.mkdir(exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # another process has removed the folder as its last deed
                lock.acquire(timeout=PATIENCE)
                break
        self._held[name] = lock
        return self._file(name)

    def take(self, name: str) -> bool:
        """Claim ``name``, perhaps once more; False if another living process has claimed it."""
        if name in self._held:
            return True
        lock = _lock(self._file(name))
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return False
        self._held[name] = lock
        return True

    def release(self, name: str) -> None:
        """Give a claim back, if this process has it."""
        if lock := self._held.pop(name, None):
            _remove(lock)

    def close(self) -> None:
        """Give all claims back, and remove what killed processes have left."""
        for name in list(self._held):
            self.release(name)
        in_use(self._folder.parent)
        with contextlib.suppress(OSError):  # another process is there, or it has removed the folder
            self._folder.rmdir()

    def _file(self, name: str) -> Path:
        return files.cell_file(self._folder, name, _ENDING)


def in_use(run: Path) -> bool:
    """Whether a process works in a run's folder, as far as locks tell; what killed processes have left is removed."""
    return any([_is_locked(path) for path in _files(run / _FOLDER)])


def is_running(run: Path) -> bool:
    """Whether a process runs cells of a run, as far as locks tell. For those who only look: nothing is changed."""
    return any(_is_present(path) for path in _files(run / _FOLDER) if path.name.startswith(_PRESENCE))


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Only one process at a time is within for a ``folder``, which is made. Locks that fail keep nobody out."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = _lock(folder / f".alone{_ENDING}")
    with contextlib.suppress(OSError):
        lock.acquire(timeout=PATIENCE)
    try:
        yield
    finally:
        _remove(lock)


def _lock(path: Path) -> FileLock:
    # a soft lock would outlive its process
    return FileLock(path, thread_local=False, fallback_to_soft=False)


def _remove(lock: FileLock) -> None:
    """Give a lock back; its file is removed first, so that none is removed that another process has locked."""
    if lock.is_locked:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _is_locked(path: Path) -> bool:
    """Whether a process holds the lock of a file; the file is removed if nobody does."""
    lock = _lock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return True
    except OSError:
        return False
    _remove(lock)
    return False


def _is_present(path: Path) -> bool:
    """Whether the process of a file holds its lock; a look takes it for a moment, for which its process waits."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{_ENDING}")) if folder.is_dir() else []
