"""Probes that misbehave, one suite: each has one row with a true reason, and the honest ones are measured.

``ENDS`` says how each of them ends; ``scripts/soak`` and ``scripts/make_docs.py faults`` hold a run against it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

import curvbench as cb
from curvbench.fisher import collect
from curvbench.operators import Diagonal, Operator

WRITTEN_TO = "changed after this Instance was made"


class End(NamedTuple):
    """How a probe ends: its possible statuses, and a pattern of the reason; and what it does, in words."""

    status: str
    reason: str
    does: str


class _Textless(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


def _raise(error: BaseException) -> Callable[[Any], NoReturn]:
    def act(batch: Any) -> NoReturn:
        raise error

    return act


def _forever(batch: Any) -> None:
    while True:
        time.sleep(1)


def _spin(batch: Any) -> None:
    while True:
        pass


def _recurse(batch: Any) -> None:
    _recurse(batch)


def _grow(batch: Any) -> None:
    taken = []
    while True:
        taken.append(torch.ones(2**25))
        time.sleep(0.01)


def _flood(batch: Any) -> None:
    for _ in range(30):
        sys.stdout.write("x" * 2**20)
        sys.stderr.write("y" * 2**20)


def _double_fork(batch: Any) -> None:
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execvp("sleep", ["sleep", "989"])
        os._exit(0)


def _leave_in_new_session(batch: Any) -> None:
    if os.fork():
        os._exit(0)
    os.setsid()
    os.execvp("sleep", ["sleep", "990"])


def _rubbish(batch: Any) -> None:
    for descriptor in range(3, 64):
        for content in (b"\x00\x00\x00\x05hello", b"\x7f\xff\xff\xff" + b"x" * 100, b'["done","ok",""'):
            with contextlib.suppress(OSError):
                os.write(descriptor, content)


def _ancestor(generations: int) -> int:
    pid = os.getpid()
    for _ in range(generations):
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pid


def _kill_keeper(batch: Any) -> None:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(1000)


def _kill_server(batch: Any) -> None:
    os.kill(_ancestor(2), signal.SIGKILL)
    time.sleep(1000)


def _without_folder(batch: Any) -> None:
    folder = tempfile.mkdtemp()
    os.chdir(folder)
    os.rmdir(folder)


def _remove_fragments(batch: Any) -> None:
    for fragment in Path(os.readlink("/proc/self/fd/1")).parents[1].glob("cells/*.parquet"):
        fragment.unlink()


def _remove_log(batch: Any) -> None:
    shutil.rmtree(Path(os.readlink("/proc/self/fd/1")).parent, ignore_errors=True)


def _scale_weights(batch: Any) -> None:
    for parameter in batch.model.parameters():
        parameter.data.mul_(1.7)


def _deaf(batch: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1000)


def _nothing(batch: Any) -> None:
    pass


ACTS: dict[str, Callable[[Any], object]] = {
    "raise": _raise(RuntimeError("boom\n" * 1000)),
    "huge_text": _raise(RuntimeError("m" * (50 << 20))),
    "odd_text": _raise(RuntimeError("bad \udcff text \x00 nul \x1b[31m")),
    "no_text": _raise(_Textless()),
    "base_exception": _raise(BaseException("base")),
    "interrupt": _raise(KeyboardInterrupt()),
    "exit_0": lambda batch: sys.exit(0),
    "full_disk": _raise(OSError(errno.ENOSPC, "No space left on device: my own small disk")),
    "read_only": _raise(OSError(errno.EROFS, "Read-only file system: my cache")),
    "io_error": _raise(OSError(errno.EIO, "I/O error")),
    "recursion": _recurse,
    "vanish_0": lambda batch: os._exit(0),
    "vanish_255": lambda batch: os._exit(255),
    "abort": lambda batch: os.abort(),
    "segfault": lambda batch: ctypes.string_at(0),
    "kill_itself": lambda batch: os.kill(os.getpid(), signal.SIGKILL),
    "kill_keeper": _kill_keeper,
    "kill_server": _kill_server,
    "hang": _forever,
    "spin": _spin,
    "deaf": _deaf,
    "stop": lambda batch: os.kill(os.getpid(), signal.SIGSTOP),
    "grow": _grow,
    "allocate": lambda batch: torch.empty(10**13),
    "flood": _flood,
    "print_bytes": lambda batch: os.write(1, bytes(range(256)) * 100),
    "child": lambda batch: subprocess.Popen(["sleep", "987"]),
    "daemon": lambda batch: subprocess.Popen(["sleep", "988"], start_new_session=True),
    "double_fork": _double_fork,
    "leave_in_new_session": _leave_in_new_session,
    "thread": lambda batch: threading.Thread(target=time.sleep, args=(500,)).start(),
    "close_pipes": lambda batch: os.closerange(3, 1000),
    "close_output": lambda batch: os.closerange(1, 3),
    "rubbish": _rubbish,
    "change_folder": lambda batch: os.chdir("/"),
    "remove_folder": _without_folder,
    "umask": lambda batch: os.umask(0o777),
    "small_files": lambda batch: resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10)),
    "few_files": lambda batch: resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3)),
    "remove_fragments": _remove_fragments,
    "remove_log": _remove_log,
    "weights": _scale_weights,
    "inputs": lambda batch: batch.inputs.mul_(2),
    "targets": lambda batch: batch.targets.zero_(),
    "hook": lambda batch: batch.model.register_forward_hook(lambda module, inputs, outputs: outputs * 2),
    "no_gradients": lambda batch: torch.set_grad_enabled(False),
    "threads": lambda batch: torch.set_num_threads(64),
}
OPERATORS: dict[str, Callable[[Tensor], Any]] = {
    "nan_matrix": lambda diagonal: Diagonal(diagonal * float("nan")),
    "infinite_matrix": lambda diagonal: Diagonal(diagonal * float("inf")),
    "negative_matrix": lambda diagonal: Diagonal(-diagonal),
    "short_matrix": lambda diagonal: Diagonal(diagonal[:-1]),
    "long_matrix": lambda diagonal: Diagonal(torch.cat([diagonal, diagonal])),
    "column_matrix": lambda diagonal: Diagonal(diagonal[:, None]),
    "whole_numbers": lambda diagonal: Diagonal(torch.ones_like(diagonal, dtype=torch.int64)),
    "text_state": lambda diagonal: "state",
    "no_state": lambda diagonal: None,
}
STEPS: dict[str, Callable[[Tensor], Any]] = {
    "nan_step": lambda gradient: gradient * float("nan"),
    "short_step": lambda gradient: gradient[:-1],
    "no_step": lambda gradient: None,
    "huge_step": lambda gradient: gradient * 1e300,
    "step_in_place": lambda gradient: gradient.mul_(2),
}
ENDS = {
    "honest": End("ok", "", "nothing"),
    "remove_log": End("ok", "", "removes the logs of the run"),
    "remove_fragments": End("ok", "", "removes all results of the run, which are then measured again"),
    "raise": End("error", "RuntimeError: boom", "raises an exception of a thousand lines"),
    "huge_text": End("error", "RuntimeError: mmm", "raises an exception with a text of 50 MB"),
    "odd_text": End("error", r"bad \\udcff text \\x00 nul \\x1b\[31m", "raises one with control characters"),
    "no_text": End("error", "_Textless", "raises an exception that cannot be printed"),
    "base_exception": End("error", "BaseException: base", "raises BaseException"),
    "interrupt": End("error", "KeyboardInterrupt", "raises KeyboardInterrupt"),
    "exit_0": End("error", "SystemExit: 0", "leaves by sys.exit(0)"),
    "full_disk": End("error", "my own small disk", "raises OSError: a disk of its own is full"),
    "read_only": End("error", "my cache", "raises OSError: its cache is read-only"),
    "io_error": End("error", "I/O error", "raises OSError: input and output failed"),
    "recursion": End("error", "RecursionError", "calls itself without end"),
    "vanish_0": End("crashed", "exit code 0", "leaves by os._exit(0)"),
    "vanish_255": End("crashed", "exit code 255", "leaves by os._exit(255)"),
    "abort": End("crashed", "SIGABRT", "aborts"),
    "segfault": End("crashed", "SIGSEGV", "reads address 0"),
    "kill_itself": End("killed", "SIGKILL", "kills itself"),
    "kill_keeper": End("crashed", "watches over it was killed", "kills its parent process"),
    "kill_server": End("crashed", "server of processes died", "kills the fork server"),
    "hang": End("timeout", "time limit", "sleeps without end"),
    "spin": End("timeout", "time limit", "computes without end"),
    "deaf": End("timeout", "time limit", "ignores SIGTERM and sleeps"),
    "stop": End("timeout", "time limit", "stops itself with SIGSTOP"),
    "grow": End("oom_host", "more than its share", "takes memory without end"),
    "allocate": End("oom_host", "DefaultCPUAllocator", "allocates 40 TB"),
    "flood": End("ok error", "^$|No space left on device", "prints 60 MB a call, faster than a small disk bears"),
    "print_bytes": End("ok", "", "prints what is no text"),
    "child": End("ok", "", "leaves a child process"),
    "daemon": End("ok", "", "leaves a process in a session of its own"),
    "double_fork": End("ok", "", "leaves a process that has detached itself by two forks"),
    "leave_in_new_session": End("crashed", "exit code 0", "vanishes, and a fork of it goes on in a new session"),
    "thread": End("ok", "", "leaves a thread that sleeps"),
    "close_pipes": End("ok", "", "closes every descriptor but the standard ones"),
    "close_output": End("ok", "", "closes its standard output and error"),
    "rubbish": End("ok", "", "writes rubbish on every inherited descriptor"),
    "change_folder": End("ok", "", "changes its working directory"),
    "remove_folder": End("ok", "", "removes its working directory"),
    "umask": End("ok", "", "sets a umask of 777"),
    "small_files": End("error", "could not write results", "limits its files to 10 bytes"),
    "few_files": End("error crashed", ".", "limits its open files to 3"),
    "weights": End("error", WRITTEN_TO, "changes the weights"),
    "inputs": End("error", WRITTEN_TO, "changes the inputs"),
    "targets": End("error", WRITTEN_TO, "changes the targets"),
    "hook": End("error", "other outputs", "changes the outputs by a hook"),
    "no_gradients": End("error", "does not require grad", "switches gradients off"),
    "threads": End("ok", "", "sets 64 threads"),
    "nan_matrix": End("error", "NaN", "represents a matrix of NaN"),
    "infinite_matrix": End("error", "infinite", "represents a matrix of infinities"),
    "negative_matrix": End("error", "indefinite", "represents a negative matrix"),
    "short_matrix": End("error", "2769", "represents a matrix with a row too few"),
    "long_matrix": End("error", "5540", "represents a matrix of twice the size"),
    "column_matrix": End("error", r"\(2770, 1\)", "represents a diagonal with two dimensions"),
    "whole_numbers": End("error", "floating point", "represents a matrix of whole numbers"),
    "text_state": End("error", "'str' object", "has a text for a state"),
    "no_state": End("error", "'NoneType' object", "has no state"),
    "nan_step": End("error", "the step is NaN", "steps to NaN"),
    "short_step": End("error", r"\(2769,\)", "steps with an entry too few"),
    "no_step": End("error", "'NoneType' object", "has no step"),
    "huge_step": End("error", "infinite", "steps 1e300 times too far"),
    "step_in_place": End("ok", "", "writes to the gradient that it is given"),
}


@dataclass(frozen=True)
class Hostile(cb.FisherProbe):
    """A diagonal that misbehaves. ``does``: how."""

    does: str = "honest"

    def update(self, state: Any, batch: cb.Instance) -> Any:
        """Misbehave, and return the mean of the diagonal in every layer."""
        columns = collect(batch, self.fisher_type, self.mc_samples, self.seed)
        ACTS.get(self.does, _nothing)(batch)
        means = [(c.squares().mean() / batch.terms).expand(c.layer.size) for c in columns]
        return OPERATORS.get(self.does, Diagonal)(torch.cat(means).to(batch.dtype))

    def precondition(self, state: Any, gradient: Tensor) -> Tensor:
        """The damped inverse of the diagonal times the gradient, or what it misbehaves with."""
        step = STEPS.get(self.does)
        return step(gradient) if step else state.solve(gradient, self.damping)

    def operator(self, state: Any) -> Operator:
        """The diagonal."""
        return state


PROBES = [cb.probe("identity"), *(Hostile(does=name) for name in ENDS), cb.probe("diag")]
SUITE = cb.Suite("Hostile", {"default": cb.Preset([cb.problem("mlp", samples=16)], PROBES, dtype="float64")})
