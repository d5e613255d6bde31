"""Every contract of curvbench in one file: read this first.

The way of the data::

    suite --cells()--> cell = problem x probe x seed --run_cell()--> own process --measure()--> rows
       rows --store--> one Parquet fragment per cell --load()--> DataFrame --> table, report, dashboard, gate

Imports point down only:

    5  cli --> verbs  runner  display  doctor   report
    4  engines   plot --> analysis   selection   tuning
    3  measure --> reference --> snapshots   trial --> training   optim   store   identity
    2  probes --> parts   problems   meters   states   schedules   augmentation   registry  hyperparameters
    1  operators   fisher --> instance --> verification --> checks --> tape   contents   layers   convolution
       likelihood   data   photos   text   summaries   download
    0  spec  numerics  passes  files  blocks

Legend of shape letters, used in names and docstrings everywhere:

    N  samples of a batch                T  loss terms per sample (tokens of a sequence; 1 otherwise)
    C  network outputs (classes)         R  score columns per sample (C - 1 for type-2 cross entropy)
    S  weight-sharing positions of a layer (pixels, tokens; 1 for a plain Linear)
    G  groups of a convolution (1 otherwise)
    D  inputs of a layer per group, the constant 1 of the bias included (last)
    M  outputs of a layer per group
    P  parameters compared, over all layers      L  layers
    K  rank, or number of vectors

A parameter vector has length P: layer after layer in ``named_modules`` order, each covered layer the
row-major matrix ``[W | b]`` of shape (G * M, D).
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, get_args

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from curvbench.instance import Instance
    from curvbench.operators import Operator
    from curvbench.photos import Photos

FisherType = Literal["type-2", "mc", "empirical", "forward-only"]
FLOP_MODEL = "2"  # version of counts (meters/flop_model.py) and cost models; rows of others are not comparable
FISHER_ALIASES: Mapping[str, FisherType] = {"type2": "type-2", "exact": "type-2"}
Kind = Literal["linear", "conv1d", "conv2d"]
Meter = Literal["clock", "flops", "memory", "error", "direction", "health", "exact"]
METERS: tuple[Meter, ...] = ("clock", "flops", "memory", "error", "direction", "health")  # those of a probe
Precision = Literal["mixed", "native", "float64"]  # of the reference Fisher, see ``curvbench.exact_fisher``
Summary = Literal["errors", "growth", "exact"]
Phase = Literal["statistics", "invert", "precondition", "step"]
PHASES: tuple[Phase, ...] = ("statistics", "invert", "precondition", "step")
DAMPING = 1e-3  # of the mean Fisher: what directions are held against, and run at, unless a preset says otherwise
SURROGATE = "surrogate"  # begins the column ``method`` of every row of a cell that is one


class Status(StrEnum):
    """How a cell ended. Only ``ok`` rows carry values; every other one carries a reason."""

    OK = "ok"
    SKIPPED = "skipped"
    UNSUPPORTED = "unsupported"
    DIVERGED = "diverged"
    ERROR = "error"
    OOM_HOST = "oom_host"
    OOM_DEVICE = "oom_device"
    TIMEOUT = "timeout"
    KILLED = "killed"
    CRASHED = "crashed"
    INTERRUPTED = "interrupted"


class Skip(Exception):
    """Raised by a problem that cannot be measured here (a data set that is absent); the text is the reason."""


class Unsupported(Exception):
    """Raised by a probe that does not cover what it was given; the text is the reason."""


class Diverged(Exception):
    """Training has left the finite numbers; the text says when."""


class Component:
    """A frozen dataclass whose fields are its hyperparameters: hashable, picklable, describes itself.

    The name is the file's: ``curvbench/probes/kfac.py`` holds ``kfac``. Outside the package it is the class's.
    """

    @property
    def name(self) -> str:
        module = type(self).__module__
        shipped = module.startswith(("curvbench.probes.", "curvbench.problems."))
        return module.rpartition(".")[2] if shipped else type(self).__name__

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Every field with its value, in the order of declaration."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]

    @property
    def arguments(self) -> str:
        """The hyperparameters that differ from their defaults, as ``key=value,...`` (what ``-p`` takes)."""
        changed = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)  # type: ignore[arg-type]
            if getattr(self, f.name) != f.default
        }
        return ",".join(f"{key}={_as_text(value)}" for key, value in changed.items())

    @property
    def label(self) -> str:
        """``name`` or ``name[key=value,...]``: what a table shows and ``-p``/``-m`` accept."""
        return f"{self.name}[{self.arguments}]" if self.arguments else self.name


def _as_text(value: Any) -> str:
    """A hyperparameter as ``-p`` reads it: the entries of a tuple with slashes between them."""
    return "/".join(map(str, value)) if isinstance(value, tuple) else str(value)


@dataclass(frozen=True)
class Layer:
    """Geometry of one covered layer. A Conv1d is a Conv2d of height 1; a Linear has no kernel.

    ``outputs`` (M) and ``inputs`` (D, bias included) are per group; ``start`` is the offset of the layer's
    first entry in the parameter vector; ``padding`` is (left, right, top, bottom) as ``F.pad`` takes it.
    """

    name: str
    kind: Kind
    groups: int
    outputs: int
    inputs: int
    bias: bool
    start: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    padding_mode: str = "zeros"

    @property
    def size(self) -> int:
        return self.groups * self.outputs * self.inputs

    @property
    def slice(self) -> slice:
        return slice(self.start, self.start + self.size)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(G, M, D)."""
        return self.groups, self.outputs, self.inputs


