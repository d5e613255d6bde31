"""Ranks of a cell: one training on two processes as on one, and every way in which one of them ends them all."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch
from engines.test_engines import gone
from test_trial import TRAINING, Normed, deterministic, trained

import curvbench as cb
from curvbench.cells import measure
from curvbench.cells.launch import RankDied, together
from curvbench.engines.task import describe
from curvbench.identity import libraries
from curvbench.problems.mlp import MLP
from curvbench.spec import Cell, Diverged, Probe, Row, Status, Training, Unsupported
from curvbench.spec.pictures import collected
from curvbench.states.ranks import Ranks

SMALL = MLP(samples=16, hidden=8, depth=1)
SHORT = replace(TRAINING, epochs=2, batch=300, measure_at=(1,))
TOLD = "epochs=2,lr=0.05,batch=300,measure_at=1"


def cell(probe: Probe, devices: int, problem: cb.Problem = SMALL, training: Training = SHORT) -> Cell:
    return Cell("test", problem, probe, 0, dtype="float64", training=replace(training, devices=devices))


def plain(rows: list[Row]) -> list[Row]:
    return [replace(row, value=None, method="") for row in deterministic(rows)]


@pytest.mark.slow
@pytest.mark.parametrize("probe", [cb.probe("kfac", damping=0.1), cb.probe("identity")], ids=str)
def test_two_ranks_give_the_rows_of_one(probe: Probe, tmp_path: Path) -> None:
    """Parts of a batch differ by one sample; errors against the exact Fisher on the way, and its blocks."""
    results = []
    for devices in (1, 2):
        said: list[str] = []
        with collected() as pictures:
            rows = trained(cell(probe, devices), tmp_path / str(devices), said)
        results.append((rows, said[-3:], [b.layer for b in pictures]))
    (alone, reports, layers), (both, *same) = results
    assert same == [reports, layers]
    assert plain(both) == plain(alone)
    for row, other in zip(deterministic(both), deterministic(alone), strict=True):
        assert row.value is None or abs(row.value - other.value) <= 1e-10 * max(1.0, abs(other.value)), row
    assert {row.method for row in both if row.metric == "test.loss"} == {f"{TOLD},devices=2"}


def dies(number: signal.Signals, rank: int, report: Callable[[str], None]) -> None:
    if rank == 1:
        os.kill(os.getpid(), number)
    Ranks.here().agree([torch.zeros(3)])


def leaves(rank: int, report: Callable[[str], None]) -> None:
    if rank == 0:
        os._exit(3)
    Ranks.here().agree([torch.zeros(3)])


def hangs(rank: int, report: Callable[[str], None]) -> None:
    report(f"{os.getpid()}")
    if rank == 1:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    Ranks.here().agree([torch.zeros(3)])


def raises(rank: int, report: Callable[[str], None]) -> None:
    if rank == 1:
        raise Diverged("the loss is nan")
    Ranks.here().agree([torch.zeros(3)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("work", "status", "reason"),
    [
        (
            partial(dies, signal.SIGKILL),
            Status.KILLED,
            "rank 1 was killed by SIGKILL",
        ),
        (leaves, Status.CRASHED, "rank 0 left with exit code 3 and without a result"),
        (raises, Status.DIVERGED, "the loss is nan"),
        (hangs, Status.ERROR, "ConnectionError: rank 0: another rank has ended or does not answer"),
    ],
    ids=["killed", "left", "raised", "hangs"],
)
def test_a_rank_that_fails_ends_all_with_its_reason(work: Callable[..., None], status: Status, reason: str) -> None:
    with pytest.raises(Exception) as caught:
        together(work, 2, "cpu", lambda text: None, answer=timedelta(seconds=10))
    outcome = describe(caught.value)
    assert outcome.status is status
    assert outcome.reason.startswith(reason)


ALONE = """
import os, sys, time
sys.path[:0] = sys.argv[1:]
import test_launch
from curvbench.cells.launch import RankDied, together
if __name__ == "__main__":
    together(test_launch.waits, 2, "cpu", lambda text: print(text, flush=True))
"""


def waits(rank: int, report: Callable[[str], None]) -> None:
    report(" ".join(map(str, Ranks.here().all(os.getpid()))))
    time.sleep(600)


@pytest.mark.slow
def test_no_rank_outlives_the_process_that_began_it() -> None:
    tests = Path(__file__).parent
    command = [sys.executable, "-c", ALONE, str(tests.parent), str(tests)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        ranks = [int(pid) for pid in parent.stdout.readline().split()]
        parent.kill()
    assert len(ranks) == 2
    assert all(map(gone, ranks))


@pytest.mark.long
@pytest.mark.slow
def test_ranks_that_were_killed_go_on_from_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the numbers of a training that nobody ends, dropout of each rank and running averages included."""
    monkeypatch.setattr(libraries, "_watch", None)  # what other tests have loaded into this process is not asked for
    subject = cell(cb.probe("kfac", damping=0.1), 2, Normed(), replace(TRAINING, momentum=0.9))
    expected = deterministic(trained(subject, tmp_path / "whole"))

    def report(text: str) -> None:
        if text.startswith("epoch 2/"):
            max(multiprocessing.active_children(), key=lambda rank: rank.pid or 0).kill()

    folder, said = tmp_path / "parts", list[str]()
    measure.prepare(subject, folder, None, report)
    with pytest.raises(RankDied, match="was killed by SIGKILL"):
        measure.measure(subject, folder, None, report)
    assert deterministic(trained(subject, folder, said)) == expected
    assert [text[:8] for text in said if text.startswith("epoch")] == ["epoch 3/"]


@pytest.mark.slow
def test_a_probe_whose_states_cannot_be_joined_is_unsupported(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="ekfac trains in one process only"):
        trained(cell(cb.probe("ekfac"), 2), tmp_path)


@pytest.mark.slow
def test_a_batch_with_fewer_samples_than_ranks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a batch of 1 cannot be divided among devices=2: enlarge batch"):
        trained(cell(cb.probe("identity"), 2, training=replace(TRAINING, batch=1)), tmp_path)


def test_gpus_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for device in ("cuda", "cuda:1"):
        text = f"devices=2 needs --device cuda and 2 GPUs, got --device {device} and 1 GPUs"
        with pytest.raises(ValueError, match=text):
            together(leaves, 2, device, lambda text: None)


def test_devices_are_counted_from_one() -> None:
    with pytest.raises(ValueError, match="devices must be at least 1, got 0"):
        Training(epochs=1, lr=0.1, devices=0)
