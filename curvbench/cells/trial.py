"""Trials: cells that train with their probe, epoch by epoch, from a checkpoint if there is one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from curvbench import identity
from curvbench.cells.tensors import write
from curvbench.identity import libraries
from curvbench.instance.likelihood import Loss
from curvbench.optim import NaturalGradient
from curvbench.spec import METRICS, Cell, Dataset, Diverged, Probe, Report, Row, Status, Training, decayed
from curvbench.states.ranks import Ranks
from curvbench.training import (
    Course,
    Epoch,
    evaluate,
    held_out,
    placed,
    reduced,
    refuse_targets,
    schedules,
    seeded,
    train,
)
from curvbench.words import one_line

CHECKPOINT_VERSION = 3
LONGEST_REASON = 200  # characters of an error of torch, which may list every weight of a model
Inspect = Callable[[Probe], Sequence[Row]]


class Trial:
    """A model on its way through the epochs of ``cell.training``, and the rows so far.

    Rows of epoch 0 are those of the model before training. ``inspect`` measures the current model and probe at the
    epochs of ``measure_at``. Seconds count training alone, without evaluation, measurement and checkpoints.
    """

    def __init__(self, cell: Cell, model: nn.Module, dataset: Dataset, inspect: Inspect) -> None:
        assert cell.training is not None, "the cell trains"
        self.cell, self.training, self.model, self.inspect = cell, cell.training, model, inspect
        self.device, dtype, loss = torch.device(cell.device), getattr(torch, cell.dtype), cell.problem.loss
        dataset = reduced(dataset, self.training.share, cell.seed)
        self.dataset, validation = held_out(dataset, self.training.valid, cell.seed)
        data = placed(self.dataset.train_inputs, self.dataset.train_targets, self.device, dtype)
        self.test = placed(dataset.test_inputs, dataset.test_targets, self.device, dtype)
        self.valid = placed(*validation, self.device, dtype) if validation else None
        self.ranks = Ranks.here()
        t = self.training
        self.course = Course(*data, loss, t.batch, t.epochs, t.augment, self.ranks, t.max_steps)
        self._refuse_empty_parts()
        self.optimizer = optimizer_of(cell, self.training, model, self.course.loss, self.course.steps)
        rate = schedules.factor(self.training, self.course.steps)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, rate)
        self.done, self.seconds = 0, 0.0
        self.rows: list[Row] = []

    def _refuse_empty_parts(self) -> None:
        if (least := len(self.course.inputs) // self.course.steps) < self.ranks.count:
            raise ValueError(f"a batch of {least} cannot be divided among devices={self.ranks.count}: enlarge batch")

    def run(self, checkpoint: Path, report: Report) -> list[Row]:
        """Train from ``checkpoint``, or from the beginning without one, to the end, and return every row.

        A training that diverges keeps its rows and ends with a row that says so.

        Raises:
            Unsupported: the probe does not cover the model.
            ValueError: the checkpoint is damaged or of another version, or targets do not fit the model's outputs.
        """
        for part in filter(None, (self.test, self.valid)):
            refuse_targets(self.model, *part, self.course.loss)
        with seeded(self.cell.seed + (self.ranks.rank << 32), self.device):  # so that ranks do not share dropout
            try:
                self._train(checkpoint, report)
            except Diverged as error:
                self._add([Row(status=Status.DIVERGED, reason=str(error), scope="")], self.done + 1)
            else:
                self._add(self._to_target(), self.done)
        if self.ranks.rank == 0:
            checkpoint.unlink(missing_ok=True)
        return self.rows

    def _train(self, checkpoint: Path, report: Report) -> None:
        if not (checkpoint.exists() and self.load(checkpoint)):
            self._evaluate()
        epochs = train(self.model, self.course, self.optimizer, self.schedule, self.optimizer.forward, self.done)
        while self._reached() is None and (epoch := next(epochs, None)):
            self.done, self.seconds = epoch.number, self.seconds + epoch.seconds
            self.ranks.agree(buffer.data for buffer in self.model.buffers())
            self._evaluate(epoch)
            self.save(checkpoint)
            report(f"epoch {epoch.number}/{self.training.epochs}, {self._news()}")

    def _evaluate(self, epoch: Epoch | None = None) -> None:
        """Add the rows of the epoch: the first rank evaluates the model, and measures it at ``measure_at``."""
        values = self.ranks.first(self._scores)
        if not math.isfinite(loss := values["test.loss"] or 0.0):
            raise Diverged(f"the test loss is {loss} after epoch {self.done} of {self.training.epochs}")
        if epoch is not None:
            values |= {"train.loss": epoch.loss, "train.accuracy": epoch.accuracy, "train.seconds": self.seconds}
        self._add([Row(metric, value) for metric, value in values.items() if value is not None], self.done)
        if self.done in self.training.measure_at and self.ranks.rank == 0:
            with seeded(self.cell.seed, self.device):
                self._add(self._inspected(), self.done)

    def _scores(self) -> dict[str, float | None]:
        """Losses, accuracies and scores of test and validation data; the test loss alone if it is not finite."""
        loss, accuracy = evaluate(self.model, *self.test, self.course.loss)
        if not math.isfinite(loss):
            return {"test.loss": loss}
        values = {"test.loss": loss, "test.accuracy": accuracy}
        values |= self.cell.problem.score(self.model, self.dataset)
        if self.valid is not None:
            values["valid.loss"], values["valid.accuracy"] = evaluate(self.model, *self.valid, self.course.loss)
        return values

    def _inspected(self) -> Sequence[Row]:
        """The rows of a measurement, or a row with its reason if it fails, because the training goes on."""
        try:
            steps = self.course.steps_until(self.done)
            return self.inspect(decayed(self.cell.probe, self.training.probe_decay, steps))
        except (ValueError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
            return [Row("error.relative", status=Status.ERROR, reason=one_line(error))]

    def _add(self, rows: Iterable[Row], epoch: int) -> None:
        """Add rows with epoch and step: epochs include those of the snapshot, steps begin with this training."""
        count, step = self.cell.problem.epochs + epoch, self.course.steps_until(epoch)
        method = self.training.arguments
        self.rows += [dataclasses.replace(row, epoch=count, step=step, method=row.method or method) for row in rows]

    def _news(self) -> str:
        last = self.rows[-1].epoch
        values = {row.metric: row.value for row in self.rows if row.epoch == last and row.metric.startswith("t")}
        names = ("train.loss", "test.accuracy", *self.cell.problem.scores)
        return ", ".join(f"{name} {values[name]:.4g}" for name in names if name in values)

    def _reached(self) -> Row | None:
        """The first row that reached the target. None means that none did, or that there is no target."""
        target = self.training.target
        if target is None:
            return None
        sign = 1 if METRICS[self.training.metric].better == "higher" else -1
        rows = (row for row in self.rows if row.metric == self.training.metric)
        return next((row for row in rows if sign * (row.value or 0.0) >= sign * target), None)

    def _to_target(self) -> Iterator[Row]:
        """Epochs and seconds to the target, or a reason if it was not reached."""
        if self.training.target is None:
            return
        reached = self._reached()
        goal = f"{self.training.metric} {self.training.target:g}"
        reason = "" if reached else f"{goal} was not reached in {self.training.epochs} epochs"
        status = Status.OK if reached else Status.UNSUPPORTED
        values = {"train.epochs_to_target": float(self.done), "train.seconds_to_target": self.seconds}
        for metric, value in values.items():
            yield Row(metric, value if reached else None, status=status, reason=reason)

    def save(self, path: Path) -> None:
        """Store everything that the rest of the training depends on, completely or not at all."""
        on_cuda = self.device.type == "cuda"
        content = {
            "version": CHECKPOINT_VERSION,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": self.ranks.all(torch.get_rng_state()),
            "random_cuda": self.ranks.all(torch.cuda.get_rng_state(self.device) if on_cuda else None),
            "done": self.done,
            "seconds": self.seconds,
            "rows": [_plain(row) for row in self.rows],
            "libraries": libraries.loaded(),
        }
        if self.ranks.rank == 0:
            write(content, path)

    def load(self, path: Path) -> bool:
        """Go on from a checkpoint, and return True; return False if other libraries have made it.

        Raises:
            ValueError: the checkpoint is damaged, or of another version or probe.
        """
        try:
            content = torch.load(path, map_location=self.device, weights_only=True)
            if content["version"] != CHECKPOINT_VERSION:
                raise ValueError(f"its version is {content['version']}, not {CHECKPOINT_VERSION}")
            if libraries.changes(content["libraries"]):
                return False
            self.model.load_state_dict(content["model"])
            self.optimizer.load_state_dict(content["optimizer"])
            self.schedule.load_state_dict(content["schedule"])
            self.done, self.seconds = content["done"], content["seconds"]
            self.rows = [Row(**{**row, "status": Status(row["status"])}) for row in content["rows"]]
        except Exception as error:  # torch raises errors of many types for a damaged file
            reason = one_line(error, LONGEST_REASON)
            raise ValueError(f"checkpoint {path} cannot be used ({reason}): remove it to train anew") from error
        torch.set_rng_state(content["random"][self.ranks.rank].cpu())
        if (state := content["random_cuda"][self.ranks.rank]) is not None:
            torch.cuda.set_rng_state(state.cpu(), self.device)
        libraries.count_in(content["libraries"])
        return True


def optimizer_of(cell: Cell, settings: Training, model: nn.Module, loss: Loss, batches: int = 1) -> NaturalGradient:
    """The optimizer of a cell's probe with the settings of a training; ``batches``: their number in an epoch."""
    return NaturalGradient(
        model,
        _with_batches(cell.probe, batches),
        settings.lr,
        settings.momentum,
        settings.weight_decay,
        loss=loss,
        parameters=cell.parameters,
        stat_every=settings.stat_every,
        refresh_every=settings.refresh_every,
        kl_clip=settings.kl_clip,
        ema=settings.ema,
        decay=settings.probe_decay,
        others_lr=settings.others_lr,
    )


def checkpoint_path(cell: Cell, folder: Path) -> Path:
    """The file of a cell's checkpoint, in the folder of its reference."""
    assert cell.training is not None
    parts = {"probe": identity.component(cell.probe), "training": cell.training.hyperparameters}
    return folder / f"checkpoint-{identity.short_hash(parts)}.pt"


def _plain(row: Row) -> dict[str, Any]:
    """A row as a dictionary of numbers, texts and lists."""
    return {**vars(row), "status": str(row.status), "samples": list(row.samples)}


def _with_batches(probe: Probe, batches: int) -> Probe:
    """The probe with the number of batches in an epoch, if it has a field ``batches`` for it, as FNGD has."""
    if "batches" not in probe.hyperparameters:
        return probe
    return dataclasses.replace(probe, batches=batches)  # type: ignore[type-var]