class LayerSize(NamedTuple):
    """What a cost model needs to know of a layer: G, M and D per group, S positions, k_h k_w (0 for a Linear)."""

    groups: int
    outputs: int
    inputs: int
    positions: int
    kernel: int = 0

    @property
    def entries(self) -> int:
        return self.groups * self.outputs * self.inputs


class About(NamedTuple):
    """What a probe says of its method beside its hyperparameters, as ``curvbench list --json`` and the docs show it.

    ``represents``: the matrix F^, undamped (empty: the docstring's first line). ``damping``: what is damped, and how.
    ``cost``: the keys of ``complexity`` as formulas, with the default hyperparameters, in shape letters, k = k_h k_w
    entries of a kernel (0 for a Linear) and names of hyperparameters; [condition] is 1 or 0. A term with a letter of a
    layer (S, G, D, M, k) is summed over layers. ``source``: the paper
    with its equations. ``notes``: what else decides its rows, one sentence or more each. ``errata``: ids of
    ``curvbench.parts.errata``, or one of its papers (``E-F``), or texts.
    """

    represents: str = ""
    damping: str = ""
    cost: Mapping[str, str] = MappingProxyType({})
    source: str = ""
    notes: Sequence[str] = ()
    errata: Sequence[str] = ()


@dataclass(frozen=True)
class StepRule:
    """How an optimizer turns a method's solves into steps; the defaults are heavy ball on the preconditioned gradient.

    ``momentum``: of the ``step``, m <- mu m + p; of the ``gradient`` before it is preconditioned, m <- mu m + g; or its
    bias-corrected ``average``, m <- mu m + (1 - mu) g. ``update``: whether a batch is taken in ``before`` or ``after``
    its own gradient is preconditioned. ``clip``: bound of every entry of the preconditioned gradient. ``anew``: each
    update forgets the others and fits its batch.
    """

    momentum: Literal["step", "gradient", "average"] = "step"
    update: Literal["before", "after"] = "before"
    clip: float = float("inf")
    anew: bool = False


