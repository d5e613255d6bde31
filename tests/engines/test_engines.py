from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from multiprocessing import forkserver
from pathlib import Path

import pandas as pd
import pytest
from fake_measure import Fake, Toy, reference_identity

from curvbench import store
from curvbench.engines import Engine, Event, Work, local, server, usage
from curvbench.engines.family import watched
from curvbench.engines.guard import Guard
from curvbench.engines.inline import InlineEngine
from curvbench.engines.local import LocalEngine
from curvbench.engines.task import Outcome, run_cell
from curvbench.spec import Cell, Status

pytestmark = pytest.mark.slow

ENVIRONMENT = {"git_sha": None, "git_dirty": None, "torch_version": "2", "device_name": "a cpu", "code": "0" * 12}
ENDS = {
    "ok": ("ok", ""),
    "raise": ("error", "KeyError: 'a key\\nin two lines'"),
    "skip": ("skipped", "no data: get it with curvbench data mnist"),
    "unsupported": ("unsupported", "convolutions are not covered"),
    "diverge": ("diverged", "the loss is nan"),
    "memory": ("oom_host", "MemoryError: no more"),
    "allocate": ("oom_host", "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory"),
    "leave": ("error", "SystemExit: 0"),
    "nan": ("error", "what was measured is not a number"),
    "empty": ("error", "RuntimeError: the cell was measured without a single row"),
    "full": ("error", "OSError: [Errno 28] No space left on device: a small disk of my own"),
    "surrogate": ("error", "RuntimeError: half \\udcff of a character, \\x1b[31m"),
}
DEATHS = {
    "exit": ("crashed", "exit code 3"),
    "vanish": ("crashed", "exit code 0"),
    "segv": ("crashed", "SIGSEGV"),
    "kill": ("killed", "SIGKILL"),
    "interrupt": ("error", "KeyboardInterrupt"),
    "rubbish": ("ok", ""),
    "close": ("ok", ""),
    "move": ("ok", ""),
    "small_files": ("error", "its process could not write results: [Errno 27] File too large"),
    "slay_keeper": ("crashed", "the process that watches over it was killed while it ran"),
}


def cells(*does: str, problem: Toy | None = None, seeds: Sequence[int] = (0,)) -> dict[str, Cell]:
    made = [Cell("s", problem or Toy(), Fake(d), seed) for d in does for seed in seeds]
    return {f"{cell.probe.does}{cell.seed}": cell for cell in made}  # type: ignore[attr-defined]


def work(tmp_path: Path, cells: dict[str, Cell], **settings: object) -> Work:
    folder = store.new_run(tmp_path / "re'sults \n x" / "s", "0" * 12)
    return Work(cells, folder, ENVIRONMENT, reference_identity, measure="fake_measure", **settings)  # type: ignore[arg-type]


def run(engine: Engine, work: Work) -> tuple[pd.DataFrame, list[Event]]:
    events: list[Event] = []
    engine.run(work, events.append)
    return store.load(work.folder), events


def ends(frame: pd.DataFrame) -> dict[str, tuple[str, str]]:
    first = frame.drop_duplicates("cell_id")
    return {
        cell: (status, reason) for cell, status, reason in zip(first.cell_id, first.status, first.reason, strict=True)
    }


@pytest.mark.parametrize("engine", [InlineEngine(), LocalEngine()], ids=["inline", "local"])
def test_every_exception_becomes_a_row_and_the_others_go_on(engine: Engine, tmp_path: Path) -> None:
    frame, events = run(engine, work(tmp_path, cells(*ENDS)))
    assert ends(frame) == {f"{does}0": end for does, end in ENDS.items()}
    assert [e.outcome.status for e in events if e.kind == "finished" and e.task.kind == "cell" and e.outcome] == [
        status for status, _ in ENDS.values()
    ]
    assert frame[frame.status != "ok"]["value"].isna().all()


def test_a_dead_process_becomes_a_row_and_the_others_go_on(tmp_path: Path) -> None:
    frame, _ = run(LocalEngine(), work(tmp_path, cells(*DEATHS, "ok"), jobs=2))
    found = ends(frame)
    assert found.pop("ok0") == ("ok", "")
    for does, (status, words) in DEATHS.items():
        assert found[f"{does}0"][0] == status
        assert words in found[f"{does}0"][1]


