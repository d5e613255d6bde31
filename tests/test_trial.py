"""Cells that train: per epoch rows, targets, divergence, and checkpoints that continue to the same bits."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import curvbench as cb
from curvbench import identity, store, training
from curvbench.cells import measure, trial
from curvbench.cli.app import main
from curvbench.problems.mlp import MLP
from curvbench.spec import Cell, Dataset, Decay, Probe, Problem, Recipe, Row, Status, Training, Unsupported
from curvbench.training import evaluate, held_out, reduced, seeded

ROOT = Path(__file__).parent.parent
TRAINING = Training(epochs=3, lr=0.05, batch=64)
PROBLEM = MLP(samples=16, hidden=8, depth=1)


@dataclass(frozen=True)
class Normed(Problem):
    """Convolution, BatchNorm and dropout on a few digits."""

    samples: int = 8
    epochs: int = 0

    def model(self) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(36, 10)
        )

    def data(self, root: Path | None) -> Dataset:
        whole = MLP().data(None)
        return Dataset(whole.train_inputs[:200], whole.train_targets[:200], whole.test_inputs, whole.test_targets)


@dataclass(frozen=True)
class Line(Problem):
    """Regression on thirty points; inputs of ``scale``."""

    loss: ClassVar[str] = "gaussian"
    recipe: ClassVar[Recipe] = Recipe(batch=10)

    samples: int = 8
    epochs: int = 0
    scale: float = 1.0

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))

    def data(self, root: Path | None) -> Dataset:
        draw = torch.Generator().manual_seed(5)
        x, y = torch.randn(30, 3, generator=draw), torch.randn(30, 2, generator=draw)
        return Dataset(self.scale * x, y, self.scale * x[:10], y[:10])


def cell(probe: Probe, problem: Problem = PROBLEM, **settings: Any) -> Cell:
    return Cell("test", problem, probe, 0, dtype="float64", training=replace(TRAINING, **settings))


def trained(cell: Cell, folder: Path, said: list[str] | None = None) -> list[Row]:
    report = said.append if said is not None else (lambda text: None)
    measure.prepare(cell, folder, None, report)
    return measure.measure(cell, folder, None, report)


def values(rows: Sequence[Row], metric: str) -> dict[int, float]:
    found = {row.epoch: row.value for row in rows if row.metric == metric and row.value is not None}
    return {epoch: value for epoch, value in found.items() if epoch is not None}


def deterministic(rows: Sequence[Row]) -> list[Any]:
    return [replace(row, samples=()) for row in rows if "seconds" not in row.metric and "time" not in row.metric]


def test_every_epoch_has_its_rows(tmp_path: Path) -> None:
    rows = trained(cell(cb.probe("kfac", damping=0.1)), tmp_path)
    for metric in ("train.loss", "train.accuracy", "train.seconds"):
        assert list(values(rows, metric)) == [1, 2, 3]
    for metric in ("test.loss", "test.accuracy"):
        assert list(values(rows, metric)) == [0, 1, 2, 3]
    assert {row.status for row in rows} == {Status.OK}
    assert {(row.epoch, row.step) for row in rows} == {(0, 0), (1, 23), (2, 46), (3, 69)}
    assert {row.method for row in rows} == {"epochs=3,lr=0.05,batch=64"}
    losses, seconds = values(rows, "train.loss"), values(rows, "train.seconds")
    assert losses[3] < losses[2] < losses[1] < values(rows, "test.loss")[0]
    assert 0 < seconds[1] < seconds[2] < seconds[3]
    assert not list(tmp_path.glob("checkpoint*"))


def test_sgd_by_hand_gives_the_same_numbers(tmp_path: Path) -> None:
    rows = trained(cell(cb.probe("identity"), momentum=0.9, schedule="step", at=(0.5,), weight_decay=0.01), tmp_path)
    data = PROBLEM.data(None)
    x, y = data.train_inputs.double(), data.train_targets
    with seeded(0, torch.device("cpu")):
        model = PROBLEM.model().double()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    losses, steps = [], 0
    with seeded(0, torch.device("cpu")):
        for _ in range(3):
            total, hits = 0.0, 0
            for rows_ in torch.randperm(len(x)).tensor_split(23):
                optimizer.param_groups[0]["lr"] = 0.05 * (0.1 if steps / 69 >= 0.5 else 1.0)
                optimizer.zero_grad()
                outputs = model(x[rows_])
                loss = F.cross_entropy(outputs, y[rows_])
                loss.backward()
                with torch.no_grad():
                    for p in model.parameters():
                        p.mul_(1 - optimizer.param_groups[0]["lr"] * 0.01)
                optimizer.step()
                total, hits, steps = (
                    total + loss.item() / 23,
                    hits + int((outputs.argmax(1) == y[rows_]).sum()),
                    steps + 1,
                )
            losses.append((total, hits / len(x)))
    assert [values(rows, "train.loss")[e] for e in (1, 2, 3)] == pytest.approx([a for a, _ in losses], rel=1e-10)
    assert [values(rows, "train.accuracy")[e] for e in (1, 2, 3)] == [b for _, b in losses]
    with torch.no_grad():
        outputs = model(data.test_inputs.double())
    assert values(rows, "test.loss")[3] == pytest.approx(F.cross_entropy(outputs, data.test_targets).item(), rel=1e-10)
    share = (outputs.argmax(1) == data.test_targets).double().mean().item()
    assert values(rows, "test.accuracy")[3] == pytest.approx(share, rel=1e-12)


def test_steps_end_a_training_within_an_epoch(tmp_path: Path) -> None:
    """The rows are those of the same steps of the whole training: batches and schedules are the same."""
    whole, cut = (
        {(row.metric, row.step): row.value for row in rows if "seconds" not in row.metric}
        for rows in (
            trained(cell(cb.probe("adam"), epochs=2, schedule="cosine", max_steps=most), tmp_path / str(most))
            for most in (None, 30)
        )
    )
    assert {step for _, step in whole} == {0, 23, 46} and {step for _, step in cut} == {0, 23, 30}
    shared = whole.keys() & cut.keys()
    assert {step for _, step in shared} == {0, 23} and all(whole[key] == cut[key] for key in shared)
    with pytest.raises(ValueError, match="max_steps must be at least 1, or none, got 0"):
        replace(TRAINING, max_steps=0)


def test_all_probes_of_a_seed_see_the_same_batches_and_start(tmp_path: Path) -> None:
    first = trained(cell(cb.probe("identity"), momentum=0.5), tmp_path)
    second = trained(cell(cb.probe("sgdm", momentum=0.5)), tmp_path)
    losses = [list(values(rows, "train.loss").values()) for rows in (first, second)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    assert len(list(tmp_path.iterdir())) == 1, "one start for all"


def test_the_target_ends_the_training(tmp_path: Path) -> None:
    rows = trained(cell(cb.probe("kfac", damping=0.1), epochs=9, target=0.8), tmp_path)
    accuracies = values(rows, "test.accuracy")
    last = max(accuracies)
    assert last < 9
    assert accuracies[last] >= 0.8 > max(value for epoch, value in accuracies.items() if epoch < last)
    assert values(rows, "train.epochs_to_target") == {last: last}
    assert values(rows, "train.seconds_to_target")[last] == values(rows, "train.seconds")[last]


def test_a_loss_as_target_is_reached_from_above(tmp_path: Path) -> None:
    rows = trained(cell(cb.probe("kfac", damping=0.1), epochs=9, target=1.0, metric="test.loss"), tmp_path)
    losses = values(rows, "test.loss")
    assert losses[max(losses)] <= 1.0 < min(value for epoch, value in losses.items() if epoch < max(losses))


def test_a_target_that_is_missed_is_a_reason(tmp_path: Path) -> None:
    rows = trained(cell(cb.probe("identity"), epochs=1, target=1.0), tmp_path)
    missed = [row for row in rows if row.status is not Status.OK]
    assert [row.metric for row in missed] == ["train.epochs_to_target", "train.seconds_to_target"]
    assert {(row.status, row.value, row.reason) for row in missed} == {
        (Status.UNSUPPORTED, None, "test.accuracy 1 was not reached in 1 epochs")
    }


def test_real_targets_have_losses_alone(tmp_path: Path) -> None:
    rows = trained(cell(cb.probe("full", damping=0.1), Line()), tmp_path)
    assert {row.metric for row in rows} == {"train.loss", "test.loss", "train.seconds"}


def test_a_snapshot_s_epochs_come_first(tmp_path: Path) -> None:
    rows = trained(cell(cb.probe("identity"), replace(PROBLEM, epochs=2)), tmp_path)
    assert list(values(rows, "test.loss")) == [2, 3, 4, 5]
    assert values(rows, "test.loss")[2] < 1.0, "training begins where the snapshot ends"


@pytest.mark.parametrize("probe", [cb.probe("identity"), cb.probe("kfac")], ids=str)
def test_divergence_keeps_what_came_before(probe: Probe, tmp_path: Path) -> None:
    rows = trained(cell(probe, Line(), epochs=60, lr=50.0, batch=30, target=0.0, metric="test.loss"), tmp_path)
    *before, last = rows
    assert (last.status, last.metric, last.value) == (Status.DIVERGED, "", None)
    assert "in epoch" in last.reason or "after epoch" in last.reason
    assert {row.status for row in before} == {Status.OK}
    assert values(before, "test.loss")[0] > 0
    assert last.epoch is not None and last.epoch > max(values(before, "test.loss"))


def test_a_diverged_cell_is_diverged(tmp_path: Path) -> None:
    rows = [Row("test.loss", 1.0, epoch=0), Row(status=Status.DIVERGED, reason="the loss is nan", epoch=1)]
    context = store.Context("r", "c", datetime.now(UTC), ENVIRONMENT)
    assert store.table_status(store.rows_to_table(cell(cb.probe("identity")), rows, context)) is Status.DIVERGED


ENVIRONMENT = {"git_sha": "", "git_dirty": False, "torch_version": "2", "device_name": "a cpu"}


def test_errors_and_directions_alongside(tmp_path: Path) -> None:
    kfac = cb.probe("kfac", damping=0.1)
    rows = trained(cell(kfac, measure_at=(0, 2)), tmp_path / "a")
    assert list(values(rows, "error.relative")) == list(values(rows, "direction.cosine")) == [0, 2]
    plain = trained(cell(kfac), tmp_path / "b")
    for metric in ("test.loss", "train.loss"):
        assert values(rows, metric) == values(plain, metric), "looking changes nothing"
    measured = replace(cell(kfac), training=None)
    measure.prepare(measured, tmp_path / "c", None, lambda text: None)
    expected = measure.measure(measured, tmp_path / "c", None, lambda text: None)
    for metric in ("error.relative", "direction.relative"):
        network = {row.metric: row.value for row in expected if row.scope == "network"}
        found = [row.value for row in rows if (row.metric, row.scope, row.epoch) == (metric, "network", 0)]
        assert found == pytest.approx([network[metric]], rel=1e-10)


def test_a_probe_that_does_not_cover_is_unsupported(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="rank 10000 is more"):
        trained(cell(cb.probe("ginger", rank=10000)), tmp_path)


def test_fngd_learns_how_long_its_first_epoch_is(tmp_path: Path) -> None:
    subject = cell(cb.probe("fngd", stage="shared"))
    measure.prepare(subject, tmp_path, None, print)
    whole = trial.Trial(subject, PROBLEM.model().double(), PROBLEM.data(None), list)
    assert whole.optimizer.probe.hyperparameters["batches"] == whole.course.steps == 23


def test_adam_with_decay_is_torch_s_with_the_values_of_every_step(tmp_path: Path) -> None:
    decay = (Decay("lr", 0.97, 1e-3), Decay("epsilon", 0.9, 1e-4))
    rows = trained(cell(cb.probe("adam", beta1=0.97, epsilon=0.183), epochs=1, decay=decay), tmp_path)
    x, y = PROBLEM.data(None).train_inputs.double(), PROBLEM.data(None).train_targets
    with seeded(0, torch.device("cpu")):
        model = PROBLEM.model().double()
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.97, 0.999))
    losses = []
    with seeded(0, torch.device("cpu")):
        for step, chosen in enumerate(torch.randperm(len(x)).tensor_split(23)):
            optimizer.param_groups[0]["lr"] = max(1e-3, 0.05 * 0.97**step)
            optimizer.param_groups[0]["eps"] = max(1e-4, 0.183 * 0.9**step)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[chosen]), y[chosen])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert values(rows, "train.loss")[1] == pytest.approx(sum(losses) / 23, rel=1e-10)


def test_the_probe_that_is_measured_is_the_one_that_trains_then(tmp_path: Path) -> None:
    plain, seen = cb.probe("kfac", damping=0.1), []
    subject = cell(plain, decay=(Decay("damping", 0.9),), measure_at=(0, 2))
    trial.Trial(subject, PROBLEM.model().double(), PROBLEM.data(None), lambda probe: seen.append(probe) or []).run(
        tmp_path / "checkpoint.pt", print
    )
    assert seen == [plain, replace(plain, damping=0.1 * 0.9**46)]


def test_what_falls_is_a_part_of_a_cell_s_name_and_identity() -> None:
    plain = cell(cb.probe("kfac", damping=0.1))
    falling = replace(plain, training=replace(plain.training, decay=(Decay("damping", 0.9997, 1e-6),)))
    assert falling.label == plain.label + ", decay damping:0.9997:1e-06"
    machine = {"torch_version": "2", "device_name": "a cpu"}
    assert identity.cell_id(falling, machine) != identity.cell_id(plain, machine)


# --- checkpoints ------------------------------------------------------------------------------------------


class Stop(Exception):
    """The machine goes down."""


CELLS = {
    "kfac": cell(cb.probe("kfac", damping=0.1, fisher_type="mc"), Normed(), ema=0.9, stat_every=2, refresh_every=3),
    "ginger": cell(cb.probe("ginger", damping=0.1), Normed(), schedule="polynomial", warmup=1.0, augment="crop-flip"),
    "fngd": cell(cb.probe("fngd", stage="shared"), Normed(), target=0.99, measure_at=(0, 3)),
    "adam": cell(cb.probe("adam"), Normed(), lr=0.01, schedule="cosine"),
    "ekfac": cell(cb.probe("ekfac", damping=0.1, basis_every=3, ema=0.9, fisher_type="mc"), Normed(), stat_every=2),
    "decay": cell(
        cb.probe("adam", epsilon=0.1),
        Normed(),
        measure_at=(0, 3),
        decay=(Decay("lr", 0.9), Decay("epsilon", 0.8, 1e-3)),
    ),
    "between two statistics": cell(
        cb.probe("ekfac", damping=0.1), Normed(), momentum=0.9, stat_every=5, refresh_every=7
    ),
}


@pytest.mark.parametrize("name", CELLS)
def test_a_checkpoint_continues_to_the_same_bits(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained(CELLS[name], tmp_path / "whole")

    def report(text: str) -> None:
        if text.startswith("epoch 2/"):
            raise Stop

    folder = tmp_path / "parts"
    with pytest.raises(Stop):
        measure.prepare(CELLS[name], folder, None, report)
        measure.measure(CELLS[name], folder, None, report)
    torch.rand(7)  # what others draw must not matter
    said: list[str] = []
    continued = trained(CELLS[name], folder, said)
    assert next(text for text in said if text.startswith("epoch")).startswith("epoch 3/")
    assert deterministic(continued) == deterministic(whole)
    assert not list(folder.glob("checkpoint*"))


def interrupted(folder: Path, subject: Cell) -> Path:
    def report(text: str) -> None:
        if text.startswith("epoch 2/"):
            raise Stop

    with pytest.raises(Stop):
        measure.prepare(subject, folder, None, report)
        measure.measure(subject, folder, None, report)
    (path,) = folder.glob("checkpoint*")
    return path


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    path = interrupted(tmp_path, CELLS["adam"])
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"checkpoint .*\.pt cannot be used .*: remove it to train anew") as caught:
        trained(CELLS["adam"], tmp_path)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_version_or_probe_is_refused(tmp_path: Path) -> None:
    path = interrupted(tmp_path, CELLS["adam"])
    content = torch.load(path, weights_only=True)
    trial.write({**content, "version": 99}, path)
    with pytest.raises(ValueError, match="its version is 99"):
        trained(CELLS["adam"], tmp_path)
    content["optimizer"]["curvature"]["probe"] = "kfac"
    trial.write(content, path)
    with pytest.raises(ValueError, match="the state is that of kfac, this optimizer's probe is adam"):
        trained(CELLS["adam"], tmp_path)


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.pt"
    trial.write({"a": 1}, path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        trial.write({"a": 2}, path)
    assert torch.load(path, weights_only=True) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


SUITE = """
from curvbench import Preset, Suite, probe, problem
from curvbench.spec import Training

