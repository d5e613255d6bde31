"""A suite, its presets and its cells."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, Literal, get_args

from curvbench.spec.drift import Drift
from curvbench.spec.geometry import Parameters, refuse_parameters
from curvbench.spec.metrics import METERS, Meter
from curvbench.spec.probe import Probe
from curvbench.spec.problem import Problem
from curvbench.spec.refusals import MOST_THREADS, came, refuse_entries, refuse_kind, refuse_seeds, refuse_twice
from curvbench.spec.training import Search, Training, refuse_decays

Precision = Literal["mixed", "native", "float64"]  # of the reference Fisher, see ``curvbench.exact_fisher``
Summary = Literal["errors", "growth", "exact", "samples", "staleness"]
DTYPES = ("float32", "float64")
DAMPING = 1e-3  # of the mean Fisher, for the exact step and for the probes that are held against it
TRIALS = ".tuning"  # the suffix of the suite that holds the trials of a search
SURROGATE = "surrogate"  # the first word of the column ``method`` in every row of a surrogate cell


def refuse_damping(damping: float) -> None:
    """Raise ValueError if no natural gradient exists with this damping: it must be finite and above zero."""
    refuse_kind("the damping of the exact step", damping, (int, float), "a number")
    if not 0 < damping < math.inf:
        raise ValueError(f"the damping of the exact step must be finite and above zero, got {damping}")


def _refuse_settings(meters: Sequence[Meter], population: int, drift: Drift | None, training: Training | None) -> None:
    """Raise ValueError if the meters ``population`` and ``staleness`` lack their setting, or the other way round."""
    refuse_kind("population", population, int, "a number of samples")
    refuse_kind("drift", drift, (Drift, NoneType), "a Drift or None")
    refuse_kind("training", training, (Training, NoneType), "a Training or None")
    if population < 0 or ("population" in meters) != (population > 0):
        raise ValueError(f"the meter population and a number of samples go together, got population={population}")
    if ("staleness" in meters) != (drift is not None):
        raise ValueError(f"the meter staleness and a drift go together, got drift={drift}")
    if training is not None and (population or drift):
        raise ValueError("population and drift are of cells that are measured: leave out the training")


@dataclass(frozen=True)
class Preset:
    """One size of a suite: every problem with every probe and seed.

    ``pairs``: more cells, each a problem with a probe; ``-p`` or ``-m`` leaves them out. ``meters``: the meters that
    produce rows. ``precision``: the precision of the exact Fisher that probes are held against. ``training``: how the
    cells train. None means that they are measured. ``tuned``: other values of the training's fields for some probes, by
    their label or name. ``search``: how more such values are chosen. ``damping``: the damping, in units of the mean
    Fisher, of the exact step and of the steps that are held against it. ``parameters``: what the Fisher covers: ``all``
    trainable parameters, or the ``weights`` of linear layers and convolutions with their biases. ``population``: the
    number of other samples of the meter ``population``. ``drift``: the training of the meter ``staleness``.
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
    parameters: Parameters = "all"
    population: int = 0
    drift: Drift | None = None

    def __post_init__(self) -> None:
        self._refuse_kinds()
        refuse_damping(self.damping)
        refuse_parameters(self.parameters)
        _refuse_settings(self.meters, self.population, self.drift, self.training)
        for name in ("problems", "probes", "pairs"):
            refuse_twice(f"{name} of a preset", getattr(self, name))
        refuse_seeds(self.seeds)
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype of a preset is one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.search and (self.training is None or any(problem.epochs for problem in self.problems)):
            raise ValueError("a preset that searches has a training, and problems that are at initialisation: epochs=0")
        if not self.meters or (unknown := [name for name in self.meters if name not in get_args(Meter)]):
            came = repr(unknown[0]) if self.meters else "none"
            raise ValueError(f"meters of a preset are some of {', '.join(get_args(Meter))}, got {came}")
        if self.precision not in get_args(Precision):
            raise ValueError(
                f"precision of a preset is one of {', '.join(get_args(Precision))}, got {self.precision!r}"
            )

    def _refuse_kinds(self) -> None:
        refuse_entries("problems of a preset", self.problems, Problem, "a problem, as curvbench.problem(name) makes it")
        refuse_entries("probes of a preset", self.probes, Probe, "a probe, as curvbench.probe(name) makes it")
        refuse_entries("pairs of a preset", self.pairs, tuple, "a pair (problem, probe)")
        for pair in self.pairs:
            if len(pair) != 2 or not isinstance(pair[0], Problem) or not isinstance(pair[1], Probe):
                raise TypeError(f"each of pairs of a preset must be a pair (problem, probe), got {came(pair)}")
        refuse_entries("meters of a preset", self.meters, str, "a name")
        refuse_kind("search", self.search, (Search, NoneType), "a Search or None")
        refuse_kind("tuned", self.tuned, Mapping, "a mapping from the labels of probes to fields of the training")
        fields = {field.name for field in dataclasses.fields(Training)}
        for label, changes in self.tuned.items():
            refuse_kind(f"tuned[{label!r}]", changes, Mapping, "a mapping from fields of the training to values")
            if unknown := [name for name in changes if name not in fields]:
                raise ValueError(f"tuned[{label!r}]: a training has no field {unknown[0]!r}")

    def training_of(self, probe: Probe) -> Training | None:
        """How a probe trains here. None means that it is measured."""
        if self.training is None:
            return None
        return dataclasses.replace(self.training, **self.tuned.get(probe.label, self.tuned.get(probe.name, {})))


