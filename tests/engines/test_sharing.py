"""Several runs in one folder: each task is begun once, whoever dies."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from engines.test_engines import cells, ends, run, work
from fake_measure import Toy
from filelock import FileLock

from curvbench import store
from curvbench.engines import Engine, Event, Work
from curvbench.engines.inline import InlineEngine
from curvbench.engines.local import LocalEngine
from curvbench.engines.sharing import Sharing
from curvbench.engines.task import Outcome
from curvbench.spec import Row, Status
from curvbench.store import claims

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]
OTHER = """
import pickle, sys
from pathlib import Path
from curvbench.engines.local import LocalEngine
if __name__ == "__main__":
    def say(event):
        print(event.kind, event.task.kind, event.task.id, event.elsewhere, flush=True)
    LocalEngine().run(pickle.loads(Path(sys.argv[1]).read_bytes()), say)
"""


def other(asked: Work, folder: Path) -> subprocess.Popen[str]:
    """Another process that runs the same work."""
    (folder / "work").write_bytes(pickle.dumps(asked))
    (folder / "other.py").write_text(OTHER)
    environment = os.environ | {"PYTHONPATH": f"{TESTS.parent}:{TESTS}"}
    command = [sys.executable, str(folder / "other.py"), str(folder / "work")]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def wait_for(process: subprocess.Popen[str], words: str) -> None:
    assert process.stdout is not None
    assert any(words in line for line in process.stdout)


def test_two_processes_begin_every_task_once_and_leave_nothing_behind(tmp_path: Path) -> None:
    both = cells("slow", "ok", "raise", seeds=(0, 1, 2)) | cells("segv", problem=Toy(samples=3))
    asked = work(tmp_path, both)
    with other(asked, tmp_path) as process:
        wait_for(process, "started")
        frame, events = run(LocalEngine(), asked)
        assert process.stdout is not None
        theirs = [line.split() for line in process.stdout]
    here = {e.task.id for e in events if e.kind == "finished" and e.task.kind == "cell" and not e.elsewhere}
    there = {line[2] for line in theirs if line[:2] == ["finished", "cell"] and line[3] == "False"}
    assert here | there == set(both) and not here & there
    assert here and there
    assert len(ends(frame)) == len(both)
    assert sum(e.kind == "finished" and e.task.kind == "cell" for e in events) == len(both), "all are done for both"
    assert not list(asked.folder.rglob("*.lock")) and not (asked.folder / "claims").exists()


def test_what_a_killed_process_had_in_flight_is_taken_at_once(tmp_path: Path) -> None:
    asked = work(tmp_path, cells("slow"), timeout=60.0)
    asleep = replace(asked, cells={"slow0": replace(asked.cells["slow0"], probe=cells("hang")["hang0"].probe)})
    with other(asleep, tmp_path) as process:
        wait_for(process, "reported cell slow0")
        process.send_signal(signal.SIGKILL)
    assert list((asked.folder / "claims").iterdir())
    start = time.monotonic()
    frame, _ = run(LocalEngine(), asked)
    assert ends(frame) == {"slow0": ("ok", "")}
    assert time.monotonic() - start < 10
    assert not (asked.folder / "claims").exists()


@pytest.mark.parametrize("engine", [InlineEngine(), LocalEngine()], ids=["inline", "local"])
def test_a_cell_of_another_run_comes_last_and_its_end_is_taken_over(engine: Engine, tmp_path: Path) -> None:
    asked = work(tmp_path, cells("raise", "ok"))
    theirs = store.Claims(asked.folder)
    assert theirs.take("cell-raise0")
    (task,) = (task for task in asked.tasks() if task.id == "raise0")
    events: list[Event] = []

    def observe(event: Event) -> None:
        events.append(event)
        if (event.kind, event.task.id) == ("finished", "ok0"):
            task.write([Row(status=Status.SKIPPED, reason="no data")], datetime.now(UTC))
            theirs.close()

    engine.run(asked, observe)
    last = events[-1]
    assert (last.kind, last.task.id, last.elsewhere) == ("finished", "raise0", True)
    assert last.outcome is not None and last.outcome.status is Status.SKIPPED


def test_a_reference_that_failed_is_not_tried_by_another_run(tmp_path: Path) -> None:
    asked = work(tmp_path, cells("ok", "raise"))
    tasks = asked.tasks()
    with Sharing(asked) as first, Sharing(asked) as second:
        reference = first.next(tasks)
        assert reference is not None and reference.kind == "reference"
        first.finished(reference, Outcome(Status.ERROR, "its reason"))
        assert second.next(tasks) is None
        for task in tasks[1:]:
            task.fail(Outcome(Status.ERROR, "reference: its reason"), datetime.now(UTC))
        assert second.next(tasks) == reference
        assert second.answer(reference) == Outcome(), "nobody needs it any more"


class Refused(FileLock):
    """A lock on a file system without locks."""

    def acquire(self, *_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOLCK, "No locks available")


class Empty(FileLock):
    """A lock on a file system that takes every lock twice."""

    def acquire(self, *_: Any, **__: Any) -> Any:
        return None


@pytest.mark.parametrize("broken", [Refused, Empty])
def test_where_locks_do_not_work_a_run_says_so_and_goes_on(
    broken: type[FileLock], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "FileLock", broken)
    with pytest.warns(UserWarning, match="locks do not work here, so that .* are not shared"):
        frame, _ = run(LocalEngine(), work(tmp_path, cells("ok")))
    assert ends(frame) == {"ok0": ("ok", "")}
    with store.alone(tmp_path / "runs"):
        assert not store.in_use(tmp_path / "runs")


def test_a_second_measurement_is_told_if_it_differs_and_the_first_stays(tmp_path: Path) -> None:
    (_, task) = work(tmp_path, cells("ok")).tasks()
    rows = [Row("error.relative", 0.25), Row("time.wall", 1.0, "step"), Row("flops.counted", 8.0, "step")]
    again = [Row("error.relative", 0.25), Row("time.wall", 2.0, "step"), Row("flops.counted", 8.0, "step")]
    other = [Row("error.relative", 0.26), Row("time.wall", 2.0, "step"), Row("flops.counted", 9.0, "step")]
    now = datetime.now(UTC)
    assert task.write(rows, now) == task.write(again, now) == Outcome()
    told = task.write(other, now)
    assert told.status is Status.OK
    assert told.reason.endswith(": error.relative network 0.25 and 0.26; flops.counted step 8 and 9")
    assert set(store.load(task.folder)["value"]) == {0.25, 1.0, 8.0}
