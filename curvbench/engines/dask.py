"""The engine of a Dask cluster, by distributed: a scheduler's address, or workers on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from curvbench.engines import Observer, Work
from curvbench.engines.executor import ExecutorEngine, on_this_machine, shard_size
from curvbench.spec import Resources
from curvbench.words import one_line

PATIENCE = 30.0  # seconds in which a scheduler has to answer


@dataclass(frozen=True)
class DaskEngine:
    """Sends shards of up to ``size`` cells to the scheduler at ``address``. None means workers on this machine.

    Dask gives the shards of a worker that died to another worker, three times at most.
    """

    address: str | None = None
    size: int = Resources().cells

    def run(self, work: Work, observe: Observer) -> None:
        """Run all cells.

        Raises:
            OSError: there is no scheduler at the address.
        """
        sent, size = work, self.size
        if self.address is None:
            sent, size = on_this_machine(work), shard_size(work, self.size)
        with self._client(work.jobs) as client:
            executor = client.get_executor(pure=False)  # a shard that was sent before is carried out again
            ExecutorEngine(executor, size).run(sent, observe)

    @contextmanager
    def _client(self, jobs: int) -> Iterator[Any]:
        from distributed import Client, LocalCluster  # an extra

        if self.address is None:
            with LocalCluster(n_workers=jobs, threads_per_worker=1, dashboard_address=None) as cluster:
                with Client(cluster) as client:
                    yield client
            return
        try:
            client = Client(self.address, timeout=PATIENCE)
        except (OSError, ValueError) as error:
            raise OSError(f"--engine dask: no scheduler answers at {self.address!r}: {one_line(error)}") from error
        with client:
            yield client