def test_the_time_limit_ends_a_cell_and_its_children(tmp_path: Path) -> None:
    asked = work(tmp_path, cells("hang", "ok"), timeout=8.0)
    frame, _ = run(LocalEngine(), asked)
    assert ends(frame)["hang0"] == ("timeout", "not finished within the time limit of 8 s")
    assert ends(frame)["ok0"] == ("ok", "")
    grandchild = int((asked.folder / "logs" / "hang0.log").read_text().split()[1])
    assert gone(grandchild)


def gone(pid: int) -> bool:
    """Whether a process is dead (a zombie is), within five seconds."""
    for _ in range(50):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
            os.kill(pid, 0)
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.1)
    return False


def test_logs_take_what_a_cell_prints_and_its_traceback(tmp_path: Path) -> None:
    asked = work(tmp_path, cells("ok", "raise"))
    run(LocalEngine(), asked)
    assert (asked.folder / "logs" / "ok0.log").read_text() == "said on standard output\n"
    assert "Traceback" in (asked.folder / "logs" / "raise0.log").read_text()


@pytest.mark.parametrize("engine", [InlineEngine(), LocalEngine()], ids=["inline", "local"])
@pytest.mark.parametrize(
    ("does", "end"),
    [("raise", ("error", "reference: KeyError: 'a key\\nin two lines'")), ("skip", ENDS["skip"])],
)
def test_a_reference_that_fails_is_the_reason_of_its_cells(
    engine: Engine, does: str, end: tuple[str, str], tmp_path: Path
) -> None:
    bad = {f"bad{k}": cell for k, cell in enumerate(cells("ok", "raise", problem=Toy(does)).values())}
    frame, _ = run(engine, work(tmp_path, bad | cells("ok")))
    assert ends(frame) == {"bad0": end, "bad1": end, "ok0": ("ok", "")}


def test_a_reference_that_dies_is_the_reason_of_its_cells(tmp_path: Path) -> None:
    frame, _ = run(LocalEngine(), work(tmp_path, cells("ok", problem=Toy("segv"))))
    status, reason = ends(frame)["ok0"]
    assert status == "crashed"
    assert reason.startswith("reference: died of SIGSEGV")


@pytest.mark.parametrize("jobs", [1, 3])
def test_one_reference_for_the_cells_of_a_problem_and_seed(jobs: int, tmp_path: Path) -> None:
    asked = work(tmp_path, cells("ok", "raise", "unsupported", seeds=(0, 1)), jobs=jobs)
    _, events = run(LocalEngine(), asked)
    started = [event.task for event in events if event.kind == "started"]
    assert sorted(task.id for task in started if task.kind == "reference") == ["plain-0", "plain-1"]
    for reference in ("plain-0", "plain-1"):
        assert (asked.folder / "references" / reference / "times").read_text() == "prepared\n"


@pytest.mark.parametrize("engine", [InlineEngine(), LocalEngine()], ids=["inline", "local"])
def test_blocks_that_a_cell_keeps_stand_beside_its_fragment(engine: Engine, tmp_path: Path) -> None:
    asked = work(tmp_path, cells("ok", "keep"))
    frame, _ = run(engine, asked)
    assert set(ends(frame)) == {"ok0", "keep0"}, "they are no fragments"
    kept = store.read_blocks(asked.folder, "keep0")
    assert kept is not None and kept.exact.tolist() == [[1, 0], [0, 1]]
    assert store.read_blocks(asked.folder, "ok0") is None
    assert [path.name for path in (asked.folder / "blocks").iterdir()] == ["keep0.npz"]


def test_reports_reach_the_observer(tmp_path: Path) -> None:
    _, events = run(LocalEngine(), work(tmp_path, cells("ok")))
    assert [e.text for e in events if e.kind == "reported"] == ["training", "measuring"]


@pytest.mark.parametrize("engine", [InlineEngine(), LocalEngine()], ids=["inline", "local"])
def test_nothing_starts_over_budget(engine: Engine, tmp_path: Path) -> None:
    asked = work(tmp_path, {f"{k}": cell for k in range(9) for cell in cells("slow").values()}, budget=0.5)
    frame, _ = run(engine, asked)
    assert len(frame.cell_id.unique()) < 9


def test_what_cannot_be_sent_to_a_process_is_an_error_of_its_cell(tmp_path: Path) -> None:
    class Local(Fake):
        pass

    odd = {"odd": Cell("s", Toy(), Local(), 0)}
    frame, _ = run(LocalEngine(), work(tmp_path, cells("ok") | odd))
    assert ends(frame)["ok0"] == ("ok", "")
    assert ends(frame)["odd"][0] == "error"
    assert "pickle" in ends(frame)["odd"][1]


