from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from engines.test_engines import DEATHS, ENDS, cells, ends, gone, work
from fake_measure import Toy

from curvbench import store
from curvbench.engines import Event, Work, dask, ray
from curvbench.engines.dask import DaskEngine
from curvbench.engines.executor import ExecutorEngine
from curvbench.engines.ray import RayEngine
from curvbench.engines.shard import Gathering, pack, run_shard, split
from curvbench.engines.slurm import SlurmEngine
from curvbench.engines.task import Outcome
from curvbench.spec import Cell, Resources, Status

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]
slurm = pytest.mark.skipif(
    shutil.which("sinfo") is None or subprocess.run(["sinfo", "-h"], capture_output=True).returncode != 0,
    reason="no Slurm is up here",
)


@pytest.fixture(autouse=True)
def reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs of a cluster inherit the environment, not the path of this interpreter."""
    monkeypatch.setenv("PYTHONPATH", f"{TESTS.parent}:{TESTS}")


def test_a_leader_makes_the_reference_of_its_followers(tmp_path: Path) -> None:
    asked = work(tmp_path, cells("ok", "raise", "skip", "slow", seeds=(0, 1)), budget=3.0)
    leaders, followers = split(asked, 2)
    assert [list(shard.cells) for shard in leaders] == [["ok0"], ["ok1"]]
    assert [list(shard.cells) for shard in followers] == [
        ["raise0", "skip0"],
        ["slow0"],
        ["raise1", "skip1"],
        ["slow1"],
    ]
    assert all(shard.folder.is_absolute() and shard.budget is None for shard in leaders + followers)
    assert split(replace(asked, cells={}), 2) == ([], [])


def test_a_shard_is_carried_out_by_the_local_engine(tmp_path: Path) -> None:
    asked = work(tmp_path, cells("ok", "segv"))
    run_shard(pack(asked))
    assert store.cell_statuses(asked.folder) == {"ok0": Status.OK, "segv0": Status.CRASHED}


def test_what_never_began_is_given_up_without_a_row(tmp_path: Path) -> None:
    asked = work(tmp_path, cells("ok", "raise", "slow"))
    events: list[Event] = []
    gathering = Gathering(asked, events.append)
    task = gathering.left["raise0"]
    task.log.write_text("begun")
    gathering.give_up(["raise0", "slow0"], Outcome(Status.CRASHED, "its node is gone"))
    assert list(gathering.left) == ["ok0"]
    assert ends(store.load(asked.folder)) == {"raise0": ("crashed", "its node is gone")}
    assert [(e.task.id, e.outcome) for e in events] == [("raise0", Outcome(Status.CRASHED, "its node is gone"))]


def test_a_worker_that_dies_ends_its_shard_and_no_other(tmp_path: Path) -> None:
    class Lossy(Executor):
        """Loses whatever holds the cell raise0."""

        def submit(self, fn: Any, /, *args: Any, **keywords: Any) -> Future[Any]:
            future: Future[Any] = Future()
            shard = pickle.loads(pickle.loads(args[0])[1])
            if "raise0" in shard.cells:
                (shard.folder / "logs" / "raise0.log").write_text("begun")
                future.set_exception(RuntimeError("the worker\nis gone"))
            else:
                fn(*args)
                future.set_result(None)
            return future

    asked = work(tmp_path, cells("raise", problem=Toy("ok", samples=3)) | cells("ok"))
    ExecutorEngine(Lossy()).run(asked, lambda event: None)
    assert ends(store.load(asked.folder)) == {
        "raise0": ("crashed", "its worker ended without a result: the worker is gone"),
        "ok0": ("ok", ""),
    }


def began(asked: Work, cell: str) -> int:
    """Wait until a cell prints its child, and return the child's number."""
    log = asked.folder / "logs" / f"{cell}.log"
    while not (log.is_file() and "child" in log.read_text()):
        time.sleep(0.1)
    return int(log.read_text().split()[1])


def ancestors(pid: int) -> Iterator[int]:
    """The parent of a process, its parent, and so on to this process."""
    while pid not in (0, 1, os.getpid()):
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        yield pid


@pytest.mark.long
def test_a_cell_whose_worker_of_dask_dies_is_begun_on_another(tmp_path: Path) -> None:
    pytest.importorskip("distributed", reason="needs pip install 'curvbench[dask]'")
    asked = work(tmp_path, cells("hang", "raise", "kill"), timeout=10.0, jobs=2)
    events: list[Event] = []
    children: list[int] = []

    def kill() -> None:
        children.append(began(asked, "hang0"))
        (asked.folder / "logs" / "hang0.log").unlink()
        *_, worker, _ = ancestors(children[0])
        os.kill(worker, signal.SIGKILL)
        children.append(began(asked, "hang0"))

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    DaskEngine().run(asked, events.append)
    killer.join()
    expected = {"hang0": Status.TIMEOUT, "raise0": Status.ERROR, "kill0": Status.KILLED}
    assert store.cell_statuses(asked.folder) == expected
    assert {e.task.id: e.outcome.status for e in events if e.outcome} == expected
    assert len(set(children)) == 2 and all(map(gone, children))


