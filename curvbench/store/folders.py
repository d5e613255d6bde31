"""Folders of runs: ``run.json``, and the files beside the fragments."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from filelock import FileLock

from curvbench import shipped
from curvbench.spec.pictures import Blocks
from curvbench.store import files, fragments, record
from curvbench.store.arrays import pack, unpack
from curvbench.words import near_misses, one_line

_STAMP = "%Y%m%dT%H%M%SZ"
LARGE_REFERENCE = 10**9  # bytes: a larger reference is removed at the end of a run, because it can be made again
LOG_PART = 2**18  # bytes that are left at each end of a log that was cut


def new_run(suite_folder: Path, code: str) -> Path:
    """Make the folder of a new run, named by the time in UTC and the code; names sort by time."""
    stem = f"{_begin_after(runs(suite_folder)):{_STAMP}}-{code[:8]}"
    for name in [stem, *(f"{stem}-{k}" for k in range(2, 100))]:
        with files.writing():
            try:
                (suite_folder / name / "cells").mkdir(parents=True)
            except FileExistsError:
                continue
            (suite_folder / name / "logs").mkdir()
        return suite_folder / name
    raise OSError(f"{suite_folder}: a hundred runs were begun in this second")


def drop_run(run: Path) -> None:
    """Remove a run that could not be begun."""
    shutil.rmtree(run, ignore_errors=True)


def _begin_after(earlier: Sequence[Path]) -> datetime:
    """The time of a new run: at least a second after the ``earlier`` runs, so that names sort even if a clock jumps."""
    stamps = [folder.name.partition("-")[0] for folder in earlier if re.match(files.RUN, folder.name)]
    times = [datetime.strptime(stamp, _STAMP).replace(tzinfo=UTC) + timedelta(seconds=1) for stamp in stamps]
    return max([datetime.now(UTC), *times])


def runs(suite_folder: Path) -> list[Path]:
    """The runs of a suite, oldest first."""
    return [folder for folder in _folders(suite_folder) if is_run(folder)] if os.path.isdir(suite_folder) else []


def is_run(folder: str | Path) -> bool:
    """Whether a folder is that of a run: it has a ``run.json``, readable or not, or fragments of cells."""
    cells = Path(folder, "cells")
    if os.path.lexists(Path(folder, "run.json")):
        return os.path.isdir(folder)
    try:
        with os.scandir(cells) as files_in_cells:
            return any(file.name.endswith(".parquet") for file in files_in_cells)
    except OSError:
        return False


def runs_below(path: str | Path) -> list[Path]:
    """Every run in a folder of results, of a suite or of one run, oldest first; raises ValueError for no folder."""
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"no results at {str(path)!r}: expected a folder that `curvbench run` has written")
    if is_run(path):
        return [path]
    return sorted((run for folder in (path, *_folders(path)) for run in runs(folder)), key=lambda run: run.name)


def resolve(run: str | Path, results: str | Path = "results") -> list[Path]:
    """The folders of the runs that ``run`` means.

    ``run`` is the folder of a run, of a suite (its latest run) or of results (the latest run of each suite), or a run
    id, or ``latest`` (of all suites). Ids and ``latest`` are looked up in ``results``.

    Raises:
        ValueError: there is no such run.
    """
    if str(run) == "":
        raise ValueError("expected a run, got an empty text; the working directory is .")
    path, results = shipped.find(run), Path(results)
    if is_run(path):
        return [path]
    if path.is_dir():
        return _latest_runs(path)
    by_id = {folder.name: folder for suite in _folders(results) for folder in runs(suite)} if results.is_dir() else {}
    if str(run) == "latest" and by_id:
        return [by_id[max(by_id)]]
    if str(run) in by_id:
        return [by_id[str(run)]]
    raise ValueError(f"no run {str(run)!r} in {str(results)!r}: {near_misses(str(run), by_id)}")


def _latest_runs(folder: Path) -> list[Path]:
    latest = [of_suite[-1] for of_suite in (runs(f) for f in (folder, *_folders(folder))) if of_suite]
    if not latest:
        raise ValueError(f"no runs in {str(folder)!r}")
    return latest


def read_run(folder: Path) -> dict[str, Any]:
    """``run.json`` of a run's folder, of which damaged parts are named in a warning and set aside; perhaps empty."""
    path = folder / "run.json"
    try:
        content, faults = record.parsed(files.read(path))
    except ValueError as error:
        content, faults = {}, [one_line(error)]
    if faults:
        more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
        files.set_aside(path, f"damaged: {faults[0]}{more}")
    return content


def write_run(folder: Path, content: Mapping[str, Any]) -> None:
    """Write ``run.json`` atomically."""
    files.replace(folder / "run.json", (json.dumps(content, indent=1, default=str) + "\n").encode())


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """An exclusive lock on a run's ``run.json`` among the processes that use ``locked``; it ends with its process.

    Raises:
        OSError: the file system has no such locks. A file that stands for a lock would outlive a killed process.
    """
    with FileLock(run / "run.json.lock", fallback_to_soft=False):
        yield


def read_jobs(run: Path) -> dict[str, list[str]]:
    """The cluster jobs of a run by number, with the ids of their cells."""
    path = run / "jobs.json"
    jobs: dict[str, list[str]] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return jobs