@pytest.mark.parametrize("engine", [InlineEngine(), LocalEngine()], ids=["inline", "local"])
def test_an_interrupt_keeps_what_is_finished_and_gets_out(engine: Engine, tmp_path: Path) -> None:
    asked = work(tmp_path, cells("ok", "slow", "raise"))

    def observe(event: Event) -> None:
        if event.kind == "reported" and event.task.id == "slow0":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.run(asked, observe)
    assert ends(store.load(asked.folder)) == {"ok0": ("ok", ""), "slow0": ("interrupted", "interrupted")}


def test_a_share_is_as_large_as_jobs_leave_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "available", lambda: 3e9)
    frame, _ = run(LocalEngine(), work(tmp_path, cells("grow"), jobs=2))
    status, reason = ends(frame)["grow0"]
    assert status == "oom_host"
    assert reason.endswith("more than its share of 1.43 GB: fewer --jobs leave it more")


def test_a_cell_that_outgrows_its_share_is_ended(tmp_path: Path) -> None:
    asked = work(tmp_path, cells("grow", "ok"), memory=1.5e9, jobs=2)
    frame, _ = run(LocalEngine(), asked)
    status, reason = ends(frame)["grow0"]
    assert status == "oom_host"
    assert reason.endswith("GB, more than its share of 1.50 GB")
    assert 1.5 < float(reason.split()[1]) < 4.0
    assert ends(frame)["ok0"] == ("ok", "")


def test_memory_of_a_process_is_its_own_and_its_childrens() -> None:
    program = "import os, time; x = bytearray(os.urandom(1000)) * 50000; print(1, flush=True); time.sleep(60)"
    before = usage.used(os.getpid())
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline()
        alone, all_of_us = usage.used(child.pid), usage.used(os.getpid())
        child.kill()
    assert 5e7 < alone < 9e7
    assert all_of_us - before > 4e7
    assert usage.used(child.pid) == 0
    assert 0 < usage.available() < float("inf")


def test_pages_that_a_fork_shares_count_once() -> None:
    program = """if 1:
        import os, sys
        x = bytearray(os.urandom(1000)) * 80000
        if os.fork() and os.fork():
            print(1, flush=True)
        sys.stdin.read()
        """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], **pipes) as parent:  # type: ignore[call-overload]
        assert parent.stdout.readline()
        within, beyond = (usage.excess_below(parent.pid, share) for share in (1.2e8, 1e7))
    assert within == 0
    assert 3e7 < beyond < 9e7  # two thirds of what three processes share


def test_memory_of_a_process_that_ends_meanwhile_is_no_error() -> None:
    for _ in range(100):
        with subprocess.Popen(["true"]) as child:
            end = threading.Thread(target=child.wait)
            end.start()
            while end.is_alive():
                assert usage.used(child.pid) >= 0
            end.join()


def test_a_job_of_slurm_and_a_container_bound_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "10")
    assert usage.available() == 10 * 2**20
    for place, limit, used in (("", "max", 0), ("a", 3000, 1000), ("a/b", 9000, 0)):
        (tmp_path / place).mkdir(exist_ok=True)
        (tmp_path / place / "memory.max").write_text(f"{limit}\n")
        (tmp_path / place / "memory.current").write_text(f"{used}\n")
    (tmp_path / "a" / "memory.stat").write_text("anon 1\ninactive_file 500\n")
    old = tmp_path / "memory" / "c"
    old.mkdir(parents=True)
    (old / "memory.limit_in_bytes").write_text("1800\n")
    (old / "memory.usage_in_bytes").write_text("100\n")
    process = tmp_path / "proc"
    (process / "self").mkdir(parents=True)
    monkeypatch.setattr(usage, "CGROUP", tmp_path)
    monkeypatch.setattr(usage, "PROC", process)
    for groups, free in (("0::/a/b", 2500), ("0::/outside", 10 * 2**20), ("0::/a\n4:cpu,memory:/c/d", 1700)):
        (process / "self" / "cgroup").write_text(f"{groups}\n9:name=systemd:/\n")
        assert usage.available() == free


PARENT = """
import sys
import threading
sys.path[:0] = sys.argv[2:]
from pathlib import Path
from engines.test_engines import cells, work
from curvbench.engines.local import LocalEngine
asked = work(Path(sys.argv[1]), cells("ok", "stop"))
print(asked.folder.name, flush=True)
LocalEngine().run(asked, lambda event: None)
"""