@dataclass(frozen=True)
class Resources:
    """What a cluster gives to one job.

    ``partition``: the partition's name; empty means the cluster's default. ``gpus``: the number of GPUs. ``time``: the
    limit in minutes. None means the sum of its cells' limits. ``memory``: gigabytes. ``cells``: the number of cells
    that one job measures.
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
    """What a suite file binds to ``SUITE``: a title and presets, one of which is called ``default``.

    ``title``: the heading of its tables. ``presets``: its presets by name. ``summary``: the table at the end of a run:
    ``errors`` and costs per problem, the ``growth`` of costs per sweep, the costs of the ``exact`` Fisher, errors and
    quality against the number of ``samples``, or against age (``staleness``).
    ``original``: the preset, or the presets, with a published experiment's own settings. A cell that none of them has,
    seeds apart, is a surrogate, and its rows say so. ``resources``: what a cluster gives to each job.
    """

    title: str
    presets: Mapping[str, Preset]
    summary: Summary = "errors"
    original: str | tuple[str, ...] = ""
    resources: Resources = Resources()

    def __post_init__(self) -> None:
        refuse_kind("the title of a suite", self.title, str, "a text")
        refuse_kind("the resources of a suite", self.resources, Resources, "Resources(...)")
        refuse_kind("the presets of a suite", self.presets, Mapping, "a mapping from names to presets")
        for name, preset in self.presets.items():
            refuse_kind("the name of a preset", name, str, "a text")
            refuse_kind(f"the preset {name!r}", preset, Preset, "Preset(problems, probes)")
        if "default" not in self.presets:
            raise ValueError(f"a suite needs a preset named 'default', got {sorted(self.presets)}")
        if self.summary not in get_args(Summary):
            raise ValueError(f"the summary of a suite is one of {', '.join(get_args(Summary))}, got {self.summary!r}")
        if unknown := [name for name in self._originals if name not in self.presets]:
            raise ValueError(f"the original of a suite is one of its presets, got {unknown[0]!r}")

    @property
    def _originals(self) -> tuple[str, ...]:
        names = (self.original,) if isinstance(self.original, str) else self.original
        return tuple(filter(None, names))

    @property
    def originals(self) -> tuple[Preset, ...]:
        """The presets of the published experiment; none if the suite has no original."""
        return tuple(self.presets[name] for name in self._originals)


@dataclass(frozen=True)
class Cell:
    """The unit of caching, isolation, failure and distribution: one probe on one problem with one seed.

    ``training``: how the probe trains. None means that it is measured. ``surrogate``: whether the cell stands in for a
    larger published experiment. ``weights``: the hash of the shipped snapshot that it starts from; empty means that its
    model is made here. ``population``: the number of other samples against which statistics are held; 0 means none.
    ``drift``: the training along which statistics grow old. None means that they do not.
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
    parameters: Parameters = "all"
    population: int = 0
    drift: Drift | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.threads <= MOST_THREADS:
            raise ValueError(f"threads lie in 1..{MOST_THREADS}, got {self.threads}")
        refuse_damping(self.damping)
        refuse_parameters(self.parameters)
        _refuse_settings(self.meters, self.population, self.drift, self.training)
        if 0 < self.population <= self.problem.samples:
            raise ValueError(
                f"{self.problem.label}: the population needs more than the {self.problem.samples} samples of the "
                f"statistics, got {self.population}"
            )
        if self.training is None:
            return
        refuse_decays(self.probe, self.training.probe_decay)
        if self.training.target is not None and self.training.metric not in (known := self.problem.metrics):
            raise ValueError(f"{self.problem.label} has no {self.training.metric}: choose one of {', '.join(known)}")

    @property
    def devices(self) -> int:
        """The number of processes that train together, each on a device of its own."""
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
