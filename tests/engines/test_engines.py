from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from fake_measure import Fake, Toy, reference_identity

from curvbench import store
from curvbench.engines import Engine, Event, Work
from curvbench.engines.inline import InlineEngine
from curvbench.engines.local import LocalEngine
from curvbench.spec import Cell

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
    "empty": ("error", "RuntimeError: the cell was measured without a single row"),
}
DEATHS = {
    "exit": ("crashed", "exit code 3"),
    "vanish": ("crashed", "exit code 0"),
    "segv": ("crashed", "SIGSEGV"),
    "kill": ("killed", "SIGKILL"),
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
    asked = work(tmp_path, cells("hang", "ok"), timeout=3.0)
    frame, _ = run(LocalEngine(), asked)
    assert ends(frame)["hang0"] == ("timeout", "not finished within the time limit of 3 s")
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
