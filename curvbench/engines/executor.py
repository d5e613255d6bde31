"""The engine on any ``concurrent.futures.Executor``: a pool of processes, Dask's, Ray's, Parsl's."""

from __future__ import annotations

import math
from concurrent.futures import Executor, Future, wait
from dataclasses import replace

from curvbench.engines import Observer, Work, usage
from curvbench.engines.local import SPARE
from curvbench.engines.shard import Gathering, pack, run_apart, split
from curvbench.engines.task import Outcome
from curvbench.spec import Status
from curvbench.words import one_line

TICK = 0.5  # seconds between two looks for fragments


class ExecutorEngine:
    """Sends shards of up to ``size`` cells to ``executor``, whose workers see the same folders as this process.

    The local engine runs each shard in a separate interpreter, so that a cell that dies ends no worker.
    """

    def __init__(self, executor: Executor, size: int = 8) -> None:
        self.executor, self.size = executor, size

    def run(self, work: Work, observe: Observer) -> None:
        """Run all cells. A budget is not kept, because the executor decides when waiting shards start."""
        gathering = Gathering(work, observe)
        for shards in split(work, self.size):
            futures = {self.executor.submit(run_apart, pack(shard)): shard for shard in shards}
            try:
                _await(futures, gathering)
            finally:
                for future in futures:
                    future.cancel()


def on_this_machine(work: Work) -> Work:
    """The work for ``work.jobs`` workers of this machine: each runs a cell at a time, in its share of the memory."""
    memory = SPARE * usage.available() / work.jobs if work.memory is None else work.memory
    return replace(work, jobs=1, memory=memory)


def shard_size(work: Work, most: int) -> int:
    """The number of cells of a shard, ``most`` or fewer, that keeps ``work.jobs`` workers busy."""
    return min(most, math.ceil(len(work.cells) / work.jobs))


def _await(futures: dict[Future[None], Work], gathering: Gathering) -> None:
    pending = set(futures)
    while pending:
        done, pending = wait(pending, TICK)
        gathering.collect()
        for future in done:
            reason = f"its worker ended without a result: {_error(future)}"
            gathering.give_up(futures[future].cells, Outcome(Status.CRASHED, reason))


def _error(future: Future[None]) -> str:
    return "cancelled" if future.cancelled() else one_line(future.exception())
