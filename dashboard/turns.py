"""Windows that follow the folder by themselves take turns, so that whoever clicks is answered first."""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

RESTING = 4.0  # how long windows wait after a page, in units of the time that it took
GONE = 15.0  # seconds after which a window that asks no more is closed
_next = 0.0  # the time from which on a window may have its turn
_waiting: dict[Hashable, float] = {}  # windows, with the time when they last asked
_served: set[Hashable] = set()  # windows that had a turn before some that still wait
_lock = threading.Lock()


@contextmanager
def at_work() -> Iterator[None]:
    """Within, a page is made; for a while after it no window has its turn."""
    global _next
    begun = time.monotonic()
    try:
        yield
    finally:
        _next = time.monotonic() + RESTING * (time.monotonic() - begun)


def has_come(window: Hashable) -> bool:
    """Whether it is a window's turn, upon which it goes to work; none has a second one while others wait for a first.

    Windows ask at times of their own, so that a queue would have to wait for its first one to ask.
    """
    global _next
    now = time.monotonic()
    with _lock:
        _waiting[window] = now
        for closed in [one for one, asked in _waiting.items() if now - asked > GONE]:
            del _waiting[closed]
        if _served.issuperset(_waiting):
            _served.clear()
        if now < _next or window in _served:
            return False
        _served.add(window)
        del _waiting[window]
        _next = now + GONE  # until the page is made
        return True
