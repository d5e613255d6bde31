"""What it would take to measure the claims of the papers that nothing has measured yet: trainings, FLOPs, GPU hours."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import NamedTuple

from curvbench import prediction
from curvbench.analysis.claims import Judged, fits
from curvbench.analysis.papers import Experiment
from curvbench.analysis.verdicts import Verdict
from curvbench.spec import Preset, Probe, Problem, Suite, Training

RATE = 2e13
"""FLOP/s at which hours are counted: about what a training reaches on an A100 without reduced precision."""


class Unsettled(NamedTuple):
    """A suite with claims that were not measured, and what its trainings would take.

    ``claims``: the texts. ``cells``: their number, seeds included; ``trials``: those of the search before them.
    ``flops``: of all of them. None means that the layer shapes of a network are not known. ``needs``: the data.
    ``command``: what runs them. ``why``: the reason if no command can settle the claims.
    """

    suite: str
    claims: tuple[str, ...]
    cells: int = 0
    trials: int = 0
    flops: float | None = None
    needs: str = ""
    command: str = ""
    why: str = ""

    @property
    def hours(self) -> float | None:
        """GPU hours at ``RATE``."""
        return None if self.flops is None else self.flops / RATE / 3600


def unsettled(judged: Iterable[Judged], suites: Mapping[str, Suite]) -> list[Unsettled]:
    """The suites with claims that were not measured in the paper's setting, the cheapest first.

    ``suites``: the suites of the experiments, by name.
    """
    found: dict[tuple[str, str], list[Judged]] = {}
    for entry in judged:
        if entry.original.verdict is Verdict.NOT_MEASURED:
            found.setdefault((entry.experiment.id, entry.claim.why), []).append(entry)
    plans = [_plan(entries, why, suites.get(name)) for (name, why), entries in found.items()]
    return sorted(plans, key=lambda plan: (bool(plan.why), math.inf if plan.flops is None else plan.flops, plan.suite))


def _plan(entries: Sequence[Judged], why: str, suite: Suite | None) -> Unsettled:
    experiment = entries[0].experiment
    texts = tuple(entry.claim.text for entry in entries)
    if why or suite is None:
        return Unsettled(experiment.id, texts, why=why or "no suite runs it")
    members = [m for entry in entries for chain in entry.claim.chains for m in chain if isinstance(m, str)]
    wants_clock = all(experiment.column(member).is_paced for member in members)
    name, preset = next(
        ((name, p) for name, p in suite.presets.items() if p in suite.originals and _is_clocked(p) == wants_clock),
        next((name, p) for name, p in suite.presets.items() if p in suite.originals),
    )
    option = "" if name == "default" else f" --preset {name}"
    command = f"curvbench run papers/{experiment.id}{option} --device cuda" + " --data DIR" * bool(experiment.needs)
    cells = list(product(preset.problems, preset.probes))
    trials = sum(_trials(preset, probe) for _, probe in cells)
    flops = None if preset.training is None else _flops(experiment, preset)
    return Unsettled(experiment.id, texts, len(cells) * len(preset.seeds), trials, flops, experiment.needs, command)


def _is_clocked(preset: Preset) -> bool:
    return preset.training is not None and preset.training.paced > 0


def _trials(preset: Preset, probe: Probe) -> int:
    """Trainings of a search for one probe on one problem."""
    if preset.search is None:
        return 0
    training = preset.training_of(probe)
    fields = {**probe.hyperparameters, **(training.hyperparameters if training else {})}
    size = math.prod(len(values) for name, values in preset.search.grid.items() if name in fields)
    return min(size, preset.search.trials or size) * len(preset.search.seeds)


def _flops(experiment: Experiment, preset: Preset) -> float | None:
    """FLOPs of all trainings and trials of a preset."""
    total = 0.0
    for problem, probe in product(preset.problems, preset.probes):
        training, network = preset.training_of(probe), _network(experiment, problem, probe)
        if training is None or not network:
            return None
        search = preset.search
        tried = (search.epochs or training.epochs) * (1 - search.valid) * _trials(preset, probe) if search else 0.0
        epochs = training.epochs * len(preset.seeds) + tried
        steps = training.paced or math.ceil(experiment.examples * training.share / training.batch)
        total += epochs * steps * _step(network, probe, training)
    return total


def _network(experiment: Experiment, problem: Problem, probe: Probe) -> str:
    """The layer shapes of a cell's network, by the row of the paper that the cell stands for."""
    rows = (
        name
        for name, entry in experiment.rows.items()
        if entry.probe and fits(probe.label, entry.probe) and (not entry.problem or fits(problem.label, entry.problem))
    )
    return next((shapes for row in rows if (shapes := experiment.shapes_of(row))), experiment.shapes.get("", ""))


def _step(network: str, probe: Probe, training: Training) -> float:
    """FLOPs of a mean step."""
    cost = prediction.cost(prediction.shapes(network), probe, samples=training.batch)
    statistics = cost.statistics if cost.learns else cost.statistics / training.stat_every
    return (
        cost.gradient + cost.precondition + statistics + cost.invert / max(training.refresh_every, training.stat_every)
    )