def write_jobs(run: Path, jobs: Mapping[str, Sequence[str]]) -> None:
    """Write the jobs that ``read_jobs`` reads, atomically."""
    files.replace(run / "jobs.json", json.dumps(jobs).encode())


def write_blocks(run: Path, cell_id: str, blocks: Blocks) -> None:
    """Write the blocks of a cell atomically."""
    files.replace(_blocks(run, cell_id), pack(blocks))


def read_blocks(run: Path, cell_id: str) -> Blocks | None:
    """The blocks of a cell. None means that it has none. Raises ValueError if they are damaged."""
    try:
        path = _blocks(run, cell_id)  # an id comes from a file that anyone may have written
    except ValueError:
        return None
    if not os.path.lexists(path):
        return None
    try:
        return unpack(files.read(path, inside=run))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _blocks(run: Path, cell_id: str) -> Path:
    return files.cell_file(run / "blocks", cell_id, ".npz")


def write_libraries(run: Path, record: Mapping[str, Any]) -> str:
    """Write the record of the libraries that a cell had loaded, and return its name, a hash of its content."""
    content = json.dumps(record, sort_keys=True, indent=1).encode()
    name = hashlib.sha256(content).hexdigest()[:16]
    path = files.cell_file(run / "libraries", name, ".json")
    if not path.is_file():
        files.replace(path, content)
    return name


def read_libraries(run: Path) -> dict[str, dict[str, Any] | None]:
    """All records of libraries in a run, by name. None means that a record is damaged, of which a warning says more."""
    records: dict[str, dict[str, Any] | None] = {}
    for path in sorted((run / "libraries").glob("*.json")):
        try:
            records[path.stem] = record.libraries(files.read(path, inside=run))
        except ValueError as error:
            records[path.stem] = None
            files.set_aside(path, f"damaged: {one_line(error)}")
    return records


def share_cell(source: Path, folder: Path) -> None:
    """Link a finished cell of another run into ``folder``, or copy it where links are not possible."""
    _share(source, folder)
    if libraries := fragments.libraries(source):
        record = files.cell_file(source.parents[1] / "libraries", libraries, ".json")
        (folder.parent / "libraries").mkdir(exist_ok=True)
        _share(record, folder.parent / "libraries")
    blocks = _blocks(source.parents[1], source.stem)
    if blocks.is_file():
        (folder.parent / "blocks").mkdir(exist_ok=True)
        _share(blocks, folder.parent / "blocks")


def _share(source: Path, folder: Path) -> None:
    target = folder / source.name
    if target.exists():
        return
    content = files.read(source, inside=source.parents[1])
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        files.replace(target, content)


def drop_large_references(run: Path, limit: int = LARGE_REFERENCE) -> None:
    """Remove each reference of a run that takes more than ``limit`` bytes."""
    references = run / "references"
    for folder in _folders(references) if references.is_dir() and not references.is_symlink() else []:
        if not folder.is_symlink() and sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) > limit:
            shutil.rmtree(folder)


def read_log(run: Path, cell_id: str) -> str | None:
    """The text that a cell printed while it ran. None means that there is no log, or, with a warning, a damaged one."""
    try:
        path = files.cell_file(run / "logs", cell_id, ".log")  # an id comes from a file that anyone may have written
    except ValueError:
        return None
    if not os.path.lexists(path):
        return None
    try:
        return files.read(path, inside=run).decode(errors="replace")
    except ValueError as error:
        files.set_aside(path, error)
        return None


def shorten_log(path: Path, keep: int = LOG_PART) -> None:
    """Cut the middle out of a log of more than four times ``keep`` bytes, while its writer goes on appending."""
    with suppress(OSError):  # a log is no result: a cell may have removed it, or put something else in its place
        if not path.is_file() or path.stat().st_size <= 4 * keep:
            return
        with open(path, "r+b") as file:
            file.seek(-keep, os.SEEK_END)
            tail = file.read()
            file.seek(keep)
            file.truncate()
            file.write(b"\n... cut here ...\n" + tail)


def refuse_unwritable(results: Path) -> Path:
    """Raise Unwritable if ``results`` cannot be written; else return the folder, or its nearest parent that exists."""
    place = next(folder for folder in (results.absolute(), *results.absolute().parents) if folder.exists())
    files.refuse_unwritable(place)
    return place


def check_writable(run: Path) -> None:
    """Raise Unwritable if a run's cells and logs cannot be written."""
    for folder in (run / "cells", run / "logs"):
        if folder.is_symlink():
            raise files.Unwritable(
                errno.EINVAL, "a run writes in its own folder alone, and this is a link", str(folder)
            )
        with files.writing():
            folder.mkdir(exist_ok=True)
        files.refuse_unwritable(folder)


def _folders(path: Path) -> list[Path]:
    """The folders in a folder, by name; links that lead nowhere and runs that are no folders are named."""
    try:
        entries = sorted(path.iterdir())
    except OSError as error:
        files.set_aside(path, f"it cannot be read ({error.strerror})")
        return []
    for entry in entries:
        files.name_lost_folder(entry)
    return [entry for entry in entries if os.path.isdir(entry)]
