from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest
from fake_measure import Fake, Toy

from curvbench.cli.display import Tally
from curvbench.engines import Event
from curvbench.engines.task import Outcome, Task
from curvbench.spec import Cell, Status

IDS = itertools.count()


def finished(kind: str, seconds: float, status: Status = Status.OK) -> Event:
    cell = Cell("s", Toy(), Fake(), 0)
    task = Task(kind, str(next(IDS)), cell, Path(), "r", None, {}, "fake_measure")  # type: ignore[arg-type]
    return Event("finished", task, outcome=Outcome(status, ""), seconds=seconds)


def test_the_time_left_takes_references_and_cells_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reference of an hour says nothing of cells that take a minute; two run at a time."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    tally = Tally(cells=12, references=2)
    tally.add(finished("reference", 3600))
    assert tally.seconds_left is None
    tally.add(finished("cell", 50))
    tally.add(finished("cell", 70, Status.ERROR))
    now = (3600 + 50 + 70) / 2
    assert tally.seconds_left == pytest.approx((10 * 60 + 3600) / 2)
    assert (tally.finished, tally.failed, tally.note) == (2, 1, "1 failed, about 35 min 0 s left")
    tally.add(finished("reference", 3600))
    now += 1800
    assert tally.seconds_left == pytest.approx(10 * 60 / 2)
