"""How a cell trains, and how a search chooses its settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from curvbench.spec.components import Component
from curvbench.spec.fields import NAMES, types_of
from curvbench.spec.metrics import PER_EPOCH, SCORES
from curvbench.spec.probe import Probe

Schedule = Literal["constant", "step", "cosine", "cosine-variant", "polynomial"]
Augmentation = Literal["none", "crop", "crop-flip"]


class Decay(NamedTuple):
    """An exponential decay over the steps t of a training: ``field`` is max(``least``, start ``rate``^t).

    Its text is ``field:rate:least``, or ``field:rate`` if the field falls towards 0.
    """

    field: str
    rate: float
    least: float = 0.0

    def __str__(self) -> str:
        return f"{self.field}:{self.rate!r}:{self.least!r}" if self.least else f"{self.field}:{self.rate!r}"

    @classmethod
    def read(cls, text: str) -> Decay:
        """The decay that a text of this form names; raises ValueError for any other text."""
        field, *numbers = text.split(":")
        if len(numbers) not in (1, 2):
            raise ValueError(f"a decay is field:rate or field:rate:least, got {text!r}")
        return cls(field, *map(float, numbers))

    def at(self, start: float, step: int) -> float:
        """The value at a step, counted from 0."""
        return max(self.least, start * self.rate**step)

    def refuse(self, start: float) -> None:
        """Raise ValueError if the field would not fall from ``start``."""
        if not 0 < self.rate < 1 or not 0 <= self.least <= start:
            raise ValueError(f"decay {self}: expected 0 < rate < 1 and 0 <= least <= {self.field}={start:g}")


NAMES[Decay] = "field:rate or field:rate:least"


def decayed(probe: Probe, decays: Sequence[Decay], step: int) -> Probe:
    """The probe with the values that its fields have at a step, counted from 0."""
    if not decays:
        return probe
    values = {decay.field: decay.at(getattr(probe, decay.field), step) for decay in decays}
    return dataclasses.replace(probe, **values)  # type: ignore[type-var]


def refuse_decays(probe: Probe, decays: Sequence[Decay]) -> None:
    """Raise ValueError if the probe has no such number, or refuses the value to which it falls."""
    numbers = [name for name, annotation in types_of(type(probe)).items() if annotation is float]
    for decay in decays:
        if decay.field not in numbers:
            known = ", ".join(numbers) or "none"
            raise ValueError(
                f"decay {decay}: {probe.name} has no number {decay.field!r} that could fall; it has {known}"
            )
        decay.refuse(getattr(probe, decay.field))
        try:
            dataclasses.replace(probe, **{decay.field: decay.least})  # type: ignore[type-var]
        except ValueError as error:
            raise ValueError(f"decay {decay} ends where {probe.name} does not work: {error}") from error


@dataclass(frozen=True)
class Training(Component):
    """How a cell trains with its probe, and what is measured on the way.

    ``epochs``: the number of epochs. ``max_steps``: the number of steps after which the training ends, in the midst
    of an epoch, while schedules go by the epochs; None means after all epochs. ``lr``: the learning rate.
    ``batch``: the number of samples per step. ``momentum``: the momentum of ``NaturalGradient``. ``weight_decay``:
    the decoupled weight decay. ``schedule``: how the rate falls over the steps, t from 0 to 1. ``step`` multiplies
    it by ``factor`` at each share ``at``; ``cosine`` falls to 0; ``cosine-variant`` is 0.001 + (lr - 0.001) (1 +
    cos(0.94 pi t)) / 2 and ``polynomial`` is lr (1 - t)^power, both of LNGD's paper. ``warmup``: the number of
    first epochs over which the rate grows linearly. ``factor``: the factor of ``schedule=step``. ``at``: the shares
    of the training at which ``schedule=step`` multiplies. ``power``: the exponent of ``schedule=polynomial``.
    ``decay``: what falls exponentially with every step, the rate (``lr``) or numbers of the probe, as in
    ``lr:0.9994:1e-4/epsilon:0.9998:1e-8``. ``stat_every``: the number of steps from one update of the statistics to
    the next. ``refresh_every``: the number of steps from one factorization to the next. ``ema``: the weight of the
    old statistics in their running average. ``kl_clip``: the bound of lr^2 <p, g>, above which a step is shortened.
    None means that no step is shortened. ``augment``: how training images change. ``crop`` moves them by up to an
    eighth of their size, ``crop-flip`` also mirrors them. ``share``: the share of the training part, chosen by the
    seed, that is used at all. ``valid``: the share of the used part that is not trained on but judged after each
    epoch; hyperparameters are chosen by it. ``target``: the value of ``metric`` at which the training ends. None
    means that it runs all epochs. ``metric``: the metric that has the target. ``measure_at``: the epochs after
    which the probe is held against the exact Fisher; 0 is the start. ``devices``: the number of processes on this
    machine that share every batch, each on a GPU of its own, or on the CPU with the cell's threads. ``others_lr``:
    AdamW's learning rate on the parameters that the probe does not cover, which changes with lr. None means lr if
    the method leaves these parameters to AdamW, and otherwise no AdamW. ``paced``: the number of steps of this
    training that are clocked in turn with those of SGD, in place of the training; 0 means that it trains.
    """

    epochs: int
    lr: float
    batch: int = 128
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Schedule = "constant"
    warmup: float = 0.0
    factor: float = 0.1
    at: tuple[float, ...] = (0.5, 0.75)
    power: float = 2.0
    decay: tuple[Decay, ...] = ()
    stat_every: int = 1
    refresh_every: int = 1
    ema: float = 0.0
    kl_clip: float | None = None
    augment: Augmentation = "none"
    share: float = 1.0
    valid: float = 0.0
    target: float | None = None
    metric: str = "test.accuracy"
    measure_at: tuple[int, ...] = ()
    devices: int = 1
    others_lr: float | None = None
    max_steps: int | None = None
    paced: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"training: max_steps must be at least 1, or none, got {self.max_steps}")
        if self.paced < 0:
            raise ValueError(f"training: paced is a number of steps from 0 on, got {self.paced}")
        if self.paced and self.devices > 1:
            raise ValueError(f"training: steps are clocked on one device: leave out devices={self.devices}")
        for name in ("epochs", "batch", "stat_every", "refresh_every", "devices"):
            if getattr(self, name) < 1:
                raise ValueError(f"training: {name} must be at least 1, got {getattr(self, name)}")
        for name in ("lr", "weight_decay", "warmup", "factor", "power"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"training: {name} must be finite and not negative, got {getattr(self, name)}")
        for name in ("momentum", "ema", "valid"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"training: {name} must lie in [0, 1), got {getattr(self, name)}")
        if not 0 < self.share <= 1:
            raise ValueError(f"training: share must lie in (0, 1], got {self.share}")
        if self.kl_clip is not None and not 0 < self.kl_clip < float("inf"):
            raise ValueError(f"training: kl_clip must be finite and above zero, or none, got {self.kl_clip}")
        if self.others_lr is not None and not 0 <= self.others_lr < float("inf"):
            raise ValueError(f"training: others_lr must be finite and not negative, or none, got {self.others_lr}")
        if outside := [epoch for epoch in self.measure_at if not 0 <= epoch <= self.epochs]:
            raise ValueError(f"training: measure_at must lie in 0..{self.epochs}, got {outside[0]}")
        if self.metric not in PER_EPOCH:
            raise ValueError(f"training: metric must be one of {', '.join(PER_EPOCH)}, got {self.metric!r}")
        if self.metric.startswith("valid.") and not self.valid:
            raise ValueError(f"training: {self.metric} needs a part of the training data: set valid, such as valid=0.1")
        self._refuse_decays()
        self._refuse_unreachable()

    def _refuse_decays(self) -> None:
        if strange := [decay for decay in self.decay if not isinstance(decay, Decay)]:
            raise ValueError(f"training: decay holds objects of class Decay, got {strange[0]!r}")
        names = [decay.field for decay in self.decay]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"training: decay names {twice[0]} more than once")
        for decay in self.decay:
            if decay.field == "lr" and self.schedule != "constant":
                raise ValueError(f"training: lr falls by schedule={self.schedule} or by decay={decay}, not by both")
            if decay.field == "lr":
                decay.refuse(self.lr)

    @property
    def probe_decay(self) -> tuple[Decay, ...]:
        """The decays of the probe's own numbers."""
        return tuple(decay for decay in self.decay if decay.field != "lr")

    def _refuse_unreachable(self) -> None:
        if self.target is None:
            return
        reached = self.target >= 0 if self.metric.endswith("loss") else 0 < self.target <= self._most
        if not reached:
            kind = "loss falls below 0" if self.metric.endswith("loss") else f"{self.metric} is above {self._most:g}"
            raise ValueError(f"training: no training reaches the target {self.target:g}: no {kind}")

    @property
    def _most(self) -> float:
        """The largest value of the metric."""
        return 100.0 if self.metric in SCORES else 1.0

    @property
    def name(self) -> str:
        """The first word of its text."""
        return "training"


