"""What several runs in the same folder share: each task is begun by one of them, and its end is the end for all."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Self

from curvbench import store
from curvbench.engines import Work
from curvbench.engines.task import Outcome, Task
from curvbench.spec import Status
from curvbench.words import one_line

TICK = 0.25  # seconds between two looks at what other runs, or own children, have done


class Sharing:
    """Chooses the next task of a run, claims it, and knows the tasks that another run has done.

    Where locks do not work, a warning says so, and every task is begun here.
    """

    def __init__(self, work: Work) -> None:
        self._seen = work.seen
        self._tasks = work.tasks()
        self._answers: dict[str, Outcome] = {}
        try:
            self._claims: store.Claims | None = store.Claims(work.folder)
        except OSError as error:
            self._go_alone(error)

    def __enter__(self) -> Self:
        """Give all claims back at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        if self._claims:
            self._claims.close()

    def each(self) -> Iterator[Task]:
        """All tasks one after the other; those that another run has in flight come last."""
        waiting = self._tasks.copy()
        while waiting:
            if task := self.next(waiting):
                waiting.remove(task)
                yield task
            else:
                time.sleep(TICK)

    def next(self, waiting: Sequence[Task], running: Sequence[Task] = ()) -> Task | None:
        """The first of the ``waiting`` tasks that has an answer, or that can be begun and is now claimed.

        A cell cannot be begun while its reference is ``waiting`` or ``running``. None: other runs have all in flight.
        """
        pending = {task.reference for task in (*waiting, *running) if task.kind == "reference"}
        for task in waiting:
            is_ready = task.kind == "reference" or task.reference not in pending
            if self.answer(task) or (is_ready and self._take(task)):
                return task
        return None

    def answer(self, task: Task) -> Outcome | None:
        """How another run has ended a task since this run was planned; None if it has not.

        A reference has an answer when all its cells have one, because nobody needs it then.
        """
        if task.kind == "reference":
            of_reference = [
                other for other in self._tasks if other.kind == "cell" and other.reference == task.reference
            ]
            return Outcome() if all(map(self.answer, of_reference)) else None
        if task.id not in self._answers and store.stamp(task.fragment) != self._seen.get(task.id):
            status = store.fragment_status(task.fragment)
            if status not in (None, Status.INTERRUPTED):
                self._answers[task.id] = Outcome(status)
        return self._answers.get(task.id)

    def finished(self, task: Task, outcome: Outcome) -> None:
        """Give back the claim of a task. A reference that failed stays claimed, so that no other run tries it too."""
        if self._claims and (task.kind == "cell" or outcome.status is Status.OK):
            self._claims.release(_name(task))

    def _take(self, task: Task) -> bool:
        if self._claims is None:
            return True
        try:
            return self._claims.take(_name(task))
        except OSError as error:
            self._go_alone(error)
            return True

    def _go_alone(self, error: OSError) -> None:
        self._claims = None
        warnings.warn(
            f"locks do not work here, so that cells are not shared with other runs: {one_line(error)}", stacklevel=2
        )


def _name(task: Task) -> str:
    return f"{task.kind}-{task.id}"
