"""The keeper of a cell: a process between the fork server and the cell, which lets nothing outlive the cell.

Whatever a cell starts stays below its keeper, also if it detaches itself. The keeper ends it when the cell has ended,
or when the process that runs the cells has died, and then ends as the cell did.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from multiprocessing.connection import wait

from curvbench.engines import family
from curvbench.engines.news import Teller

_DEAF_TO = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def stay_behind(run: int, teller: Teller) -> None:
    """Fork: return in the new process, and stay behind in this one as its keeper, which never returns.

    ``run``: a descriptor that becomes readable when the process that runs the cells dies. The keeper tells it of the
    cell's end.

    Raises:
        OSError: no process can be forked.
    """
    family.adopt()
    os.setsid()
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in _DEAF_TO}
    ready, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # a handler, because only handled signals are told
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    cell = os.fork()
    if cell:
        _outlast(cell, run, ready, teller)
    signal.set_wakeup_fd(-1)
    for number, handler in (*handlers.items(), (signal.SIGCHLD, signal.SIG_DFL), (signal.SIGTERM, signal.SIG_DFL)):
        signal.signal(number, handler)
    for descriptor in (ready, wakeup):
        os.close(descriptor)
    os.setsid()


def _outlast(cell: int, run: int, ready: int, teller: Teller) -> None:
    """Wait for the end of the cell or of the run, end whatever is left, and end as the cell did."""
    status = 0
    try:
        while True:
            ended, status = os.waitpid(-1, os.WNOHANG)
            if ended == cell or (not ended and run in wait([run, ready])):
                break
            if not ended:
                os.read(ready, 4096)
    finally:
        if _has_children():
            family.end_descendants(os.getpid())
        teller.tell("ended")
        _end_as(status)


def _has_children() -> bool:
    """Whether a child is left; without one nothing is, because this process has adopted all that descend from it."""
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return False
    return True


def _end_as(status: int) -> None:
    """End with the exit code, or by the signal, with which a process of this status ended."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError):  # SIGKILL has no handler
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.WEXITSTATUS(status))
