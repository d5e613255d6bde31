"""How a cell ends, and the rows that it gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """How a cell ended. Only ``ok`` rows carry values; every other one carries a reason."""

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
    """Raised by a problem that cannot be measured here (a data set that is absent); the text is the reason."""


class Unsupported(Exception):
    """Raised by a probe that does not cover what it was given; the text is the reason."""


class Diverged(Exception):
    """Training has left the finite numbers; the text says when."""


@dataclass(frozen=True)
class Row:
    """One measurement, or one reason why there is none. The store adds the cell's identity and environment.

    NaN and infinity are no measurement: a row that would be ``ok`` with one is an ``error`` without a value.
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
