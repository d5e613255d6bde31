"""A probe's state over the steps of a training."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from curvbench import states
from curvbench.instance import Instance
from curvbench.instance.layers import parameter_names
from curvbench.spec import Decay, Follows, Probe, decayed, refuse_decays
from curvbench.states.ranks import ALONE, Ranks, shares

STATE_VERSION = 2
_DRAWS = 2**20  # steps of one seed, so that neighbouring seeds share no draws
_PARTS = 2**48  # and parts of a batch share none with any step


class Part(NamedTuple):
    """The state after a part of a batch, how much of it that is, and the layers that the part skipped."""

    state: Any
    terms: int
    samples: int
    skipped: frozenset[str]


@dataclasses.dataclass
class Checks:
    """When per-sample scores are compared with plain autograd again: at new shapes, and ever more rarely.

    That is at the statistics 1, 2, 4, 8 and so on. Where every batch has a shape of its own, one in fifty suffices
    after the first eight: a check costs about as much as a plain step.
    """

    shapes: set[tuple[torch.Size, ...]] = dataclasses.field(default_factory=set)
    made: int = 0

    def due(self, batch: tuple[torch.Size, ...], statistics: int) -> bool:
        """Whether this batch is to be compared, after so many ``statistics``; the first was, to begin with."""
        new = batch not in self.shapes and (self.made < 8 or 50 * self.made <= statistics)
        power = statistics > 0 and statistics & (statistics - 1) == 0
        self.shapes.add(batch)
        self.made += new or power
        return new or power


class Curvature:
    """A probe's state over the steps of a training: statistics, their average and factorizations when they are due.

    ``steps`` counts the solves. ``kept`` is the state after its last update, ``ready`` the one that solves.
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
        self.kept: Any = None
        self.ready: Any = None
        self._updates = 0
        self._unrefreshed = False
        self._parts: list[Part] = []

    @property
    def updates(self) -> int:
        """How often statistics were taken in."""
        return self._updates

    @property
    def probe(self) -> Probe:
        """The probe as it is at the next solve."""
        return decayed(self._start, self.decay, self.steps)

    @property
    def is_due(self) -> bool:
        """Whether the next solve needs its batch."""
        return self._updates_next or self.probe.needs_every_batch

    @property
    def _updates_next(self) -> bool:
        return self.steps % self.stat_every == 0

    def solve(self, vector: Tensor, batch: Instance | None, reached: Collection[str]) -> Tensor:
        """The damped inverse applied to a vector (P,), with ``batch`` taken in before or after as the rule says.

        ``reached``: names of the parameters that have a gradient.
        """
        rule = self.probe.rule
        if self.steps == 0:
            assert batch is not None, "the first step is due"
            self._begin(batch)
            self.ready = self.probe.refresh(self.kept) if rule.update == "after" else None
        if rule.update == "before":
            self._take_in(batch, reached)
        step = self.probe.precondition(self.ready, vector)
        if rule.update == "after":
            self._take_in(batch, reached)
        self.steps += 1
        return step.clamp(-rule.clip, rule.clip) if math.isfinite(rule.clip) else step

    def take_part(self, batch: Instance) -> None:
        """The first part of the next update's batch, or one more; the last goes to ``solve``."""
        self._begin(batch)
        new = self._drawing().update(self.kept, batch)
        self._parts.append(Part(new, batch.terms, batch.samples, _skipped(batch, batch.parameters)))

    def drop_parts(self) -> None:
        """The next update's batch begins anew."""
        self._parts = []

    def _begin(self, batch: Instance) -> None:
        if self.kept is None:
            self.kept = self.probe.init(batch)

    def pass_over(self, state: Any) -> None:
        """A step that needed no solve."""
        self.kept = self.ready = state
        self.steps += 1

    def _take_in(self, batch: Instance | None, reached: Collection[str]) -> None:
        if batch is not None and self._updates_next:
            self.kept = self._updated(batch, reached)
            self._updates += 1
            self._unrefreshed = True
        refreshes = type(self.probe).refresh is not Probe.refresh
        if self._unrefreshed and (not refreshes or self.steps % self.refresh_every == 0):
            with self.ranks.sharing():
                self.ready = self.probe.refresh(self.kept)
            self._unrefreshed = False
        elif batch is not None and isinstance(self.probe, Follows) and self.probe.needs_every_batch:
            self.ready = self.probe.follow(self.ready, batch)

    def _updated(self, batch: Instance, reached: Collection[str]) -> Any:
        probe = self._drawing()
        if probe.rule.restarts:
            return probe.fit(batch)
        new = probe.update(self.kept, batch)
        skipped = _skipped(batch, reached)
        if probe.combines_by == "mean":
            parts = [*self._parts, Part(new, batch.terms, batch.samples, _skipped(batch, batch.parameters))]
            skipped = self._agreed([part.skipped for part in parts])
            new = _joined_parts(parts)
            terms, samples = (sum(counts) for counts in zip(*(part[1:3] for part in parts), strict=True))
            new = self.ranks.join_state(new, self.ranks.share(terms, samples))
        self.drop_parts()
        found = states.blend(self.kept, new, self.ema) if self.ema and self._updates else new
        if not skipped or self.kept is None or not probe.is_layerwise:
            return found
        numbers = [number for number, layer in enumerate(batch.layers) if layer.name in skipped]
        return states.kept(self.kept, found, [layer.slice for layer in batch.layers], numbers)

    def _agreed(self, skipped: Sequence[frozenset[str]]) -> frozenset[str]:
        """The layers that all parts of a batch have skipped, on all ranks; a mean over other parts would be of less."""
        everywhere = {found for rank in self.ranks.all(skipped) for found in rank}
        if len(everywhere) > 1:
            names = ", ".join(map(repr, sorted(frozenset.union(*everywhere) - frozenset.intersection(*everywhere))))
            raise ValueError(f"some parts of the batch skip layer {names} and others do not: skip it in all of them")
        return everywhere.pop()

    def _drawing(self) -> Probe:
        """The probe with draws of this update's own, of this part's of its batch, and of this rank's."""
        if self.probe.seed is None:
            return self.probe
        drawn = self.probe.seed * _DRAWS + self._updates
        seed = drawn * self.ranks.count + self.ranks.rank + len(self._parts) * _PARTS
        return dataclasses.replace(self.probe, seed=seed)  # type: ignore[type-var]

    def state_dict(self) -> dict[str, Any]:
        """Plain containers of tensors and numbers."""
        same = self.ready is self.kept
        return {
            "version": STATE_VERSION,
            "probe": self._start.label,
            "steps": self.steps,
            "updates": self._updates,
            "unrefreshed": self._unrefreshed,
            "kept": states.pack(self.kept),
            "ready": None if same else states.pack(self.ready),
            "same": same,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` gave; raises ValueError for that of another probe or version."""
        if state.get("version") != STATE_VERSION:
            raise ValueError(
                f"the state has version {state.get('version')}, this curvbench reads {STATE_VERSION}: train anew"
            )
        if state["probe"] != self._start.label:
            raise ValueError(f"the state is that of {state['probe']}, this optimizer's probe is {self._start.label}")
        module = type(self._start).__module__
        self.steps, self._updates, self._unrefreshed = state["steps"], state["updates"], state["unrefreshed"]
        self.kept = states.unpack(state["kept"], module)
        self.ready = self.kept if state["same"] else states.unpack(state["ready"], module)
        self._parts = []


def _skipped(batch: Instance, moved: Collection[str]) -> frozenset[str]:
    """Layers that the batch did not go through; to a method that records no pass, those without a gradient."""
    if batch.reached:
        return frozenset(layer.name for layer in batch.layers if layer.name not in batch.reached)
    return frozenset(layer.name for layer in batch.layers if not any(n in moved for n in parameter_names(layer)))


def _joined_parts(parts: Sequence[Part]) -> Any:
    """The state of the whole batch, from those of its parts."""
    if len(parts) == 1:
        return parts[0].state
    weights = shares([(part.terms, part.samples) for part in parts])
    return states.weighted([part.state for part in parts], weights)
