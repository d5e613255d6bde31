"""How a cell ends, the rows that it gives, and how it reports its progress."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

Report = Callable[[str], None]  # takes a line that says how far a cell is


class Status(StrEnum):
    """How a cell ended. Only ``ok`` rows carry values; rows of every other status carry a reason."""

    OK = "ok"
    SKIPPED = "skipped"
    UNSUPPORTED = "unsupported"
    DIVERGED = "diverged"
    ERROR = "error"
    OOM_HOST = "oom_host"
    OOM_DEVICE = "oom_device"
    TIMEOUT = "timeout"
    KILLED = "killed"
    CRASHED = "crashed"
    INTERRUPTED = "interrupted"


class Skip(Exception):
    """Raised by a problem that cannot be measured here, for example without its data set; the text is the reason."""


class Unsupported(Exception):
    """Raised by a probe that does not cover its instance; the text is the reason."""


class NoMatrix(Unsupported):
    """Raised by ``Probe.operator`` for a method whose step is not that of one matrix; the text is the reason."""


class Diverged(Exception):
    """Raised by a training whose numbers are no longer finite; the text says when."""


@dataclass(frozen=True)
class Row:
    """One measurement, or one reason why there is none. The store adds the cell's identity and environment.

    NaN and infinity are no measurements: an ``ok`` row with such a value becomes an ``error`` row without a value.
    """

    metric: str = ""
    value: float | None = None
    scope: str = "network"
    samples: Sequence[float] = ()
    method: str = ""
    status: Status = Status.OK
    reason: str = ""
    epoch: int | None = None
    step: int | None = None

    def __post_init__(self) -> None:
        numbers = [*([] if self.value is None else [self.value]), *self.samples]
        if self.status != Status.OK or all(map(math.isfinite, numbers)):
            return
        what = "not a number" if any(map(math.isnan, numbers)) else "infinite"
        changes = {"status": Status.ERROR, "value": None, "samples": (), "reason": f"what was measured is {what}"}
        for name, value in changes.items():
            object.__setattr__(self, name, value)