class Probe(Component, ABC):
    """One method, as curvature operator and as preconditioner: the code that is measured is the code that trains.

    What is paid once, per refresh and per step are different methods, because those are the columns of the
    papers' cost tables. States are the probe's own; each method returns a new one. Subclasses are frozen
    dataclasses in one file each. The first line of their docstring is what ``curvbench list`` shows; what follows a
    field's name and a colon there, up to the next such name or the paragraph's end, is that field's meaning.

    ``updates``: how many updates ``fit`` makes. ``batch_size``: samples that each of them sees, drawn anew in random
    order; none stands for the whole batch as it is, in which only labels that are drawn vary.
    """

    about: ClassVar[About] = About()

    updates: int = 1
    """A field, with a meaningful default, of methods that learn over steps."""

    batch_size: int | None = None
    """A field of the same methods."""

    keeps_momentum: ClassVar[bool] = False
    """Whether ``precondition`` gives the step that past gradients make, which ``update`` has taken in already."""

    mean_over_samples: ClassVar[bool] = True
    """Whether the represented matrix is a mean over samples, which giving each of them twice does not change."""

    rule: ClassVar[StepRule] = StepRule()
    """How an optimizer steps with it."""

    averages: ClassVar[bool] = False
    """Whether the tensors of an unrefreshed state are statistics, so that a running average may blend them."""

    layerwise: ClassVar[bool] = False
    """Whether lists of an unrefreshed state have an entry per layer, and its vectors one per parameter.

    So a layer that a batch skips keeps its own. To any other probe its scores in that batch are zero, which they are.
    """

    joins: ClassVar[Literal["mean", "gradient"] | None] = None
    """How a batch in parts is one batch: their states' tensors are means over it, or are made of its gradient alone."""

    def damping_unit(self, terms: int) -> float | None:
        """What a damping of 1 of the mean Fisher of so many loss terms is in the field ``damping``: by default 1.

        None for a method without this field, whose step is judged with what it has in place of a damping.
        """
        return 1.0 if "damping" in self.hyperparameters else None

    @property
    def reads_gradient(self) -> bool:
        """Whether statistics read output gradients for the data's labels, which the training's own pass makes."""
        return self.follows or getattr(self, "fisher_type", "") == "empirical"

    @property
    def follows(self) -> bool:
        """Whether ``precondition`` takes scores of the batch of its own step, statistics due or not."""
        return False

    @property
    def solves_with(self) -> float | None:
        """The damping with which ``precondition`` solves (F^ + damping I) p = g; None where its step is another one."""
        return getattr(self, "damping", None) if getattr(self, "damping_rule", "exact") == "exact" else None

    def fit(self, instance: Instance) -> Any:
        """The state after ``updates`` updates at frozen parameters; raises Unsupported for too large a batch."""
        if self.batch_size is not None and self.batch_size > instance.samples:
            raise Unsupported(f"batch_size={self.batch_size} is more than the {instance.samples} samples there are")
        state = self.init(instance)
        for count in range(self.updates):
            batch = instance if self.batch_size is None else instance.draw(self.batch_size, seed=count)
            state = self.update(state, batch)
        return state

    def unsupported(self, instance: Instance) -> str | None:
        """A one-line reason why this probe cannot be measured on ``instance``, or None."""
        return None

    def init(self, instance: Instance) -> Any:
        """The state before any statistics; paid once."""
        return None

    @abstractmethod
    def update(self, state: Any, batch: Instance) -> Any:
        """Take in the statistics of one batch; the column ``statistics``."""

    def weigh(self, state: Any, batch: Instance) -> tuple[Tensor, Any] | None:
        """Where the step is known before the gradient: weights (L, N) of the samples in every layer, and the new state.

        An optimizer then makes one backward pass with them, which gives the step; nothing is taken in or solved.
        """
        return None

    def follow(self, state: Any, batch: Instance) -> Any:
        """Of a probe that ``follows``: the refreshed state at a step of which nothing else is taken in."""
        return state

    def refresh(self, state: Any) -> Any:
        """Factorize or invert what ``precondition`` needs; the column ``invert``."""
        return state

    @abstractmethod
    def precondition(self, state: Any, gradient: Tensor) -> Tensor:
        """The damped inverse of the represented matrix applied to a gradient, (P,) -> (P,)."""

    @abstractmethod
    def operator(self, state: Any) -> Operator:
        """The represented matrix, undamped."""

    def complexity(self, sizes: Sequence[LayerSize], samples: int, columns: int) -> Mapping[str, float]:
        """The published cost per phase in multiply-adds, for N samples of R columns; methods without one: empty.

        Keys: ``statistics``, ``invert``, ``precondition``, and ``memory``, the numbers kept between steps. Leading
        terms; where a phase adds several they have the constants of the algorithm used, or no mix of them would tend
        to a constant. Passes through the network are not included.
        """
        return {}


