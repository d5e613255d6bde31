"""The engine of a Ray cluster: an executor over Ray's futures."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any

from curvbench.engines import Observer, Work
from curvbench.engines.executor import ExecutorEngine, on_this_machine, shard_size
from curvbench.spec import Resources
from curvbench.words import one_line

PATIENCE = 10.0  # seconds in which a cluster has to answer


class RayExecutor(Executor):
    """Calls functions as tasks of Ray, each of which takes ``cpus`` and ``gpus`` of a node."""

    def __init__(self, cpus: float = 1.0, gpus: float = 0.0) -> None:
        self.cpus, self.gpus = cpus, gpus

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Begin a task. Its future ends as the task does; cancelling the future ends the task."""
        import ray  # an extra

        sent = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus)(fn).remote(*args, **kwargs)
        future: Future[Any] = sent.future()
        future.add_done_callback(lambda done: ray.cancel(sent) if done.cancelled() else None)
        return future


@dataclass(frozen=True)
class RayEngine:
    """Sends shards of up to ``size`` cells to the cluster at ``address``. None means a cluster of this machine alone.

    Ray gives the shards of a worker that died to another worker, three times at most.
    """

    address: str | None = None
    size: int = Resources().cells

    def run(self, work: Work, observe: Observer) -> None:
        """Run all cells.

        Raises:
            OSError: there is no cluster at the address.
        """
        import ray  # an extra

        here = self.address is None
        sent, size = (on_this_machine(work), shard_size(work, self.size)) if here else (work, self.size)
        needs = [cell.devices for cell in work.cells.values() if cell.device == "cuda"]
        threads = max(cell.threads * cell.devices for cell in work.cells.values()) * sent.jobs
        machine = {"num_cpus": work.jobs * threads, "include_dashboard": False} if here else {}
        before = signal.getsignal(signal.SIGTERM)
        try:
            _knock(self.address or "")
            ray.init(self.address or "local", log_to_driver=False, configure_logging=False, **machine)
        except (OSError, RuntimeError, ValueError) as error:
            raise OSError(f"--engine ray: no cluster answers at {self.address!r}: {one_line(error)}") from error
        try:
            signal.signal(signal.SIGTERM, before)  # Ray's own handler would end this process without a word
            ExecutorEngine(RayExecutor(threads, max(needs, default=0)), size).run(sent, observe)
        finally:
            ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError if nothing listens at a host and port, for which Ray itself would wait for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), PATIENCE).close()
