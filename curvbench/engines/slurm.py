"""The engine of a Slurm cluster, by submitit: arrays of jobs, each a shard of several cells."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from curvbench import store
from curvbench.engines import Observer, Work
from curvbench.engines.shard import Gathering, pack, run_shard, split
from curvbench.engines.task import Outcome
from curvbench.spec import Resources, Status
from curvbench.words import one_line

TICK = 2.0  # seconds between two looks for fragments and ended jobs
LAG = 10.0  # seconds by which a fragment, or the reason of an end, may follow the news that a job has ended
MARGIN = 3  # minutes that a job gets on top of the time limits of its cells
SIGNAL = 30  # seconds before its end at which a job is warned
ENDS = {
    "OUT_OF_MEMORY": Status.OOM_HOST,
    "TIMEOUT": Status.TIMEOUT,
    "CANCELLED": Status.INTERRUPTED,
    "PREEMPTED": Status.INTERRUPTED,
    "NODE_FAIL": Status.INTERRUPTED,
    "BOOT_FAIL": Status.INTERRUPTED,
}


@dataclass(frozen=True)
class SlurmEngine:
    """Submits shards and gathers their fragments. After a restart, jobs that still run are not submitted again."""

    resources: Resources = field(default_factory=Resources)
    name: str = "curvbench"

    def run(self, work: Work, observe: Observer) -> None:
        """Run all cells. On KeyboardInterrupt the jobs go on; the run's folder has their numbers.

        Raises:
            OSError: there is no Slurm here, or it refuses the jobs.
        """
        gathering = Gathering(work, observe)
        with store.alone(work.folder / "jobs"):  # another run must not send the same cells meanwhile
            submitted: Mapping[str, Sequence[str]] = store.read_jobs(work.folder)
            jobs = {job: cells for job, cells in submitted.items() if not _job(work, job).done()}
            running = {cell for cells in jobs.values() for cell in cells}
            missing = {identity: cell for identity, cell in work.cells.items() if identity not in running}
            if missing:
                jobs |= self._submit(replace(work, cells=missing), jobs)
        _gather(work, jobs, gathering)

    def script(self, work: Work) -> str:
        """The sbatch script of a full job, without the program that it runs. No Slurm is needed for it."""
        from submitit.slurm.slurm import _make_sbatch_string  # an executor would ask for srun

        return str(
            _make_sbatch_string("python ...", _jobs_folder(work), **self._parameters(work, self.resources.cells))
        )

    def _submit(self, work: Work, running: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
        """Submit leaders in one array, and followers in another that begins when the leaders have ended in any way."""
        jobs: dict[str, Sequence[str]] = {}
        for shards, size in zip(split(work, self.resources.cells), (1, self.resources.cells), strict=True):
            if not shards:
                continue
            with _users_words():
                executor = self._executor(work, size, after=next(iter(jobs), "").partition("_")[0])
                with executor.batch():
                    sent = [executor.submit(run_shard, pack(shard)) for shard in shards]
            jobs |= {str(job.job_id): list(shard.cells) for job, shard in zip(sent, shards, strict=True)}
            store.write_jobs(work.folder, {**running, **jobs})
        return jobs

    def _executor(self, work: Work, size: int, after: str = "") -> Any:
        import submitit  # an extra

        with _users_words():
            executor = submitit.SlurmExecutor(_jobs_folder(work), max_num_timeout=0)
        executor.update_parameters(**self._parameters(work, size, after))
        return executor

    def _parameters(self, work: Work, size: int, after: str = "") -> dict[str, Any]:
        """What a job of ``size`` cells asks for, in submitit's names."""
        resources, cells = self.resources, work.cells.values()
        gpus = max(resources.gpus, *(cell.devices if cell.device == "cuda" else 0 for cell in cells))
        return {
            "job_name": self.name,
            "time": resources.time or math.ceil((size + 1) * work.timeout / 60) + MARGIN,
            "mem": f"{math.ceil(resources.memory * 1024)}M",
            "cpus_per_task": work.jobs * max(cell.threads * cell.devices for cell in cells),
            "signal_delay_s": SIGNAL,
            "stderr_to_stdout": True,
            **({"partition": resources.partition} if resources.partition else {}),
            **({"dependency": f"afterany:{after}"} if after else {}),
            **({"gpus_per_node": gpus} if gpus else {}),
        }


def _gather(work: Work, jobs: Mapping[str, Sequence[str]], gathering: Gathering) -> None:
    """Wait for the fragments of all jobs; cells without a fragment end as their job did."""
    waiting = {job: list(cells) for job, cells in jobs.items()}
    while waiting and gathering.left:
        time.sleep(TICK)
        gathering.collect()
        for job in [job for job, cells in waiting.items() if not gathering.left.keys() & set(cells)]:
            del waiting[job]
        for job in [job for job in waiting if _job(work, job).done()]:
            gathering.give_up(waiting.pop(job), _end(work, job))


def _jobs_folder(work: Work) -> Path:
    """The folder of the jobs' scripts and logs; raises OSError if sbatch could not read its path."""
    folder = work.folder.resolve() / "jobs"
    if not str(folder).isprintable() or set("'\"") & set(str(folder)):
        raise OSError(f"--engine slurm: sbatch reads no path with quotes or newlines, got {str(work.folder)!r}")
    return folder


def _end(work: Work, job: str) -> Outcome:
    """How a job ended, which Slurm reports late."""
    time.sleep(LAG)
    state = str(_job(work, job).watcher.get_state(job, mode="force")).split()[0]
    return Outcome(ENDS.get(state, Status.CRASHED), f"its Slurm job {job} ended as {state}, see jobs/{job}_0_log.out")


def _job(work: Work, job: str) -> Any:
    import submitit

    return submitit.SlurmJob(_jobs_folder(work), job)


@contextmanager
def _users_words() -> Iterator[None]:
    """Within, a refusal of Slurm, or its absence, becomes an OSError of one line."""
    import submitit

    try:
        yield
    except (RuntimeError, submitit.core.utils.FailedJobError) as error:
        raise OSError(f"--engine slurm: {one_line(error)}") from error