@dataclass(frozen=True)
class FisherProbe(Probe, ABC):
    """A damped probe whose statistics come from one of the Fisher types.

    ``fisher_type``: that of the statistics. ``mc_samples``: label draws per sample, for ``mc``. ``seed``: of the label
    draws. ``damping``: of the mean Fisher.
    """

    fisher_type: FisherType = "type-2"
    mc_samples: int = 1
    seed: int = 0
    damping: float = 1e-3

    def __post_init__(self) -> None:
        object.__setattr__(self, "fisher_type", FISHER_ALIASES.get(self.fisher_type, self.fisher_type))
        known = [kind for kind in get_args(FisherType) if kind in self.fisher_types]
        if self.fisher_type not in known:
            raise ValueError(f"fisher_type must be one of {', '.join(known)}, got {self.fisher_type!r}")
        if self.mc_samples < 1:
            raise ValueError(f"mc_samples must be at least 1, got {self.mc_samples}")
        if not 0 <= self.damping < float("inf"):
            raise ValueError(f"damping must be finite and not negative, got {self.damping}")

    fisher_types: ClassVar[tuple[FisherType, ...]] = ("type-2", "mc", "empirical")


@dataclass(frozen=True)
class Dataset:
    """A data set: inputs (N, ...), float or tokens, targets (N,) or (N, T) int64 or (N, C) float."""

    train_inputs: Tensor | Photos
    train_targets: Tensor
    test_inputs: Tensor | Photos
    test_targets: Tensor


@dataclass(frozen=True)
class Recipe:
    """How a snapshot is trained before it is measured: plain SGD with momentum, cosine schedule."""

    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch: int = 128


class Problem(Component, ABC):
    """A model, its data and its loss, with at least two fields.

    ``samples``: how many are measured, N. ``epochs``: of training before that. ``mc_samples``: label draws per sample
    of the Monte-Carlo Fisher that probes are held against; 0 is the exact type-2 Fisher.
    """

    loss: ClassVar[str] = "cross_entropy"
    recipe: ClassVar[Recipe] = Recipe()
    measured: ClassVar[frozenset[str]] = frozenset({"samples", "mc_samples"})
    """Fields that say what is measured and decide no weight: all others belong to the recipe of a snapshot."""

    samples: int
    epochs: int
    mc_samples: int = 0
    """A field of problems with many outputs: the exact Fisher has R = C - 1 columns per loss term."""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"{self.name}: samples must be at least 1, got {self.samples}")
        if self.epochs < 0:
            raise ValueError(f"{self.name}: epochs must not be negative, got {self.epochs}")
        if self.mc_samples < 0:
            raise ValueError(f"{self.name}: mc_samples must not be negative, got {self.mc_samples}")

    @abstractmethod
    def model(self) -> nn.Module:
        """A fresh model in the default dtype, drawn from torch's global generator (seeded by the caller)."""

    @abstractmethod
    def data(self, root: Path | None) -> Dataset:
        """The data, read from ``root`` where it is not embedded; raises Skip with how to get it."""

    @property
    def scores(self) -> tuple[str, ...]:
        """Names in METRICS of what ``score`` gives."""
        return ()

    @property
    def metrics(self) -> tuple[str, ...]:
        """What is known of a training after each epoch, and may have a target."""
        kinds = ("loss", "accuracy") if self.loss == "cross_entropy" else ("loss",)
        return tuple(name for name in PER_EPOCH if name.endswith(kinds) or name in self.scores)

    def score(self, model: nn.Module, dataset: Dataset) -> Mapping[str, float]:
        """What the test part shows beside loss and accuracy; raises Skip where a library for it is absent."""
        return {}


Schedule = Literal["constant", "step", "cosine", "cosine-variant", "polynomial"]
Augmentation = Literal["none", "crop", "crop-flip"]


