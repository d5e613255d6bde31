"""Ranks of one model on one machine: processes that start together, report and end together."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Generic, TypeVar

from curvbench.identity import libraries
from curvbench.registry import expect, loaded_files
from curvbench.spec import Report, Status
from curvbench.words import death

ANSWER = timedelta(minutes=30)  # the wait for a rank; long, because the first rank alone computes the exact Fisher
GRACE = 2.0  # seconds between failures: a rank that fails takes others with it, and its own reason may come later
Result = TypeVar("Result")


class RankDied(Exception):
    """A rank ended without a message; ``status`` is killed or crashed."""

    def __init__(self, text: str, status: Status) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class _Returned(Generic[Result]):
    value: Result


class _Rank(SpawnProcess):
    """A process and the pipe through which it sends its messages."""

    pipe: Connection[Any, Any]


def together(
    work: Callable[[int, Report], Result], count: int, device: str, report: Report, answer: timedelta = ANSWER
) -> Result:
    """The result of ``work(rank, report)`` in the first of ``count`` processes that form torch's default group.

    For ``cuda`` each process has the GPU of its number. ``answer`` is the group's timeout. The processes are children
    of this process and in its process group. They end before the call returns, and with this process.

    Raises:
        ValueError: there are fewer GPUs, or ``device`` names one of them.
        RankDied: a rank was killed or crashed.
        Exception: a rank raised it; if several ranks raised, an error that is no consequence of another is preferred.
    """
    _refuse(count, device)
    with tempfile.TemporaryDirectory() as folder:
        group = (f"file://{folder}/meeting", answer, count, "gloo" if device == "cpu" else "nccl")
        ranks: list[_Rank] = []
        try:
            for rank in range(count):
                ranks.append(_started(rank, group, pickle.dumps(work)))
            return _first_result(ranks, report)
        finally:
            for process in ranks:
                process.kill()
                process.join()


def _refuse(count: int, device: str) -> None:
    if device == "cpu":
        return
    import torch

    if device != "cuda" or count > torch.cuda.device_count():
        raise ValueError(
            f"training: devices={count} needs --device cuda and {count} GPUs, "
            f"got --device {device} and {torch.cuda.device_count()} GPUs: lower devices"
        )


def _started(rank: int, group: Sequence[Any], content: bytes) -> _Rank:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = _Rank(target=_main, args=(rank, group, loaded_files(), libraries.root(), content, sender), daemon=True)
    process.pipe = receiver
    process.start()
    sender.close()
    return process


def _first_result(ranks: Sequence[_Rank], report: Report) -> Any:
    """Pass on the first rank's reports until all ranks have returned or one has failed."""
    waiting = {process.pipe: rank for rank, process in enumerate(ranks)}
    returned: dict[int, Any] = {}
    failures: list[Exception] = []
    while waiting and (ready := wait(list(waiting), GRACE if failures else None)):
        for pipe in ready:
            rank = waiting[pipe]  # type: ignore[index]
            message = _message(ranks[rank], rank)
            if isinstance(message, str):
                report(message)
                continue
            del waiting[pipe]  # type: ignore[arg-type]
            if isinstance(message, _Returned):
                returned[rank] = message.value
            else:
                failures.append(message)
    if failures:
        raise min(failures, key=lambda error: (not isinstance(error, RankDied), isinstance(error, ConnectionError)))
    return returned[0]


def _message(process: _Rank, rank: int) -> Any:
    """The next message of a rank, or RankDied."""
    try:
        return process.pipe.recv()
    except (EOFError, ConnectionResetError):
        process.join()
    status, how = death(process.exitcode or 0)
    return RankDied(f"rank {rank} {'was ' if status is Status.KILLED else ''}{how}", status)


def _main(
    rank: int,
    group: Sequence[Any],
    files: Sequence[Path],
    root: Path | None,
    content: bytes,
    pipe: Connection[Any, Any],
) -> None:
    """The main function of a rank; ``root`` is the folder that the parent gave to ``libraries.watch``."""
    if root is not None:
        libraries.watch(root)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        pipe.send(_Returned(_work(rank, group, files, content, pipe.send if rank == 0 else lambda text: None)))
    except Exception as error:
        traceback.print_exc()
        pipe.send(_sendable(error))


def _work(rank: int, group: Sequence[Any], files: Sequence[Path], content: bytes, report: Report) -> Any:
    import torch
    from torch import distributed

    meeting, answer, count, backend = group
    expect(files)
    work = pickle.loads(content)
    if backend == "nccl":
        torch.cuda.set_device(rank)
    distributed.init_process_group(backend, meeting, answer, count, rank)
    return work(rank, report)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _sendable(error: Exception) -> Exception:
    """The exception, or a RuntimeError with its text if it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception_only(error)).strip())
    return error
