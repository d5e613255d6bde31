"""The engine of a Slurm cluster, by submitit: arrays of jobs, each of which is a shard of several cells."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from curvbench import store
from curvbench.engines import Observer, Work
from curvbench.engines.shard import Gathering, pack, run_shard, split
from curvbench.engines.task import Outcome
from curvbench.spec import Resources, Status
from curvbench.words import one_line

TICK = 2.0  # seconds between two looks for fragments and ended jobs
LAG = 10.0  # seconds that a fragment, or the reason of an end, may come later than the word that a job has ended
MARGIN = 3  # minutes that a job gets above what its cells may take
SIGNAL = 30  # seconds before its end at which a job is told
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
    """Submits shards and gathers their fragments. It may end and come back: jobs that still run are not sent again."""

    resources: Resources = field(default_factory=Resources)
    name: str = "curvbench"

    def run(self, work: Work, observe: Observer) -> None:
        """Run all cells. On KeyboardInterrupt the jobs go on; their numbers stand in the run's folder.

        Raises:
            OSError: there is no Slurm here, or it refuses the jobs.
        """
        gathering = Gathering(work, observe)
        known: Mapping[str, Sequence[str]] = store.read_jobs(work.folder)
        jobs = {job: cells for job, cells in known.items() if not _job(work, job).done()}
        sent = {cell for cells in jobs.values() for cell in cells}
        wanted = {identity: cell for identity, cell in work.cells.items() if identity not in sent}
        if wanted:
            jobs |= self._submit(replace(work, cells=wanted), jobs)
        _gather(work, jobs, gathering)

    def script(self, work: Work) -> str:
        """What sbatch would be given for a full job, without what is run in it."""
        return str(self._executor(work, self.resources.cells)._make_submission_file_text("python ...", "ID"))

    def _submit(self, work: Work, running: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
        """Leaders in one array, followers in another that begins when those have ended, however they did."""
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

        asked = self.resources
        if not str(work.folder.resolve()).isprintable() or set("'\"") & set(str(work.folder.resolve())):
            raise OSError(f"--engine slurm: sbatch reads no path with quotes or newlines, got {str(work.folder)!r}")
        with _users_words():
            executor = submitit.SlurmExecutor(work.folder.resolve() / "jobs", max_num_timeout=0)
        cells = work.cells.values()
        gpus = max(asked.gpus, *(cell.devices if cell.device == "cuda" else 0 for cell in cells))
        more = {"gpus_per_node": gpus} if gpus else {}
        executor.update_parameters(
            job_name=self.name,
            time=asked.time or math.ceil((size + 1) * work.timeout / 60) + MARGIN,
            mem=f"{math.ceil(asked.memory * 1024)}M",
            cpus_per_task=work.jobs * max(cell.threads * cell.devices for cell in cells),
            signal_delay_s=SIGNAL,
            stderr_to_stdout=True,
            **({"partition": asked.partition} if asked.partition else {}),
            **({"dependency": f"afterany:{after}"} if after else {}),
            **more,
        )
        return executor


def _gather(work: Work, jobs: Mapping[str, Sequence[str]], gathering: Gathering) -> None:
    """Wait for the fragments of all jobs; what a job leaves without one ends as the job did."""
    waiting = {job: list(cells) for job, cells in jobs.items()}
    while waiting and gathering.left:
        time.sleep(TICK)
        gathering.collect()
        for job in [job for job, cells in waiting.items() if not gathering.left.keys() & set(cells)]:
            del waiting[job]
        for job in [job for job in waiting if _job(work, job).done()]:
            gathering.give_up(waiting.pop(job), _end(work, job))


def _end(work: Work, job: str) -> Outcome:
    """How a job ended; the word of it comes late."""
    time.sleep(LAG)
    state = str(_job(work, job).watcher.get_state(job, mode="force")).split()[0]
    return Outcome(ENDS.get(state, Status.CRASHED), f"its Slurm job {job} ended as {state}, see jobs/{job}_0_log.out")


def _job(work: Work, job: str) -> Any:
    import submitit

    return submitit.SlurmJob(work.folder.resolve() / "jobs", job)


@contextmanager
def _users_words() -> Iterator[None]:
    """Refusals of Slurm, and its absence, in one line."""
    import submitit

    try:
        yield
    except (RuntimeError, submitit.core.utils.FailedJobError) as error:
        raise OSError(f"--engine slurm: {one_line(error)}") from error
