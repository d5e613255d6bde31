"""The engine for debugging: it runs every task in this process, in order, without a time limit."""

from __future__ import annotations

import contextlib
import time
from datetime import UTC, datetime

from curvbench import store
from curvbench.engines import Event, Observer, Work, blocked
from curvbench.engines.sharing import Sharing
from curvbench.engines.task import Outcome, Task, run_cell
from curvbench.identity import libraries
from curvbench.spec import Status


class InlineEngine:
    """Runs tasks in this process. Exceptions become rows; KeyboardInterrupt is raised again."""

    def run(self, work: Work, observe: Observer) -> None:
        """Run all tasks in order."""
        start = time.monotonic()
        libraries.watch(work.root)
        failed: dict[str, Outcome] = {}
        with Sharing(work) as sharing:
            for task in sharing.each():
                if work.budget is not None and time.monotonic() - start >= work.budget:
                    return
                observe(Event("started", task))
                started, answer = time.monotonic(), sharing.answer(task)
                outcome = answer or self._outcome(task, blocked(task, failed), observe)
                if task.kind == "reference" and outcome.status is not Status.OK:
                    failed[task.reference] = outcome
                sharing.finished(task, outcome)
                seconds = time.monotonic() - started
                observe(Event("finished", task, outcome=outcome, seconds=seconds, elsewhere=answer is not None))

    def _outcome(self, task: Task, obstacle: Outcome | None, observe: Observer) -> Outcome:
        started = datetime.now(UTC)
        if obstacle is not None:
            return task.fail(obstacle, started)
        try:
            with store.writing():
                log = open(task.log, "w")
            with log, contextlib.redirect_stderr(log):
                return run_cell(task, lambda text: observe(Event("reported", task, text)))
        except KeyboardInterrupt:
            task.fail(Outcome(Status.INTERRUPTED, "interrupted"), started)
            raise
