"""A probe's state over the steps of a training."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from curvbench import states
from curvbench.instance import Instance
from curvbench.instance.profiling import labelled
from curvbench.spec import Decay, Follows, Probe, decayed, refuse_decays
from curvbench.states.ranks import ALONE, Ranks, shares

STATE_VERSION = 2
_STEPS_PER_SEED = 2**20  # updates draw with seeds of their own; below this count neighbouring seeds share none of them
_SEEDS_PER_PART = 2**48  # above the seeds of all steps, so that a part of a batch shares its draws with no step


class Part(NamedTuple):
    """The state after a part of a batch, the part's loss terms and samples, and the layers that it skipped."""

    state: Any
    terms: int
    samples: int
    skipped: frozenset[str]


@dataclasses.dataclass
class Checks:
    """When per-sample scores are compared with plain autograd: at new shapes, and after 1, 2, 4, 8, ... updates.

    A check costs about as much as a plain step. Where every batch has a new shape, all of the first eight are checked
    and then at most one in fifty. ``rests``: no more checks are due.
    """

    shapes: set[tuple[torch.Size, ...]] = dataclasses.field(default_factory=set)
    count: int = 0
    rests: bool = False

    def due(self, batch: tuple[torch.Size, ...], updates: int) -> bool:
        """Whether a batch of these shapes is to be checked after ``updates`` updates; the first batch always is."""
        if self.rests:
            return False
        is_new = batch not in self.shapes and (self.count < 8 or 50 * self.count <= updates)
        is_power = updates > 0 and updates & (updates - 1) == 0
        self.shapes.add(batch)
        self.count += is_new or is_power
        return is_new or is_power