def test_a_killed_parent_leaves_results_and_no_process(tmp_path: Path) -> None:
    """Not even of a cell that can run no code of its own, nor of that cell's children."""
    tests = Path(__file__).parents[1]
    arguments = [sys.executable, "-c", PARENT, str(tmp_path), str(tests.parent), str(tests)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None and parent.stdout.readline()
        pids: list[str] = []
        for _ in range(600):
            logs = list(tmp_path.rglob("stop0.log"))
            pids = logs[0].read_text().split()[1:] if logs else []
            if len(pids) == 2:
                break
            time.sleep(0.1)
        parent.kill()
    assert len(pids) == 2 and all(gone(int(pid)) for pid in pids)
    assert ends(store.load(tmp_path)) == {"ok0": ("ok", "")}


def test_a_fork_server_that_still_imports_is_no_orphan(tmp_path: Path) -> None:
    """Its first module takes a minute: only the guard can end it before."""
    (tmp_path / "torch.py").write_text("import time; time.sleep(60)")
    command = [sys.executable, "-c", SERVER]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        server = int(parent.stdout.readline())
        os.kill(server, 0)
        parent.kill()
    assert gone(server)


SERVER = """
import time
from curvbench.engines.guard import Guard
from curvbench.engines.server import Server
server = Server("json", Guard())
server.ensure()
print(server.pid, flush=True)
time.sleep(60)
"""


def test_the_guard_kills_what_is_left() -> None:
    assert watched(["+1\n", "+2\n", "-1\n", "+/tmp/a b\n", "-9\n"]) == ["2", "/tmp/a b"]
    sleepers = [subprocess.Popen(["sleep", "600"], start_new_session=True) for _ in range(2)]
    guard = Guard()
    for sleeper in sleepers:
        guard.watch(sleeper.pid)
    guard.release(sleepers[0].pid)
    guard._process.kill()
    guard._process.wait()
    guard.revive()
    guard.close()
    assert sleepers[1].wait(10) == -signal.SIGKILL
    assert sleepers[0].poll() is None
    sleepers[0].kill()
    sleepers[0].wait()


def test_a_second_interrupt_ends_the_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell that is deaf to a polite request is not waited for: the interrupt that comes meanwhile gets out."""
    monkeypatch.setattr(local, "GRACE", 60.0)
    asked = work(tmp_path, cells("hang"))

    def observe(event: Event) -> None:
        if event.kind == "reported" and event.task.kind == "cell":
            for _ in range(100):
                if (asked.folder / "logs" / "hang0.log").read_text():
                    break
                time.sleep(0.1)
            signal.setitimer(signal.ITIMER_REAL, 1.0)
            raise KeyboardInterrupt

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    begun = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            LocalEngine().run(asked, observe)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - begun < 50
    assert gone(int((asked.folder / "logs" / "hang0.log").read_text().split()[1]))


@pytest.mark.parametrize("engine", [InlineEngine(), LocalEngine()], ids=["inline", "local"])
def test_results_that_cannot_be_written_stop_the_run(engine: Engine, tmp_path: Path) -> None:
    asked = work(tmp_path, cells("ok", "block", "raise"))
    with pytest.raises(store.Unwritable, match=r"results cannot be written .*: the same command continues"):
        engine.run(asked, lambda event: None)
    assert ends(store.load(asked.folder / "before")) == {"ok0": ("ok", "")}


def test_a_server_that_dies_is_started_again(tmp_path: Path) -> None:
    """Its other cells run again; the cell that kills it gets a row when it has run alone."""
    frame, _ = run(LocalEngine(), work(tmp_path, cells("slay_server", "slow", "ok"), jobs=2))
    died = ("crashed", "the server of processes died 2 times while it ran, at last alone")
    assert ends(frame) == {"slay_server0": died, "slow0": ("ok", ""), "ok0": ("ok", "")}


def test_a_server_that_cannot_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = work(tmp_path, cells("ok"))
    monkeypatch.setattr(server, "PAUSE", 0.0)
    monkeypatch.setattr("fake_measure.PRELOAD", ("breaks_at_import",), raising=False)
    (tmp_path / "breaks_at_import.py").write_text("raise MemoryError('no room for torch')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)  # type: ignore[attr-defined]
    with pytest.raises(OSError, match=r"no process can be started \(MemoryError: no room for torch\): .* continues"):
        LocalEngine().run(asked, lambda event: None)
    monkeypatch.undo()
    assert ends(run(LocalEngine(), asked)[0]) == {"ok0": ("ok", "")}


def test_what_another_cell_removes_is_measured_again(tmp_path: Path) -> None:
    frame, _ = run(LocalEngine(), work(tmp_path, cells("ok", "raise", "remove")))
    assert ends(frame) == {"ok0": ("ok", ""), "raise0": ENDS["raise"], "remove0": ("ok", "")}


def test_detached_processes_end_with_their_cell(tmp_path: Path) -> None:
    asked = work(tmp_path, cells("daemon", "slow"), jobs=2)
    before = sleepers()

    def observe(event: Event) -> None:
        if event.kind == "finished" and event.task.id == "daemon0":
            assert sleepers() == before, "not only when the run ends"

    LocalEngine().run(asked, observe)
    assert ends(store.load(asked.folder)) == {"daemon0": ("ok", ""), "slow0": ("ok", "")}


def sleepers() -> set[str]:
    """The processes that sleep for ten minutes, as those of ``daemon`` do."""
    found = subprocess.run(["pgrep", "-fx", "sleep 600"], capture_output=True, text=True, check=False)
    return set(found.stdout.split())


def test_a_temporary_file_goes_with_its_writer(tmp_path: Path) -> None:
    asked = work(tmp_path, cells("ok"))
    dead = subprocess.Popen(["true"])
    dead.wait()
    host = store.files._host()
    for name in (f".a.parquet.{host}.{dead.pid}.tmp", f".b.parquet.{host}.{os.getpid()}.tmp", ".c.elsewhere.1.tmp"):
        (asked.folder / "cells" / name).touch()
    run(LocalEngine(), asked)
    left = sorted(path.name for path in (asked.folder / "cells").iterdir())
    assert left == [f".b.parquet.{host}.{os.getpid()}.tmp", ".c.elsewhere.1.tmp", "ok0.parquet"]


def test_a_flood_of_words_leaves_a_short_log(tmp_path: Path) -> None:
    asked = work(tmp_path, cells("flood"))
    frame, _ = run(LocalEngine(), asked)
    assert ends(frame) == {"flood0": ("ok", "")}
    log = asked.folder / "logs" / "flood0.log"
    assert log.stat().st_size < 2**21
    assert log.read_text().endswith("the last words\n")


def test_a_cell_that_fills_the_disk_with_its_own_words_ends_with_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be interrupted at every resume: the disk is full as long as its log is."""
    asked = work(tmp_path, cells("full"))
    reference, task = sorted(asked.tasks(), key=lambda task: task.kind, reverse=True)
    run_cell(reference, lambda text: None)
    task.log.write_bytes(b"x" * 2**22)

    def check(folder: Path) -> None:
        if task.log.stat().st_size > 2**21:
            raise store.Unwritable(28, "No space left on device", str(folder))

    monkeypatch.setattr(store, "check_writable", check)
    outcome = run_cell(task, lambda text: None)
    assert outcome.status is Status.ERROR and "a small disk of my own" in outcome.reason
    assert store.fragment_status(task.fragment) is Status.ERROR


def test_what_is_measured_is_never_overwritten_by_a_failure(tmp_path: Path) -> None:
    asked = work(tmp_path, cells("ok"))
    run(LocalEngine(), asked)
    task = next(task for task in asked.tasks() if task.kind == "cell")
    assert task.fail(Outcome(Status.TIMEOUT, "too late"), datetime.now(UTC)) == Outcome()
    assert store.cell_statuses(asked.folder) == {"ok0": Status.OK}


def test_the_fork_server_has_torch_and_no_cuda(tmp_path: Path) -> None:
    asked = work(
        tmp_path, {f"threads{n}": replace(cells("threads")["threads0"], threads=n) for n in (1, 2)} | cells("cuda")
    )
    run(LocalEngine(), asked)
    said = {log.stem: log.read_text() for log in (asked.folder / "logs").iterdir()}
    assert said["cuda0"].startswith("cuda initialized False")
    assert (said["threads1"], said["threads2"]) == ("1 threads\n", "2 threads\n")


def test_cells_are_spread_over_the_gpus_of_one_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = ["H100", "A100", "H100"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setattr("torch.cuda.get_device_name", models.__getitem__)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,GPU-6")
    many = {f"c{k}": replace(cell, device="cuda") for k in range(4) for cell in cells("cuda").values()}
    asked = work(tmp_path, many, jobs=2)
    run(LocalEngine(), asked)
    seen = [(asked.folder / "logs" / f"{name}.log").read_text().split()[-1] for name in many]
    assert set(seen) == {"4", "GPU-6"}
    assert local._slots(replace(asked, jobs=1)) == []
