"""What ``curvbench check`` said of a run the last time, in a file beside the run's results."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from curvbench.store import files, record
from curvbench.words import one_line

FILE = "check.json"


@dataclass(frozen=True)
class Check:
    """Against which baseline a run was checked, when (ISO 8601), whether it passed, and what was said."""

    against: str
    checked_at: str
    passed: bool
    sentences: tuple[str, ...]


def write_check(run: Path, check: Check) -> None:
    """Keep what was said of a run; where its folder cannot be written nothing is kept."""
    with suppress(OSError):
        files.replace(run / FILE, (json.dumps(asdict(check), indent=1) + "\n").encode())


def read_check(run: Path) -> Check | None:
    """What was said of a run. None means that it was not checked, or, with a warning, that the file is damaged."""
    path = run / FILE
    if not os.path.lexists(path):
        return None
    try:
        known = record.check(files.read(path, inside=run))
        return Check(**known | {"sentences": tuple(known["sentences"])})
    except ValueError as error:
        files.set_aside(path, f"damaged: {one_line(error)}")
        return None