@dataclass(frozen=True)
class Search:
    """How the settings of a preset are chosen before it trains: by trials that a validation part judges.

    ``grid``: the values to try, by name of a field of the training or of the probe; a probe that lacks the field
    ignores it. ``trials``: the largest number of settings, sampled from the grid with ``seed``. None tries the whole
    grid. ``sampler``: how settings are sampled. ``tpe`` samples in rounds that learn from earlier rounds, and takes
    numbers from anywhere between the least and the greatest of the grid (extra ``tune``). ``seed``: the seed of the
    sampling. ``seeds``: the seeds of the trainings of each setting. ``epochs``: the number of epochs of a trial. None
    means the training's own. ``valid``: the share of the training part that judges and is not trained on. ``metric``:
    the metric on that part; its median over seeds after the last epoch chooses the setting.
    """

    grid: Mapping[str, Sequence[Any]]
    trials: int | None = None
    sampler: Literal["random", "tpe"] = "random"
    seed: int = 0
    seeds: Sequence[int] = (0,)
    epochs: int | None = None
    valid: float = 0.2
    metric: Literal["valid.accuracy", "valid.loss"] = "valid.accuracy"

    def __post_init__(self) -> None:
        if not self.grid or not self.seeds or not all(self.grid.values()):
            raise ValueError("a search needs names with values in its grid, and a seed")
        if self.trials is not None and self.trials < 1:
            raise ValueError(f"a search needs one trial at least, or none for all of its grid, got {self.trials}")
        if self.sampler not in ("random", "tpe"):
            raise ValueError(f"the sampler of a search is one of random, tpe, got {self.sampler!r}")
        if self.sampler == "tpe" and self.trials is None:
            raise ValueError("a search with sampler='tpe' has no end of its own: give trials")
        if not 0 < self.valid < 1:
            raise ValueError(f"a search sets a share of the training part apart, 0 < valid < 1, got {self.valid}")