class Decay(NamedTuple):
    """What falls with every step t of a training: ``field`` is max(``least``, start ``rate``^t), a function of t alone.

    As text ``field:rate:least``, or ``field:rate`` where it falls towards 0.
    """

    field: str
    rate: float
    least: float = 0.0

    def __str__(self) -> str:
        return f"{self.field}:{self.rate!r}:{self.least!r}" if self.least else f"{self.field}:{self.rate!r}"

    @classmethod
    def read(cls, text: str) -> Decay:
        """The decay that ``str`` wrote; raises ValueError for any other text."""
        field, *numbers = text.split(":")
        if len(numbers) not in (1, 2):
            raise ValueError(f"a decay is field:rate or field:rate:least, got {text!r}")
        return cls(field, *map(float, numbers))

    def at(self, start: float, step: int) -> float:
        """The value at a step, counted from 0."""
        return max(self.least, start * self.rate**step)

    def refuse(self, start: float) -> None:
        """Raise ValueError where nothing falls from ``start``."""
        if not 0 < self.rate < 1 or not 0 <= self.least <= start:
            raise ValueError(f"decay {self}: expected 0 < rate < 1 and 0 <= least <= {self.field}={start:g}")


def decayed(probe: Probe, decays: Sequence[Decay], step: int) -> Probe:
    """The probe with its fields as they are at a step of a training, counted from 0."""
    if not decays:
        return probe
    values = {decay.field: decay.at(getattr(probe, decay.field), step) for decay in decays}
    return dataclasses.replace(probe, **values)  # type: ignore[type-var]