class Curvature:
    """A probe's state over the steps of a training: statistics, their average and factorizations when they are due.

    ``steps`` counts the solves. ``state`` is the probe's state after the last update; ``refreshed`` is the state that
    solves.
    """

    def __init__(
        self,
        probe: Probe,
        stat_every: int = 1,
        refresh_every: int = 1,
        ema: float = 0.0,
        ranks: Ranks = ALONE,
        decay: Sequence[Decay] = (),
    ) -> None:
        for name, value in (("stat_every", stat_every), ("refresh_every", refresh_every)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 <= ema < 1:
            raise ValueError(f"ema must lie in [0, 1), got {ema}")
        if ema and not probe.supports_ema:
            raise ValueError(f"{probe.name} has no statistics that ema could average: leave ema out")
        refuse_decays(probe, decay)
        self._start, self.decay = probe, tuple(decay)
        self.stat_every, self.refresh_every, self.ema = stat_every, refresh_every, ema
        self.ranks = ranks
        self.steps = 0
        self.state: Any = None
        self.refreshed: Any = None
        self._updates = 0
        self._unrefreshed = False
        self._parts: list[Part] = []

    @property
    def updates(self) -> int:
        """The number of updates so far."""
        return self._updates

    @property
    def probe(self) -> Probe:
        """The probe as it is at the next solve."""
        return decayed(self._start, self.decay, self.steps)

    @property
    def is_due(self) -> bool:
        """Whether the next solve needs its batch."""
        return self._is_update_due or self.probe.needs_every_batch

    @property
    def _is_update_due(self) -> bool:
        return self.steps % self.stat_every == 0

    def solve(self, vector: Tensor, batch: Instance | None, reached: Collection[str]) -> Tensor:
        """The damped inverse applied to a vector (P,); the probe's rule says when ``batch`` updates the state.

        ``reached``: names of the parameters that have a gradient.
        """
        rule = self.probe.rule
        if self.steps == 0:
            assert batch is not None, "the first step is due"
            self._begin(batch)
            self.refreshed = self.probe.refresh(self.state) if rule.update == "after" else None
        if rule.update == "before":
            self._update_and_refresh(batch, reached)
        with labelled("precondition"):
            step = self.probe.precondition(self.refreshed, vector)
        if rule.update == "after":
            self._update_and_refresh(batch, reached)
        self.steps += 1
        return step.clamp(-rule.clip, rule.clip) if math.isfinite(rule.clip) else step

    def take_part(self, batch: Instance) -> None:
        """Take statistics of a part of the next update's batch; the last part goes to ``solve`` instead."""
        self._begin(batch)
        new = self._probe_with_seed().update(self.state, batch)
        self._parts.append(Part(new, batch.terms, batch.samples, _skipped(batch, batch.parameters)))

    def drop_parts(self) -> None:
        """Forget the parts of the next update's batch."""
        self._parts = []

    def _begin(self, batch: Instance) -> None:
        if self.state is None:
            self.state = self.probe.init(batch)

    def skip_solve(self, state: Any) -> None:
        """Count a step that needs no solve, and go on with ``state``."""
        self.state = self.refreshed = state
        self.steps += 1

    def _update_and_refresh(self, batch: Instance | None, reached: Collection[str]) -> None:
        if batch is not None and self._is_update_due:
            with labelled("statistics"):
                self.state = self._updated(batch, reached)
            self._updates += 1
            self._unrefreshed = True
        has_refresh = type(self.probe).refresh is not Probe.refresh
        if self._unrefreshed and (not has_refresh or self.steps % self.refresh_every == 0):
            with self.ranks.sharing(), labelled("invert"):
                self.refreshed = self.probe.refresh(self.state)
            self._unrefreshed = False
        elif batch is not None and isinstance(self.probe, Follows) and self.probe.needs_every_batch:
            self.refreshed = self.probe.follow(self.refreshed, batch)

    def _updated(self, batch: Instance, reached: Collection[str]) -> Any:
        probe = self._probe_with_seed()
        if probe.rule.restarts:
            return probe.fit(batch)
        new = probe.update(self.state, batch)
        skipped = _skipped(batch, reached)
        if probe.combines_by == "mean":
            parts = [*self._parts, Part(new, batch.terms, batch.samples, _skipped(batch, batch.parameters))]
            skipped = self._agreed([part.skipped for part in parts])
            new = _joined_parts(parts)
            terms, samples = (sum(counts) for counts in zip(*(part[1:3] for part in parts), strict=True))
            new = self.ranks.join_state(new, self.ranks.share(terms, samples))
        self.drop_parts()
        averaged = states.blend(self.state, new, self.ema) if self.ema and self._updates else new
        if not skipped or self.state is None or not probe.is_layerwise:
            return averaged
        numbers = [number for number, layer in enumerate(batch.layers) if layer.name in skipped]
        return states.kept(self.state, averaged, [layer.slice for layer in batch.layers], numbers)

    def _agreed(self, skipped: Sequence[frozenset[str]]) -> frozenset[str]:
        """The layers that all parts of a batch skip, on all ranks; a mean over some parts would not be the batch's."""
        choices = {layers for rank in self.ranks.all(skipped) for layers in rank}
        if len(choices) > 1:
            names = ", ".join(map(repr, sorted(frozenset.union(*choices) - frozenset.intersection(*choices))))
            raise ValueError(
                f"some parts of the batch skip layer {names} and others do not: skip the layer in all parts or in none"
            )
        return choices.pop()

    def _probe_with_seed(self) -> Probe:
        """The probe with a seed that no other update, part of a batch or rank draws with."""
        offset = self.ranks.rank + len(self._parts) * _SEEDS_PER_PART
        return self.probe.reseeded(lambda s: (s * _STEPS_PER_SEED + self._updates) * self.ranks.count + offset)

    def state_dict(self) -> dict[str, Any]:
        """Plain containers of tensors and numbers."""
        same = self.refreshed is self.state
        return {
            "version": STATE_VERSION,
            "probe": self._start.label,
            "steps": self.steps,
            "updates": self._updates,
            "unrefreshed": self._unrefreshed,
            "kept": states.pack(self.state),
            "ready": None if same else states.pack(self.refreshed),
            "same": same,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the result of ``state_dict``; raises ValueError for another probe or version."""
        if state.get("version") != STATE_VERSION:
            raise ValueError(
                f"the state has version {state.get('version')}, this curvbench reads version {STATE_VERSION}: "
                "train from the beginning"
            )
        if state["probe"] != self._start.label:
            raise ValueError(f"the state is that of {state['probe']}, this optimizer's probe is {self._start.label}")
        modules = {type(probe).__module__ for probe in _with_inner(self._start)}
        self.steps, self._updates, self._unrefreshed = state["steps"], state["updates"], state["unrefreshed"]
        self.state = states.unpack(state["kept"], *modules)
        self.refreshed = self.state if state["same"] else states.unpack(state["ready"], *modules)
        self._parts = []


def _with_inner(probe: Probe) -> Iterator[Probe]:
    """The probe, and those among its hyperparameters at any depth."""
    yield probe
    for inner in probe.inner.values():
        yield from _with_inner(inner)


def _skipped(batch: Instance, reached: Collection[str]) -> frozenset[str]:
    """Layers that the batch did not go through; without a recorded pass, the layers without a gradient."""
    if batch.reached:
        return frozenset(layer.name for layer in batch.layers if layer.name not in batch.reached)
    return frozenset(layer.name for layer in batch.layers if not any(n in reached for n in layer.parameters))


def _joined_parts(parts: Sequence[Part]) -> Any:
    """The state of a whole batch from the states of its parts."""
    if len(parts) == 1:
        return parts[0].state
    weights = shares([(part.terms, part.samples) for part in parts])
    return states.weighted([part.state for part in parts], weights)
