"""The engine on any ``concurrent.futures.Executor``: a pool of processes, Dask's, Ray's, Parsl's."""

from __future__ import annotations

from concurrent.futures import Executor, Future, wait

from curvbench.engines import Observer, Work
from curvbench.engines.shard import Gathering, pack, run_apart, split
from curvbench.engines.task import Outcome
from curvbench.spec import Status
from curvbench.words import one_line

TICK = 0.5  # seconds between two looks for fragments


class ExecutorEngine:
    """Sends shards of up to ``size`` cells to ``executor``; its workers see the same folders as this process.

    Each shard is carried out by the local engine in an interpreter of its own, so that a cell that dies takes no worker
    with it.
    """

    def __init__(self, executor: Executor, size: int = 8) -> None:
        self.executor, self.size = executor, size

    def run(self, work: Work, observe: Observer) -> None:
        """Run all cells; a budget is not kept, for what waits is the executor's."""
        gathering = Gathering(work, observe)
        for shards in split(work, self.size):
            futures = {self.executor.submit(run_apart, pack(shard)): shard for shard in shards}
            try:
                _await(futures, gathering)
            finally:
                for future in futures:
                    future.cancel()


def _await(futures: dict[Future[None], Work], gathering: Gathering) -> None:
    pending = set(futures)
    while pending:
        done, pending = wait(pending, TICK)
        gathering.collect()
        for future in done:
            error = one_line(future.exception())
            gathering.give_up(
                futures[future].cells, Outcome(Status.CRASHED, f"its worker ended without a result: {error}")
            )
