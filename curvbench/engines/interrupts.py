"""Interrupts that are not lost: Python drops the KeyboardInterrupt of a signal that comes inside a finalizer."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def heard() -> Iterator[Callable[[], None]]:
    """Inside, signals do what they did before and are noted; what is yielded raises KeyboardInterrupt once one was.

    Signals that end the process or are ignored are left alone, and outside the main thread, where Python handles none.
    """
    noted = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal noted
        noted = True
        before[number](number, frame)

    def check() -> None:
        if noted:
            raise KeyboardInterrupt

    before: dict[int, Callable[[int, FrameType | None], object]] = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        before = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in before:
        signal.signal(number, note)
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