SUITE = Suite("A suite", {"default": Preset(
    [problem("mlp", depth=1)], [probe("kfac", damping=0.1)], training=Training(epochs=6, lr=0.05, batch=64),
)})
"""


def command(folder: Path, results: str, *more: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    arguments = ["run", "suite.py", "--engine", "inline", "--results", results, *more]
    command = [sys.executable, "-m", "curvbench", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    (tmp_path / "suite.py").write_text(SUITE)
    assert command(tmp_path, "whole").communicate(timeout=120)[1] == ""
    process = command(tmp_path, "parts", "--log-json")
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line).get("text", "").startswith("epoch 3/"):
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    out, err = command(tmp_path, "parts", "--log-json").communicate(timeout=120)
    texts = [json.loads(line).get("text", "") for line in out.splitlines()]
    epochs = [text.split("/")[0] for text in texts if text.startswith("epoch")]
    assert epochs in (["epoch 4", "epoch 5", "epoch 6"], ["epoch 5", "epoch 6"], ["epoch 6"]), err
    whole, parts = (store.load(tmp_path / name) for name in ("whole", "parts"))
    keys = ["metric", "scope", "epoch", "step", "value", "method"]
    whole, parts = (f[~f["metric"].str.contains("seconds")][keys].reset_index(drop=True) for f in (whole, parts))
    assert len(whole) == 6 * 4 + 2
    assert whole.equals(parts)


def run(folder: Path, *more: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(["run", str(folder / "suite.py"), "--engine", "inline", "--results", str(folder / "results"), *more])
    return left.value.code  # type: ignore[return-value]


def test_the_command_line_sets_the_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "suite.py").write_text(SUITE)
    arguments = ["-t", "epochs=1,lr=0.2,target=0.99,at=0.3/0.6", "-p", "identity", "-p", "sgdm"]
    assert run(tmp_path, *arguments) == 0
    out = capsys.readouterr().out
    assert "sgdm on mlp[depth=1], seed 0, lr 0.2" in out
    assert "trained from epoch 0 to 1" in out
    assert "unsupported: train.epochs_to_target, train.seconds_to_target: test.accuracy 0.99 was not reached" in out
    assert run(tmp_path, *arguments) == 0
    assert "nothing to do: all 2 cells" in capsys.readouterr().out
    (method,) = set(store.load(tmp_path / "results")["method"])
    assert method == "epochs=1,lr=0.2,batch=64,at=0.3/0.6,target=0.99"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr=fast", "training: lr must be a number, got 'fast'"),
        ("lr=-1", "training: lr must be finite and not negative, got -1.0"),
        ("epochs=0", "training: epochs must be at least 1, got 0"),
        ("momentum=1", "training: momentum must lie in [0, 1), got 1.0"),
        ("kl_clip=0", "training: kl_clip must be finite and above zero, or none, got 0.0"),
        ("others_lr=-1", "training: others_lr must be finite and not negative, or none, got -1.0"),
        ("decay=lr:2", "decay lr:2.0: expected 0 < rate < 1 and 0 <= least <= lr=0.05"),
        ("decay=lr:0.9:1", "decay lr:0.9:1.0: expected 0 < rate < 1 and 0 <= least <= lr=0.05"),
        ("decay=lr", "training: decay must be field:rate or field:rate:least, or several with slashes"),
        ("decay=lr:fast", "training: decay must be field:rate or field:rate:least, or several with slashes"),
        ("decay=lr:0.9,schedule=cosine", "training: lr falls by schedule=cosine or by decay=lr:0.9, not by both"),
        ("decay=lr:0.9/lr:0.8", "training: decay names lr more than once"),
        ("decay=epsilon:0.9", "decay epsilon:0.9: kfac has no number 'epsilon' that could fall; it has damping"),
        ("decay=mc_samples:0.9", "kfac has no number 'mc_samples' that could fall; it has damping"),
        ("decay=damping:0.9:0.5", "decay damping:0.9:0.5: expected 0 < rate < 1 and 0 <= least <= damping=0.1"),
        ("schedule=linear", "training: schedule must be one of constant, step, cosine"),
        ("at=0.5/late", "training: at must be a number, or several with slashes between them, got '0.5/late'"),
        ("measure_at=0/9", "training: measure_at must lie in 0..6, got 9"),
        ("speed=1", "training has no hyperparameter 'speed'"),
        ("target=1.5", "training: no training reaches the target 1.5: no test.accuracy is above 1"),
        ("metric=test.loss,target=-1", "training: no training reaches the target -1: no loss falls below 0"),
        ("metric=valid.loss", "training: valid.loss needs a part of the training data: set valid, such as valid=0.1"),
        ("valid=1", "training: valid must lie in [0, 1), got 1.0"),
        ("share=0", "training: share must lie in (0, 1], got 0.0"),
        ("metric=test.bleu,target=20", "mlp[depth=1] has no test.bleu: choose one of train.loss, train.accuracy"),
        ("metric=test.acuracy", "training: metric must be one of train.loss, train.accuracy"),
    ],
)
def test_wrong_trainings_are_named(
    text: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "suite.py").write_text(SUITE)
    assert run(tmp_path, "-t", text) == 2
    err = capsys.readouterr().err
    assert expected in err and err.count("\n") == 1


def test_a_diverged_cell_is_named_with_the_command_that_repeats_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = 'training=Training(epochs=2, lr=0.1), tuned={"sgdm": {"kl_clip": 0.1}},'
    (tmp_path / "suite.py").write_text(SUITE.replace("training=Training(epochs=6, lr=0.05, batch=64),", tuned))
    arguments = ["-p", "sgdm", "-t", "lr=1e30,kl_clip=none"]
    assert run(tmp_path, *arguments) == 4
    out = capsys.readouterr().out
    assert "sgdm  diverged" in out and "diverged: the " in out
    (line,) = [line for line in out.splitlines() if line.strip().startswith("curvbench run")]
    assert "--preset default --train lr=1e30,kl_clip=none" in line
    assert run(tmp_path, *shlex.split(line)[3:]) == 4
    assert "[1/1] diverged" in capsys.readouterr().out
    assert store.load(tmp_path / "results")["run_id"].nunique() == 1


BAD = """
from dataclasses import dataclass
import torch
from torch import nn
from curvbench.spec import Dataset, Problem

