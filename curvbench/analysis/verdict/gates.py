"""Sentences on a gate: whether the run passes, what changed most, what could not be judged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from curvbench.analysis.check import Gate
from curvbench.analysis.compare import NOT_JUDGED, SAME, described
from curvbench.analysis.verdict.words import counted


def sentences(gate: Gate) -> list[str]:
    """What a gate found, in one to three sentences."""
    made = (outcome(gate), gained(gate), not_judged(gate))
    return [sentence for sentence in made if sentence is not None]


def outcome(gate: Gate) -> str:
    """Whether the run passes, with the counts, and the first of what fails."""
    total, same = counted(len(gate.table), "measurement"), int(gate.table["verdict"].isin(SAME).sum())
    if gate.passed:
        rule = "differs from" if gate.any_change else "is worse than"
        return f"The run passes: nothing {rule} the baseline, and {same:,} of {total} are as they were."
    if gate.failing.empty:
        return (
            f"The run does not pass: {counted(len(gate.left_out), 'part')} could not be read, and nothing else fails."
        )
    rule = "differ" if gate.any_change else "are worse or missing"
    return f"The run fails: {len(gate.failing):,} of {total} {rule}, first {_told(gate.failing)}."


def gained(gate: Gate) -> str | None:
    """How many measurements are better, and which one most."""
    if gate.improved.empty:
        return None
    return f"{counted(len(gate.improved), 'measurement')} became better, most of all {_told(gate.improved)}."


def not_judged(gate: Gate) -> str | None:
    """How much could not be judged, and the most frequent reason."""
    reasons = gate.table.loc[gate.table["verdict"] == NOT_JUDGED, "reason"].value_counts()
    if reasons.empty:
        return None
    return f"{counted(int(reasons.sum()), 'measurement')} could not be judged, most often because {reasons.index[0]}."


def _told(table: pd.DataFrame) -> str:
    """The first row of a comparison: what it is, both values, the change."""
    row: Mapping[Any, Any] = described(table.head(1)).to_dict("records")[0]
    values = f" from {row['A']} to {row['B']}" if row["A"] and row["B"] else ""
    change = f" ({row['change']})" if row["change"] else ""
    why = f", {row['reason']}" if row["reason"] else ""
    return f"{row['metric']} of {row['probe']} on {row['problem']}{values}{change}{why}"
