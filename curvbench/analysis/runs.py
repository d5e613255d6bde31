"""How far runs are: their state, the time that they took, what a person noted of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from curvbench import store
from curvbench.spec import Status
from curvbench.words import duration, one_line

COPIED = 60.0  # seconds between a command and the time of its record, beyond which the files are copies
FAILED = frozenset(Status) - {Status.OK, Status.UNSUPPORTED, Status.SKIPPED, Status.INTERRUPTED}


@dataclass(frozen=True)
class Progress:
    """The state of a run: how many cells were planned, how many have ended and failed, and seconds.

    ``elapsed``: from each command to the end of its last cell, or until now while it runs. ``left``: an estimate from
    the cells that ended since the last command. None means unknown.
    """

    planned: int
    ended: int
    failed: int
    is_running: bool
    elapsed: float | None = None
    left: float | None = None

    @property
    def state(self) -> str:
        """``done``, ``stopped at 3 of 8``, ``running, 3 of 8, about 2 min 5 s left``."""
        at = f"{self.ended:,} of {self.planned:,}"
        if self.is_running:
            return f"running, {at}" + (f", about {duration(self.left)} left" if self.left is not None else "")
        return "done" if self.ended >= self.planned else f"stopped at {at}"


def progress(
    record: Mapping[str, Any], endings: pd.DataFrame, recorded_at: datetime | None, is_running: bool, now: datetime
) -> Progress:
    """The state of a run from its record (``run.json``), ``store.endings``, and the time of the record's file.

    Files of a copy have times of their own: then a cell ends, as far as is known, when it started.
    """
    planned = {str(cell["id"]) for cell in record.get("cells", [])}
    ended = endings[endings["status"] != Status.INTERRUPTED]  # the same command continues it
    known = ended[ended["cell_id"].isin(planned)] if planned else ended
    failed = int(known["status"].isin(FAILED).sum())
    counts = {"planned": len(planned) or len(known), "ended": len(known), "failed": failed}
    begun = _begun(record)
    if not begun:
        return Progress(**counts, is_running=is_running)
    is_original = recorded_at is not None and abs((recorded_at - begun[-1]).total_seconds()) < COPIED
    at = endings["written_at"].where(is_original & endings["written_at"].notna(), endings["started_at"])
    elapsed = 0.0
    for start, end in zip(begun, [*begun[1:], None], strict=True):
        is_inside = (endings["started_at"] >= start) & ((endings["started_at"] < end) if end else True)
        last = now if is_running and end is None else at[is_inside].max() if is_inside.any() else start
        elapsed += max((last - start).total_seconds(), 0.0)
    since = int((known["started_at"] >= begun[-1]).sum())
    pace = (now - begun[-1]).total_seconds() / since if since else None
    left = pace * (counts["planned"] - counts["ended"]) if is_running and pace is not None else None
    return Progress(**counts, is_running=is_running, elapsed=elapsed, left=left)


def look(run: Path, now: datetime | None = None) -> Progress:
    """The state of a run's folder; raises as ``store.load_run``."""
    stamp = store.stamp(run / "run.json")
    recorded_at = datetime.fromtimestamp(stamp[0] / 1e9, UTC) if stamp else None
    return progress(
        store.read_run(run), store.endings(run), recorded_at, store.is_running(run), now or datetime.now(UTC)
    )


def row(name: str, record: Mapping[str, Any], notes: store.Notes, state: Progress | None) -> dict[str, Any]:
    """A row of the list of runs; the state None means that the run's rows cannot be read."""
    environment = record.get("environment", {})
    sha = str(environment.get("git_sha") or "")[:10]
    begun = _begun(record)
    return {
        "run": name,
        "suite": str(record.get("suite", "")),
        "label": notes.label,
        "note": notes.note,
        "tags": ", ".join(notes.tags),
        "state": state.state if state else "its rows cannot be read",
        "failed": state.failed if state else 0,
        "started": f"{begun[0]:%Y-%m-%d %H:%M}" if begun else "",
        "elapsed": duration(state.elapsed) if state and state.elapsed is not None else "",
        "commit": sha + "+" * bool(sha and environment.get("git_dirty")),
        "machine": one_line(environment.get("device_name") or environment.get("device") or ""),
        "archived": notes.archived,
    }


def _begun(record: Mapping[str, Any]) -> list[datetime]:
    """When the commands of a run were given, in order; without those whose time cannot be read."""
    times = []
    for command in record.get("commands", []):
        try:
            at = datetime.fromisoformat(str(command.get("started_at")))
        except ValueError:
            continue
        times.append(at if at.tzinfo else at.replace(tzinfo=UTC))
    return sorted(times)