@dataclass(frozen=True)
class Bad(Problem):
    \"\"\"A label out of range.\"\"\"

    part: str = "train"
    samples: int = 8
    epochs: int = 0

    def model(self) -> nn.Module:
        return nn.Linear(3, 4)

    def data(self, root):
        x, good, bad = torch.randn(30, 3), torch.arange(30) % 4, torch.arange(30) % 5
        return Dataset(x, bad if self.part == "train" else good, x, bad if self.part == "test" else good)
"""


@pytest.mark.parametrize("problem", ["Bad", "Bad[part=test]", "Bad[epochs=1]"])
def test_labels_out_of_range_are_named(problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "suite.py").write_text(SUITE)
    (tmp_path / "bad.py").write_text(BAD)
    assert run(tmp_path, "-p", "identity", "-m", f"{tmp_path / 'bad.py'}:{problem}") in (2, 4)
    (line,) = {line for line in capsys.readouterr().out.splitlines() if line.startswith("error: ") and "F^" not in line}
    assert line.endswith("ValueError: targets must lie in 0..3, got 0..4")


def test_a_full_disk_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start is stored, the first checkpoint finds no space; when there is space again it goes on from there."""
    (tmp_path / "suite.py").write_text(SUITE)
    save, saved = torch.save, []

    def full(content: Any, path: Path) -> None:
        saved.append(path)
        if len(saved) == 3:
            raise OSError(28, "No space left on device", str(path))
        save(content, path)

    monkeypatch.setattr(torch, "save", full)
    assert run(tmp_path) == 2
    assert capsys.readouterr().err.startswith("curvbench: results cannot be written ([Errno 28] No space")
    assert run(tmp_path, "--log-json") == 0
    texts = [json.loads(line).get("text", "") for line in capsys.readouterr().out.splitlines()]
    assert next(text for text in texts if text.startswith("epoch")).startswith("epoch 2/6")


