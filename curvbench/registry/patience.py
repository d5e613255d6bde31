"""A limit to the time that a user's file may take while it is imported."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

SETTING = "CURVBENCH_IMPORT_SECONDS"  # for file systems on which imports are slow
SECONDS = 30.0  # of the processor
WAITING = 4  # times as long may pass on the clock, because a busy machine or a slow disk is no fault of the file
AGAIN = 1.0  # seconds until a file that caught the exception gets the next one


class TooSlow(BaseException):
    """A file took too long; no ``except Exception`` of the file may swallow that."""


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to end; a file that raises KeyboardInterrupt by itself raises another class."""


def interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """Handle a signal that asks the process to end."""
    raise Interrupted


def seconds() -> float:
    """The limit; raises ValueError if the environment sets another one that is no positive number."""
    text = os.environ.get(SETTING) or str(SECONDS)
    try:
        limit = float(text)
    except ValueError:
        limit = 0.0
    if not 0 < limit < 1e6:
        raise ValueError(f"{SETTING} must be a number of seconds above zero, got {text!r}")
    return limit


@contextmanager
def limited() -> Iterator[None]:
    """Raise ``TooSlow`` within after the limit; without one outside the main thread, and where a timer runs already."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getitimer(signal.ITIMER_REAL)[0]:
        yield
        return
    limits = {signal.ITIMER_PROF: seconds(), signal.ITIMER_REAL: WAITING * seconds()}
    before = {number: signal.signal(number, _stop) for number in (signal.SIGPROF, signal.SIGALRM)}
    for timer, limit in limits.items():
        signal.setitimer(timer, limit, AGAIN)
    try:
        yield
    finally:
        for timer in limits:
            signal.setitimer(timer, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def is_of_user(error: BaseException) -> bool:
    """Whether an error asks the process itself to end, as Ctrl-C does, so that nobody may take it for a fault."""
    if isinstance(error, Interrupted):
        return True
    return isinstance(error, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    taken = f"{seconds():g} s of the processor, or {WAITING * seconds():g} s of waiting"
    raise TooSlow(f"it takes longer than {taken}: do slow work in a problem or a probe, or raise {SETTING}")