def test_every_end_on_ray(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs pip install 'curvbench[ray]'")
    asked = work(tmp_path, cells("hang", "ok", "segv"), timeout=10.0, jobs=2)
    events: list[Event] = []
    RayEngine().run(asked, events.append)
    expected = {"hang0": Status.TIMEOUT, "ok0": Status.OK, "segv0": Status.CRASHED}
    assert store.cell_statuses(asked.folder) == expected
    assert {e.task.id: e.outcome.status for e in events if e.outcome} == expected


@pytest.mark.parametrize(("module", "package"), [(dask, "distributed"), (ray, "ray")])
def test_an_address_where_nothing_answers_is_one_line(
    module: ModuleType, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(package, reason="an extra")
    monkeypatch.setattr(module, "PATIENCE", 1.0)
    engine = DaskEngine if module is dask else RayEngine
    with pytest.raises(OSError, match=r"answers at '127\.0\.0\.1:9'"):
        engine("127.0.0.1:9").run(work(tmp_path, cells("ok")), lambda event: None)


SMALL = Resources(memory=2.0, cells=20)  # Slurm adds up what the processes of a cell share


def on_slurm(tmp_path: Path, wanted: dict[str, Cell], **settings: object) -> Work:
    """Work in a folder that sbatch can read: it takes no quote and no newline."""
    folder = store.new_run(tmp_path.resolve() / "results with a space" / "s", "0" * 12)
    return replace(work(tmp_path, wanted, **settings), folder=folder)


@pytest.mark.slurm
@slurm
def test_every_end_on_a_real_slurm(tmp_path: Path) -> None:
    """All ends in a few jobs, most of which misbehave; no shard ends another."""
    several = cells(*ENDS, *DEATHS, "hang") | cells("ok", seeds=range(1, 3))
    asked = on_slurm(tmp_path, several, timeout=10.0)
    events: list[Event] = []
    SlurmEngine(SMALL).run(asked, events.append)
    found = ends(store.load(asked.folder))
    expected = {f"{does}0": status for does, (status, _) in (ENDS | DEATHS).items()} | {"hang0": "timeout"}
    assert {cell: status for cell, (status, _) in found.items()} == expected | {f"ok{k}": "ok" for k in range(1, 3)}
    assert len(events) == len(several)


@pytest.mark.slurm
@slurm
def test_a_job_that_is_ended_ends_its_cell_alone(tmp_path: Path) -> None:
    """The job of one shard is cancelled while it runs; the cells of the others are measured."""
    asked = on_slurm(tmp_path, cells("hang", seeds=(0,)) | cells("ok", seeds=(1, 2)), timeout=300.0)

    def cancel() -> None:
        log = asked.folder / "logs" / "hang0.log"
        while not (log.is_file() and log.read_text()):
            time.sleep(0.5)
        (job,) = [job for job, held in store.read_jobs(asked.folder).items() if held == ["hang0"]]
        subprocess.run(["scancel", job], check=True)

    threading.Thread(target=cancel, daemon=True).start()
    SlurmEngine(replace(SMALL, time=10)).run(asked, lambda event: None)
    found = ends(store.load(asked.folder))
    assert found["hang0"][0] == "interrupted"
    assert found["ok1"] == found["ok2"] == ("ok", "")


LOGIN = """
import sys
sys.path[:0] = sys.argv[2:]
import pickle
from pathlib import Path
from curvbench.engines.slurm import SlurmEngine
from engines.test_shards import SMALL
SlurmEngine(SMALL).run(pickle.loads(Path(sys.argv[1]).read_bytes()), lambda event: None)
"""


@pytest.mark.slurm
@slurm
def test_the_login_node_goes_away_and_comes_back(tmp_path: Path) -> None:
    asked = on_slurm(tmp_path, cells("slow", "ok", "raise"), timeout=60.0)
    (tmp_path / "work").write_bytes(pickle.dumps(asked))
    arguments = [sys.executable, "-c", LOGIN, str(tmp_path / "work"), str(TESTS.parent), str(TESTS)]
    with subprocess.Popen(arguments) as login:
        while not len(store.read_jobs(asked.folder)) == 2:
            assert login.poll() is None
            time.sleep(0.1)
        login.send_signal(signal.SIGKILL)
    sent = store.read_jobs(asked.folder)
    SlurmEngine(SMALL).run(asked, lambda event: None)
    assert store.read_jobs(asked.folder) == sent, "nothing is sent twice"
    assert set(store.cell_statuses(asked.folder)) == {"slow0", "ok0", "raise0"}


def test_the_script_says_what_is_asked_for(tmp_path: Path) -> None:
    asked = on_slurm(tmp_path, {i: replace(c, threads=2) for i, c in cells("ok").items()}, timeout=600.0, jobs=3)
    text = SlurmEngine(Resources("fast", 2, memory=1.5, cells=4), "a-suite").script(asked)
    for line in ("--partition=fast", "--gpus-per-node=2", "--mem=1536M", "--time=53", "--cpus-per-task=6"):
        assert f"#SBATCH {line}\n" in text
    assert "#SBATCH --job-name=a-suite\n" in text


def test_a_path_that_sbatch_cannot_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="sbatch reads no path with quotes or newlines"):
        SlurmEngine(SMALL).script(work(tmp_path, cells("ok")))