def test_translations_are_scored_through_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "suite.py").write_text(SUITE)
    folder = tmp_path / "data" / "multi30k"
    folder.mkdir(parents=True)
    for part in ("train", "test_2016_flickr"):
        (folder / f"{part}.en").write_text("a dog runs\na cat\n" * 10)
        (folder / f"{part}.de").write_text("ein hund\neine katze sitzt\n" * 10)
    arguments = ["-m", "transformer[task=multi30k,vocabulary=8,length=4]", "-p", "identity", "-t", "epochs=1"]
    assert run(tmp_path, *arguments, "--data", str(tmp_path / "data")) == 0
    assert "BLEU" in capsys.readouterr().out
    frame = store.load(tmp_path / "results")
    assert list(frame.loc[frame["metric"] == "test.bleu", "epoch"]) == [0, 1]
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    assert run(tmp_path, *arguments, "--data", str(tmp_path / "data"), "--force") == 4
    assert "skipped: test.bleu needs sacrebleu: pip install 'curvbench[text]'" in capsys.readouterr().out


def test_a_suite_that_measures_has_no_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "suite.py").write_text(SUITE.replace(", training=Training(epochs=6, lr=0.05, batch=64),", ""))
    assert run(tmp_path, "-t", "lr=1") == 2
    assert "this preset measures and trains nothing: leave out --train" in capsys.readouterr().err


