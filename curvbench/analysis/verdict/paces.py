"""Sentences on clocked steps of trainings: whose step is the shortest, and whether counts of FLOPs say the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

import pandas as pd

from curvbench.analysis.frames import labels
from curvbench.analysis.roles import BASELINES, name_of
from curvbench.analysis.verdict.words import times
from curvbench.spec import Status

Values = Mapping[str, Sequence[float]]  # by label, a value per process


def shortest_step(rows: pd.DataFrame) -> str | None:
    """Whose step is the shortest beside SGD's, whose follows, and whose is the longest."""
    steps = _values(rows, "pace.ratio")
    if not steps:
        return "Not enough measured: no step has been clocked."
    (best, values), *others = steps.items()
    text = f"{best} has the shortest step: {_spread(values)} times as long as SGD's"
    if not others:
        return f"{text}; no other step was clocked."
    text += f"; {others[0][0]} follows with {_spread(others[0][1])}"
    return f"{text}, and {others[-1][0]} is last with {_spread(others[-1][1])}." if len(others) > 1 else f"{text}."


def fewest_flops(rows: pd.DataFrame) -> str | None:
    """Whether the method with the shortest step has the fewest FLOPs too."""
    steps, counts = _values(rows, "pace.ratio"), _values(rows, "pace.flops_ratio")
    if len(steps) < 2 or not counts:
        return None
    shortest, fewest = next(iter(steps)), next(iter(counts))
    least = median(counts[fewest])
    own = median(counts[shortest]) if shortest in counts else None
    if own == least:
        return f"It has the fewest counted FLOPs too, {times(least)} times SGD's."
    beside = "" if own is None else f", and {shortest}'s {times(own)}"
    return f"{fewest} has the fewest counted FLOPs: {times(least)} times SGD's{beside}."


SENTENCES = (shortest_step, fewest_flops)


def _values(rows: pd.DataFrame, metric: str) -> Values:
    """The values of mean steps over SGD's by method, the smallest median first; SGD itself is left out."""
    chosen = rows[(rows["metric"] == metric) & (rows["scope"] == "step") & (rows["status"] == Status.OK)]
    grouped = chosen.groupby(labels(chosen, "probe"))["value"]
    found = {str(label): list(group) for label, group in grouped if name_of(str(label)) not in BASELINES}
    return dict(sorted(found.items(), key=lambda item: median(item[1])))


def _spread(values: Sequence[float]) -> str:
    middle = times(median(values))
    return f"{middle} ({times(min(values))} to {times(max(values))})" if len(values) > 1 else middle
