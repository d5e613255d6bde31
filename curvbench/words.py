"""Words of messages: names that a wrong name may have meant, texts on one line, times, how a process died."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable

from curvbench.spec.outcomes import Status


def near_misses(name: str, names: Iterable[str]) -> str:
    """``did you mean ...?`` with the nearest of ``names``; all of them if none is near."""
    names = sorted(names)
    near = difflib.get_close_matches(name, names, n=3)
    return f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(names) or 'none'}"


def one_line(text: object, limit: int | None = None) -> str:
    """A text on one line, cut to ``limit`` characters. None means no limit."""
    line = " ".join(str(text).split())
    return line if limit is None or len(line) <= limit else f"{line[: limit - 3]}..."


def printable(text: str) -> str:
    """A text that every file and terminal takes: control characters and halves of characters are written as escapes."""
    return "".join(c if c.isprintable() or c.isspace() else repr(c)[1:-1] for c in text)


def duration(seconds: float) -> str:
    """``4.1 s``, ``3 min 20 s`` or ``2 h 5 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def death(exit_code: int) -> tuple[Status, str]:
    """The status and the reason of a process that ended without a result."""
    if exit_code == -signal.SIGKILL:
        return Status.KILLED, "killed by SIGKILL, most often because memory ran out"
    if exit_code < 0:
        return Status.CRASHED, f"died of {signal.Signals(-exit_code).name}"
    return Status.CRASHED, f"left with exit code {exit_code} and without a result"


def refuse_type(name: str, value: object, kind: type, advice: str) -> None:
    """Raise TypeError if an argument is of another type than ``kind``; ``advice`` says what to give instead."""
    if not isinstance(value, kind):
        came = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        raise TypeError(f"{name} must be of type {kind.__name__}, got {came}: {advice}")