def test_a_share_held_out_is_judged_and_not_trained_on(tmp_path: Path) -> None:
    held = trained(cell(cb.probe("identity"), valid=0.25), tmp_path)
    assert list(values(held, "valid.loss")) == list(values(held, "valid.accuracy")) == [0, 1, 2, 3]
    assert {row.step for row in held} == {0, 17, 34, 51}, "1,077 of 1,437 samples in batches of 64"
    whole = MLP().data(None)
    rest, part = held_out(whole, 0.25, 0)
    assert part is not None and (len(rest.train_inputs), len(part[0])) == (1077, 360)
    start = evaluate(
        training.snapshot(PROBLEM, 0, None, dtype=torch.float64), part[0].double(), part[1], "cross_entropy"
    )
    assert (values(held, "valid.loss")[0], values(held, "valid.accuracy")[0]) == pytest.approx(start, rel=1e-12)
    assert values(held, "train.loss") != values(trained(cell(cb.probe("identity")), tmp_path), "train.loss")


def test_what_is_held_out_is_drawn_by_the_seed_and_was_never_measured() -> None:
    whole = MLP().data(None)
    (rest, first), (_, again), (_, other) = (held_out(whole, 0.1, seed) for seed in (3, 3, 4))
    assert first and again and other
    assert torch.equal(first[0], again[0]) and not torch.equal(first[0], other[0])
    images = [{tuple(image.flatten().tolist()) for image in part} for part in (rest.train_inputs, first[0])]
    assert len(images[0] | images[1]) == len({tuple(image.flatten().tolist()) for image in whole.train_inputs})
    measured = training.batch(MLP(samples=1000), whole, 3)[0]
    assert {tuple(image.flatten().tolist()) for image in measured} <= images[0]
    assert torch.equal(rest.test_inputs, whole.test_inputs)


