"""An official fake of ``curvbench.cells.measure``: cells that do what their probe says."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from curvbench.spec import Cell, Dataset, Diverged, Probe, Problem, Row, Skip, Unsupported
from curvbench.spec.pictures import Blocks, keep


@dataclass(frozen=True)
class Fake(Probe):
    """A probe that does what it is told."""

    does: str = "ok"
    damping: float = 1e-3

    def __post_init__(self) -> None:
        if self.damping < 0:
            raise ValueError(f"damping must not be negative, got {self.damping}")

    def update(self, state: Any, batch: Any) -> Any:
        raise NotImplementedError

    def precondition(self, state: Any, gradient: Any) -> Any:
        raise NotImplementedError

    def operator(self, state: Any) -> Any:
        raise NotImplementedError


@dataclass(frozen=True)
class Toy(Problem):
    """A problem whose reference does what it is told."""

    does: str = "ok"
    samples: int = 8
    epochs: int = 0

    def model(self) -> Any:
        raise NotImplementedError

    def data(self, root: Path | None) -> Dataset:
        raise NotImplementedError


def reference_identity(cell: Cell) -> str:
    return f"{cell.problem.arguments or 'plain'}-{cell.seed}".replace("=", "-")


def prepare(cell: Cell, folder: Path, data: Path | None, report: Callable[[str], None]) -> None:
    report("training")
    _do(cell.problem.does)  # type: ignore[attr-defined]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "reference").write_text("made")
    with open(folder / "times", "a") as file:
        file.write("prepared\n")


def measure(cell: Cell, folder: Path, data: Path | None, report: Callable[[str], None]) -> list[Row]:
    assert (folder / "reference").exists()
    report("measuring")
    does = cell.probe.does  # type: ignore[attr-defined]
    if does == "empty":
        return []
    if does == "nan":
        return [Row("error.relative", float("nan"))]
    if does == "remove":  # everything that the others have measured
        for fragment in (folder.parents[1] / "cells").iterdir():
            fragment.unlink()
    if does == "block":  # results cannot be written any more
        (folder.parents[1] / "cells").rename(folder.parents[1] / "before")
        (folder.parents[1] / "cells").write_text("no folder")
    _do(does if does in _ACT or does in _RAISE else "ok")
    return [
        Row("error.relative", 0.25 + cell.seed, epoch=cell.problem.epochs),
        Row("error.cosine", cell.probe.damping),  # type: ignore[attr-defined]
        Row("time.wall", 1.0, "step", samples=[0.5, 1.0, 1.5], method="a clock"),
        Row("problem.samples", cell.problem.samples),
    ]


def _do(what: str) -> None:
    if what in _RAISE:
        raise _RAISE[what]
    _ACT[what]()


def _hang() -> None:
    """Sleep, deaf to a polite request, with a child of its own."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print(f"child {child.pid}", flush=True)
    time.sleep(600)


def _grow() -> None:
    """Take memory until somebody ends it, a tenth of a gigabyte at a time."""
    taken = []
    while len(taken) < 100:
        taken.append(bytearray(os.urandom(2**20)) * 100)
        time.sleep(0.05)


def _stop() -> None:
    """Stand still, unable to run any code of its own, with a child beside."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print(f"pids {os.getpid()} {child.pid}", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)


def _flood() -> None:
    for _ in range(100):
        os.write(1, b"x" * 2**20)
    print("the last words")


def _daemon() -> None:
    """Start a process that detaches itself, twice removed and in a session of its own."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execvp("sleep", ["sleep", "600"])
        os._exit(0)
    children = subprocess.Popen(["sleep", "600"], start_new_session=True)
    print(f"child {children.pid}", flush=True)


def _rubbish() -> None:
    """Write what is no message, and looks like a long one, on every inherited descriptor."""
    for descriptor in range(3, 64):
        for content in (b"\x00\x00\x00\x05hello", b"\x7f\xff\xff\xff", b'["done","ok"]\n[[', b"x" * 100):
            with contextlib.suppress(OSError):
                os.write(descriptor, content)


def _close() -> None:
    """Close everything, standard output and error too."""
    os.closerange(1, 1000)


def _slay(generations: int) -> None:
    """Kill an ancestor, and live on."""
    pid = os.getpid()
    for _ in range(generations):
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(pid, signal.SIGKILL)
    time.sleep(600)


def _small_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))


_RAISE: dict[str, BaseException] = {
    "raise": KeyError("a key\nin two lines"),
    "skip": Skip("no data: get it with curvbench data mnist"),
    "unsupported": Unsupported("convolutions are not covered"),
    "diverge": Diverged("the loss is nan"),
    "memory": MemoryError("no more"),
    "allocate": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    "unusable": ValueError("input 0 holds NaN or infinity: nothing can be measured there"),
    "leave": SystemExit(0),
    "full": OSError(errno.ENOSPC, "No space left on device: a small disk of my own"),
    "surrogate": RuntimeError("half \udcff of a character, \x1b[31m"),
    "interrupt": KeyboardInterrupt(),
}
_ACT: dict[str, Callable[[], object]] = {
    "ok": lambda: print("said on standard output"),
    "exit": lambda: os._exit(3),
    "vanish": lambda: os._exit(0),
    "segv": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "hang": _hang,
    "grow": _grow,
    "stop": _stop,
    "flood": _flood,
    "daemon": _daemon,
    "rubbish": _rubbish,
    "close": _close,
    "slay_keeper": lambda: _slay(1),
    "slay_server": lambda: _slay(2),
    "small_files": _small_files,
    "move": lambda: (os.chdir("/"), os.umask(0o777)),
    "cuda": lambda: print(f"cuda initialized {torch.cuda.is_initialized()}, {os.environ.get('CUDA_VISIBLE_DEVICES')}"),
    "threads": lambda: print(f"{torch.get_num_threads()} threads"),
    "slow": lambda: time.sleep(1.0),
    "keep": lambda: keep(Blocks("fc", 1, np.eye(2), np.zeros((2, 2)), {})),
}