def refuse_decays(probe: Probe, decays: Sequence[Decay]) -> None:
    """Raise ValueError where a field of ``decays`` is no number of the probe's, or cannot be what it falls to."""
    numbers = [f.name for f in dataclasses.fields(probe) if f.type in ("float", float)]  # type: ignore[arg-type]
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

    ``epochs``, ``lr``, ``batch``, ``momentum``, ``weight_decay``, ``stat_every``, ``refresh_every``, ``ema`` and
    ``kl_clip`` are those of ``curvbench.optim.NaturalGradient``. The rate follows ``schedule`` over the steps, t from 0
    to 1, while it grows linearly over the first ``warmup`` epochs: ``step`` multiplies by ``factor`` at each share
    ``at``; ``cosine`` falls to 0; ``cosine-variant`` is 0.001 + (lr - 0.001) (1 + cos(0.94 pi t)) / 2 and
    ``polynomial`` lr (1 - t)^``power``, both of LNGD's paper. ``decay`` has what falls exponentially with every step,
    the rate (``lr``) or numbers of the probe (``Decay``): ``lr:0.9994:1e-4/epsilon:0.9998:1e-8``. ``augment`` moves
    images by up to an eighth of their size and mirrors them. ``share`` of the training part, drawn by the seed, is all
    that there is; ``valid`` is the share of it that is not trained on but judged after each epoch: what hyperparameters
    are chosen by. Training ends at the epoch in which ``metric`` reaches ``target``. ``measure_at`` names epochs, 0 the
    start, after which the probe is held against the exact Fisher. ``devices`` share every batch, as processes of one
    machine: GPUs, or the CPU with the cell's threads for each.
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

    def __post_init__(self) -> None:
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
        for name, known in (("schedule", Schedule), ("augment", Augmentation)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(
                    f"training: {name} must be one of {', '.join(get_args(known))}, got {getattr(self, name)!r}"
                )
        if self.kl_clip is not None and not 0 < self.kl_clip < float("inf"):
            raise ValueError(f"training: kl_clip must be finite and above zero, or none, got {self.kl_clip}")
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
        """What falls of the probe's numbers."""
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
        return "training"


@dataclass(frozen=True)
class Search:
    """How settings are looked for before a preset trains with them: by trials that a validation part judges.

    ``grid``: values by name of a field of the training or of the probe; a name that a probe has not is passed over.
    ``trials``: so many settings of the grid at most, drawn at random by ``seed``; none of it tries all. ``sampler``:
    ``tpe`` tries so many in rounds that learn from those before, numbers from anywhere between the least and the
    greatest of the grid (extra ``tune``). ``seeds``: of the trainings of each setting. ``epochs``: of a trial; none
    takes the training's. ``valid``: share of the training part that is set apart. ``metric``: of that part, whose
    median over seeds after the last epoch chooses.
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


def refuse_damping(damping: float) -> None:
    """Raise ValueError unless it is one with which a natural gradient exists: finite and above zero."""
    if not 0 < damping < math.inf:
        raise ValueError(f"the damping of the exact step must be finite and above zero, got {damping}")


@dataclass(frozen=True)
class Preset:
    """One size of a suite: every problem with every probe and seed.

    ``pairs`` are measured besides, unless ``-p`` or ``-m`` choose. Metrics of meters that are not named are no rows.
    ``precision`` is that of the Fisher that probes are held against. With a ``training`` its cells train. ``tuned`` has
    other values of its fields for some probes, by label or by name. A ``search`` looks for more such values.
    ``damping``, of the mean Fisher, is that of the exact step that all steps are held against, and of those steps.
    """

    problems: Sequence[Problem]
    probes: Sequence[Probe]
    seeds: Sequence[int] = (0,)
    dtype: str = "float32"
    pairs: Sequence[tuple[Problem, Probe]] = ()
    meters: Sequence[Meter] = METERS
    precision: Precision = "mixed"
    training: Training | None = None
    tuned: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    search: Search | None = None
    damping: float = DAMPING

    def __post_init__(self) -> None:
        refuse_damping(self.damping)
        if self.search and (self.training is None or any(problem.epochs for problem in self.problems)):
            raise ValueError("a preset that searches has a training, and problems that are at initialisation: epochs=0")
        if not self.meters or (unknown := [name for name in self.meters if name not in get_args(Meter)]):
            came = repr(unknown[0]) if self.meters else "none"
            raise ValueError(f"meters of a preset are some of {', '.join(get_args(Meter))}, got {came}")
        if self.precision not in get_args(Precision):
            raise ValueError(
                f"precision of a preset is one of {', '.join(get_args(Precision))}, got {self.precision!r}"
            )

    def training_of(self, probe: Probe) -> Training | None:
        """How a probe trains here; None where it is measured."""
        if self.training is None:
            return None
        return dataclasses.replace(self.training, **self.tuned.get(probe.label, self.tuned.get(probe.name, {})))


@dataclass(frozen=True)
class Resources:
    """What a job on a cluster is given: a ``partition`` (empty: the cluster's default), GPUs, gigabytes of ``memory``.

    ``time``: minutes; without it, what its cells may take by their time limits. ``cells``: how many one job measures.
    """

    partition: str = ""
    gpus: int = 0
    time: int | None = None
    memory: float = 4.0
    cells: int = 8

    def __post_init__(self) -> None:
        if self.cells < 1 or self.gpus < 0 or not 0 < self.memory < float("inf") or (self.time or 1) < 1:
            raise ValueError(f"resources: expected positive cells, memory and time, and gpus from 0 on, got {self}")


@dataclass(frozen=True)
class Suite:
    """What a suite file binds to ``SUITE``: a title, presets, ``default`` among them, and what a run ends with.

    ``summary``: a table of ``errors`` and costs per problem, of the ``growth`` of costs per sweep, or of what the
    ``exact`` Fisher costs. ``original``: of a published experiment the preset with its settings. Every cell that is not
    one of its cells, seeds apart, is a surrogate, and its rows say so. ``resources``: of each
    job, on a cluster.
    """

    title: str
    presets: Mapping[str, Preset]
    summary: Summary = "errors"
    original: str = ""
    resources: Resources = Resources()

    def __post_init__(self) -> None:
        if "default" not in self.presets:
            raise ValueError(f"a suite needs a preset named 'default', got {sorted(self.presets)}")
        if self.summary not in get_args(Summary):
            raise ValueError(f"the summary of a suite is one of {', '.join(get_args(Summary))}, got {self.summary!r}")
        if self.original and self.original not in self.presets:
            raise ValueError(f"the original of a suite is one of its presets, got {self.original!r}")


@dataclass(frozen=True)
class Cell:
    """The unit of caching, isolation, failure and distribution: one probe on one problem with one seed.

    With a ``training`` it is a training with that probe, else a measurement of it. A ``surrogate`` stands in for a
    published experiment that is larger. ``weights``: the hash of the shipped snapshot that it starts from; empty where
    its model is made here.
    """

    suite: str
    problem: Problem
    probe: Probe
    seed: int
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1
    meters: tuple[Meter, ...] = METERS
    training: Training | None = None
    precision: Precision = "mixed"
    surrogate: bool = False
    weights: str = ""
    damping: float = DAMPING

    def __post_init__(self) -> None:
        refuse_damping(self.damping)
        if self.training is None:
            return
        refuse_decays(self.probe, self.training.probe_decay)
        if self.training.target is not None and self.training.metric not in (known := self.problem.metrics):
            raise ValueError(f"{self.problem.label} has no {self.training.metric}: choose one of {', '.join(known)}")

    @property
    def devices(self) -> int:
        """Processes that train together, each on a device of its own."""
        return self.training.devices if self.training else 1

    @property
    def label(self) -> str:
        return f"{self.probe.label} on {self.problem.label}, seed {self.seed}{self._rates}"

    @property
    def _rates(self) -> str:
        if self.training is None:
            return ""
        falling = "/".join(map(str, self.training.decay))
        return f", lr {self.training.lr:g}" + (f", decay {falling}" if falling else "")


@dataclass(frozen=True)
class Row:
    """One measurement, or one reason why there is none. The store adds the cell's identity and environment.

    NaN and infinity are no measurement: a row that would be ``ok`` with one is an ``error`` without a value.
    """

    metric: str = ""
    value: float | None = None
    scope: str = "network"
    samples: Sequence[float] = ()
    method: str = ""
    status: Status = Status.OK
    reason: str = ""
    epoch: int | None = None
    step: int | None = None

    def __post_init__(self) -> None:
        numbers = [*([] if self.value is None else [self.value]), *self.samples]
        if self.status != Status.OK or all(map(math.isfinite, numbers)):
            return
        what = "not a number" if any(map(math.isnan, numbers)) else "infinite"
        changes = {"status": Status.ERROR, "value": None, "samples": (), "reason": f"what was measured is {what}"}
        for name, value in changes.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class Metric:
    """Meaning of a metric: unit, which way is better ("lower", "higher" or "" for neither), one sentence."""

    unit: str
    better: Literal["lower", "higher", ""]
    text: str = field(default="")


SCORES = ("test.bleu", "test.rouge1", "test.rouge2", "test.rougeL")  # those of a problem, in percent
PER_EPOCH = (  # of which one may have a target
    *("train.loss", "train.accuracy", "valid.loss", "valid.accuracy", "test.loss", "test.accuracy"),
    *SCORES,
)

METRICS: dict[str, Metric] = {
    "error.relative": Metric("1", "lower", "|F^ - F| / |F| in Frobenius norm; `method` says what F is"),
    "error.scale_optimal": Metric(
        "1", "lower", "the relative error after the best scalar multiple, sqrt(1 - cosine^2)"
    ),
    "error.cosine": Metric("1", "higher", "<F^, F> / (|F^| |F|)"),
    "error.trace_ratio": Metric("1", "", "tr F^ / tr F; 1 is right"),
    "error.diagonal": Metric("1", "lower", "relative error of the diagonal"),
    "error.spectral": Metric("1", "lower", "relative error of the ten largest eigenvalues, as a vector"),
    "error.off_block": Metric("1", "", "share of |F|^2 outside the layer blocks: what no layer-wise method can have"),
    "error.sampling": Metric(
        "1", "lower", "relative error minus that of the same probe with the type-2 Fisher; only against an exact Fisher"
    ),
    "health.condition": Metric("1", "", "condition number of the damped operator"),
    "health.retries": Metric("1", "lower", "factorizations that had to be repeated in higher precision"),
    "health.residual": Metric(
        "1", "lower", "|(F^ + damping I) p - g| / |g| of the probe's own step p: what its solve has lost to rounding"
    ),
    "health.asymmetry": Metric("1", "lower", "|v'F^w - w'F^v| / (|v| |F^w|) for random v and w"),
    "direction.cosine": Metric("1", "higher", "cosine of the step with (F + damping I)^-1 g"),
    "direction.relative": Metric("1", "lower", "relative distance of the step from (F + damping I)^-1 g"),
    "direction.quality": Metric(
        "1", "higher", "share of the best decrease of the damped quadratic model at the step's best length, signed"
    ),
    "direction.quality_rates": Metric("1", "higher", "the same share with a free rate per layer"),
    "direction.gap_closed": Metric(
        "1", "higher", "quality on the scale where the gradient is 0 and the step by exact layer blocks is 1"
    ),
    "direction.length": Metric("1", "", "the best multiple of the step; 1 is right"),
    "direction.decrease": Metric(
        "1", "higher", "share of the best decrease at the length that the step has: it ranks lengths"
    ),
    "direction.gradient": Metric("1", "", "cosine of the step with the gradient; 1 is plain gradient descent"),
    "flops.counted": Metric("FLOP", "lower", "floating-point operations, 2 per multiply-add, counted as dispatched"),
    "flops.passes": Metric("FLOP", "lower", "of the counted ones, passes through the network: not the method's own"),
    "flops.uncounted_ops": Metric("1", "lower", "operations without a formula (named in `reason`); must be none"),
    "flops.model": Metric("FLOP", "", "the method's published complexity, 2 FLOP per multiply-add, no passes"),
    "flops.ratio": Metric("1", "lower", "counted FLOPs over those of a plain gradient step"),
    "memory.peak": Metric("B", "lower", "highest live tensor bytes above those live when the phase began"),
    "memory.state": Metric("B", "lower", "bytes of the tensors kept between steps"),
    "memory.model": Metric("B", "", "the method's published memory: numbers kept times their bytes"),
    "memory.ratio": Metric("1", "lower", "peak over the peak of a plain gradient step"),
    "time.wall": Metric("s", "lower", "median wall-clock seconds; raw samples beside it"),
    "time.cpu": Metric("s", "lower", "median CPU seconds of the process, which others do not lengthen; CPU only"),
    "time.ratio": Metric("1", "lower", "seconds over those of an SGD step measured in turn in the same process"),
    "time.floor": Metric("1", "lower", "seconds over those of the counted FLOPs at the machine's matrix-product peak"),
    "flops.hutchinson": Metric("1", "higher", "FLOPs of an estimate of |F| to 1 % over those of the exact |F|"),
    "machine.peak": Metric("FLOP/s", "higher", "rate of a square matrix product, measured in the same process"),
    "train.loss": Metric("1", "lower", "mean loss of the epoch's batches, each before its step, in training mode"),
    "train.accuracy": Metric("1", "higher", "share of hits in the same passes"),
    "test.loss": Metric("1", "lower", "mean loss on the test part after the epoch, in evaluation mode"),
    "test.accuracy": Metric("1", "higher", "share of hits on the test part after the epoch"),
    "test.bleu": Metric("%", "higher", "BLEU of greedy translations (sacrebleu, lower case, international tokens)"),
    "test.rouge1": Metric("%", "higher", "ROUGE-1 of greedy summaries, F1 with stemming, mean over the test part"),
    "test.rouge2": Metric("%", "higher", "ROUGE-2 of the same"),
    "test.rougeL": Metric("%", "higher", "ROUGE-L of the same"),
    "valid.loss": Metric("1", "lower", "mean loss on the share ``valid`` of the training part, not trained on"),
    "valid.accuracy": Metric("1", "higher", "share of hits on the same"),
    "train.seconds": Metric("s", "lower", "seconds of training up to the end of the epoch, without any evaluation"),
    "train.epochs_to_target": Metric("1", "lower", "epochs until the target was reached"),
    "train.seconds_to_target": Metric("s", "lower", "seconds of training until the end of that epoch"),
    "problem.samples": Metric("1", "", "samples measured, N"),
    "problem.parameters": Metric("1", "", "parameters compared, P"),
    "coverage.parameters": Metric("1", "higher", "share of the trainable parameters that is compared"),
    "coverage.trace": Metric("1", "higher", "share of the trace over all trainable parameters that is compared"),
}