def test_a_share_of_the_training_part_is_all_that_there_is(tmp_path: Path) -> None:
    rows = trained(cell(cb.probe("identity"), share=0.1, valid=0.25), tmp_path)
    assert {row.step for row in rows} == {0, 2, 4, 6}, "108 of 144 samples in batches of 64"
    whole = MLP().data(None)
    part, other = (reduced(whole, 0.1, seed) for seed in (0, 1))
    known = {tuple(image.flatten().tolist()) for image in whole.train_inputs}
    images = [{tuple(image.flatten().tolist()) for image in data.train_inputs} for data in (part, other)]
    assert len(part.train_inputs) == len(part.train_targets) == 144
    assert images[0] <= known and images[1] <= known and images[0] != images[1]
    assert reduced(whole, 1.0, 0) is whole and torch.equal(part.test_inputs, whole.test_inputs)


def test_a_share_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"valid=0\.99 of 30 training samples leaves none to train on"):
        held_out(Line().data(None), 0.99, 0)


@pytest.mark.parametrize("name", ["valid.loss", "valid.accuracy"])
def test_what_is_held_out_may_have_a_target(name: str, tmp_path: Path) -> None:
    rows = trained(cell(cb.probe("kfac", damping=0.1), valid=0.2, metric=name, target=0.8, epochs=9), tmp_path)
    assert values(rows, "train.epochs_to_target")


