"""Which probes measure which problems: a matrix of outcomes, the reasons for failures, the covered shares."""

from __future__ import annotations

import pandas as pd

from curvbench.analysis.frames import is_cell_ending, labels, problems, texts
from curvbench.analysis.summary import failures
from curvbench.spec import Status

EXACT, FAILED = "exact", "failed"
SHARES = ("problem.parameters", "coverage.parameters", "coverage.trace")


def matrix(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per probe, one column per problem, in the order of the rows.

    ``exact``: every cell is ok and has a finite error against the exact Fisher. ``unsupported``, ``skipped``: some cell
    has this status, and none failed. ``failed``: any other status, or no error. None means that no cell was run.
    """
    outcomes = frame.groupby([labels(frame, "probe"), labels(frame, "problem")], sort=False).apply(_outcome)
    table = outcomes.unstack().reindex(index=list(dict.fromkeys(labels(frame, "probe"))), columns=problems(frame))
    return table.astype(object).where(table.notna(), None)


def _outcome(cells: pd.DataFrame) -> str:
    if answers := set(_of_cells(cells)["status"]) - {Status.OK}:
        return str(min(answers)) if answers <= {Status.UNSUPPORTED, Status.SKIPPED} else FAILED
    compared = (cells["metric"] == "error.relative") & (cells["scope"] == "network")
    finite = cells["value"].abs() < float("inf")
    return EXACT if set(cells.loc[compared & finite, "cell_id"]) == set(cells["cell_id"]) else FAILED


def reasons(frame: pd.DataFrame) -> list[str]:
    """``probe on problem, seed: status: reason`` of every cell that did not succeed."""
    return [f"{row.label}: {row.status}: {row.reason}" for row in failures(_of_cells(frame)).itertuples()]


def _of_cells(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows without those of single metrics that were skipped, because their cells have values all the same."""
    return frame[is_cell_ending(frame) | texts(frame, "status").ne(str(Status.SKIPPED))]


def shares(frame: pd.DataFrame) -> pd.DataFrame:
    """Per problem: P, and the covered shares of the parameters and of the trace, as medians over its cells."""
    facts = frame[frame["metric"].isin(SHARES) & (frame["scope"] == "network")]
    table = facts.pivot_table("value", labels(facts, "problem"), "metric", aggfunc="median", observed=True)
    return table.reindex(index=problems(frame), columns=list(SHARES))
