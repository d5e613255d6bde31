"""From the options of the command line to cells."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product

from curvbench.cells import shipped
from curvbench.registry import parse_drift, parse_probe, parse_problem, parse_training
from curvbench.spec import Cell, Parameters, Preset, Probe, Problem, Status, Suite, Training, refuse_twice
from curvbench.words import near_misses

SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
LONGEST = 3650 * 86400.0  # seconds
MOST_SEEDS = 1000  # of one range: a longer one is a slip of the keyboard
OOM = (Status.OOM_HOST, Status.OOM_DEVICE)


def duration(text: str) -> float:
    """Seconds in ``90``, ``90s``, ``10m`` or ``2h``; raises ValueError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*", text)
    if match is None or float(match[1]) == 0:
        raise ValueError(f"expected a duration such as 90s, 10m or 2h, got {text!r}")
    if (seconds := float(match[1]) * SECONDS[match[2]]) > LONGEST:
        raise ValueError(f"expected a duration of at most ten years, got {text!r}")
    return seconds


def seeds(text: str) -> tuple[int, ...]:
    """Seeds in ``3``, ``0-4`` or ``0,2,5-7``, each once; raises ValueError, also for a seed that is there twice."""
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?:\s*-\s*(\d{1,9}))?\s*", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ValueError(f"expected seeds such as 3, 0-4 or 0,2, got {text!r}")
        if int(match[2] or match[1]) - int(match[1]) >= MOST_SEEDS:
            raise ValueError(f"expected at most {MOST_SEEDS} seeds, got {text!r}")
        numbers += range(int(match[1]), int(match[2] or match[1]) + 1)
    refuse_twice("--seed", numbers)
    return tuple(numbers)


def failed_statuses(text: str, all_failed: frozenset[Status]) -> frozenset[Status]:
    """Statuses in ``all`` or ``oom,timeout`` (``oom`` stands for both kinds); raises ValueError."""
    names = {str(status): [status] for status in all_failed} | {"oom": list(OOM), "all": list(all_failed)}
    chosen = [part.strip() for part in text.split(",")]
    if unknown := [name for name in chosen if name not in names]:
        raise ValueError(f"unknown failure {unknown[0]!r}: {near_misses(unknown[0], names)}")
    return frozenset(status for name in chosen for status in names[name])


def counts(cells: Sequence[Cell]) -> str:
    """The numbers of cells, problems, probes and seeds, as text."""
    parts = [("problem", len({c.problem for c in cells})), ("probe", len({c.probe for c in cells}))]
    parts += [("seed", len({c.seed for c in cells}))]
    return f"{_number(len(cells), 'cell')} of {', '.join(_number(count, name) for name, count in parts)}"


def _number(count: int, name: str) -> str:
    return f"{count} {name}{'s' * (count != 1)}"


class NoPreset(ValueError):
    """A suite has no preset of a name."""


def preset(suite: Suite, name: str) -> Preset:
    """A preset of a suite; raises NoPreset for an unknown one."""
    if name not in suite.presets:
        raise NoPreset(f"no preset {name!r} in this suite; its presets are {', '.join(suite.presets)}")
    return suite.presets[name]


def select(
    suite: str,
    preset: Preset,
    probes: Sequence[str] = (),
    problems: Sequence[str] = (),
    seed: str | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    threads: int = 1,
    training: str | None = None,
    originals: Sequence[Preset] = (),
    retrain: bool = False,
    damping: float | None = None,
    parameters: Parameters | None = None,
) -> list[Cell]:
    """The cells of a preset. Given probes, problems, seeds, dtype, damping and parameters replace the preset's.

    ``training``: hyperparameters ``key=value,...`` that replace those of the training, or of the drift. ``originals``:
    the presets of a published experiment; every cell that is in none of them is a surrogate. ``retrain``: shipped
    snapshots are not used.

    Raises:
        ValueError: a name is unknown, a hyperparameter is wrong, a snapshot is damaged, or nothing is selected.
    """
    chosen_problems = [parse_problem(text) for text in problems] or preset.problems
    chosen_probes = [parse_probe(text) for text in probes] or preset.probes
    chosen_seeds = seeds(seed) if seed is not None else preset.seeds
    for what, chosen in (("-m", chosen_problems), ("-p", chosen_probes)):
        refuse_twice(what, chosen)
    places = list(product(chosen_problems, chosen_seeds, chosen_probes))
    if not (probes or problems):
        places += [(problem, s, probe) for problem, probe in preset.pairs for s in chosen_seeds]
    drift = preset.drift and parse_drift(training or "", preset.drift)
    if training is not None and preset.training is None and drift is None:
        raise ValueError("this preset measures and trains nothing: leave out --train")
    trainings = {probe: preset.training_of(probe) for *_, probe in places}
    trained = {probe: usual and parse_training(training or "", usual) for probe, usual in trainings.items()}
    published = set().union(*map(_published, originals))
    starts = {(problem, s) for problem, s, _ in places}
    weights = {(problem, s): "" if retrain else shipped.shipped(problem, s) for problem, s in starts}
    cells = [
        Cell(
            *(suite, problem, probe, s, device, dtype or preset.dtype, threads, tuple(preset.meters)),
            training=trained[probe],
            precision=preset.precision,
            damping=preset.damping if damping is None else damping,
            parameters=parameters or preset.parameters,
            surrogate=bool(originals) and (problem, probe, trained[probe]) not in published,
            weights=weights[problem, s],
            population=preset.population,
            drift=drift,
        )
        for problem, s, probe in places
    ]
    if not cells:
        sizes = f"{len(chosen_problems)} problems, {len(chosen_probes)} probes, {len(chosen_seeds)} seeds"
        raise ValueError(f"the selection is empty: {sizes}")
    return cells


def _published(original: Preset) -> set[tuple[Problem, Probe, Training | None]]:
    """Problem, probe and training of every cell of a published experiment."""
    places = [*product(original.problems, original.probes), *original.pairs]
    return {(problem, probe, original.training_of(probe)) for problem, probe in places}