@dataclass(frozen=True)
class Scored(Normed):
    """Scores the sum of its weights; every call takes long."""

    @property
    def scores(self) -> tuple[str, ...]:
        return ("test.bleu",)

    def score(self, model: nn.Module, dataset: Dataset) -> dict[str, float]:
        assert not model.training
        time.sleep(0.3)
        return {"test.bleu": sum(p.double().abs().sum().item() for p in model.parameters())}


def test_a_problem_s_own_score_is_a_row_per_epoch_apart_from_the_seconds(tmp_path: Path) -> None:
    said: list[str] = []
    rows = trained(cell(cb.probe("identity"), Scored()), tmp_path / "a", said)
    assert list(values(rows, "test.bleu")) == [0, 1, 2, 3]
    assert values(rows, "train.seconds")[3] < 0.9
    assert "test.bleu" in said[-1]
    plain = trained(cell(cb.probe("identity"), Normed()), tmp_path / "b")
    assert values(rows, "test.loss") == values(plain, "test.loss")


def test_a_score_may_be_the_target(tmp_path: Path) -> None:
    rows = trained(cell(cb.probe("identity"), Scored(), metric="test.bleu", target=1e-9), tmp_path)
    assert values(rows, "train.epochs_to_target") == {0: 0}


@pytest.mark.parametrize(
    ("problem", "settings", "expected"),
    [
        (PROBLEM, {"metric": "test.bleu", "target": 20.0}, r"has no test\.bleu: choose one of train\.loss, train\.acc"),
        (
            Line(),
            {"metric": "test.accuracy", "target": 0.9},
            r"has no test\.accuracy: choose one of train\.loss, valid",
        ),
    ],
)
def test_a_target_of_a_metric_that_the_problem_has_not_is_refused(
    problem: Problem, settings: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        cell(cb.probe("identity"), problem, **settings)


def test_accuracy_in_training_leaves_out_ignored_tokens() -> None:
    """A network that is always right has all of its loss terms right, whatever fills the sequences."""
    targets = torch.randint(3, (40, 4), generator=torch.Generator().manual_seed(0))
    inputs = 30 * F.one_hot(targets, 3).double()
    targets[::2, 1:] = -100
    model = nn.Linear(3, 3, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.eye(3))
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    (epoch,) = training.train(model, training.Course(inputs, targets, "cross_entropy", 7, 1), optimizer, schedule)
    assert epoch.accuracy == 1.0


def test_evaluate_leaves_out_ignored_tokens() -> None:
    outputs = torch.randn(5, 4, 3)
    targets = torch.randint(3, (5, 4))
    targets[0] = -100
    loss, accuracy = evaluate(nn.Identity(), outputs, targets, "cross_entropy")
    assert loss == pytest.approx(F.cross_entropy(outputs[1:].flatten(0, 1), targets[1:].flatten()).item(), rel=1e-6)
    assert accuracy == (outputs[1:].argmax(-1) == targets[1:]).double().mean().item()
