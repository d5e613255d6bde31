"""What a report says of a run, whatever its format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from curvbench.analysis import summary, views
from curvbench.analysis.commands import repeat
from curvbench.spec.pictures import Blocks
from curvbench.words import one_line

FACTS = ("device_name", "torch_version", "python_version", "platform", "git_sha", "git_dirty", "code", "cpu_count")


@dataclass(frozen=True)
class Run:
    """Name, rows and record (``run.json``) of a run, and the blocks that cells of its first seed kept, by their id."""

    name: str
    frame: pd.DataFrame
    record: Mapping[str, Any]
    blocks: Mapping[str, Blocks]

    @property
    def suite(self) -> str:
        return str(self.frame["suite"].iloc[0])

    @property
    def environment(self) -> dict[str, str]:
        """Where it was made: what of ``FACTS`` is known, precision, threads and date."""
        known = self.record.get("environment", {})
        facts = {key: str(known[key]) for key in FACTS if known.get(key) is not None}
        facts |= {key: ", ".join(map(str, self.frame[key].unique())) for key in ("device", "dtype", "threads")}
        return {"started": f"{self.frame['started_at'].min():%Y-%m-%d %H:%M} UTC", **facts}

    @property
    def commands(self) -> list[str]:
        """What was typed."""
        return [str(entry.get("command", "")) for entry in self.record.get("commands", [])]

    @property
    def legend(self) -> str:
        """What the columns of its tables mean."""
        return summary.legend(self.frame).partition("; *")[0] + "; bold: best of the column"

    @property
    def failures(self) -> pd.DataFrame:
        """Cells without a value: label, status, reason, and the command that measures them again."""
        failed = summary.failures(self.frame)
        cells = self.frame.drop_duplicates("cell_id").set_index("cell_id")
        file = str(self.record.get("suite_file", f"suites/{self.suite}"))
        commands = [repeat(cells.loc[cell].to_dict(), file, self.record) for cell in failed["cell_id"]]
        return failed[["label", "status", "reason"]].assign(command=commands)

    def kept(self, problem: str) -> dict[str, Blocks]:
        """The blocks of one problem by the probe's label."""
        cells = views.of_problem(self.frame, problem).drop_duplicates("cell_id")
        pairs = zip(cells["cell_id"], summary.labels(cells, "probe"), strict=True)
        return {probe: self.blocks[cell] for cell, probe in pairs if cell in self.blocks}

    def title(self, problem: str) -> str:
        """``summary.title``; a small stand-in for a published experiment is called a surrogate, once."""
        told = summary.title(self.frame, problem)
        is_named = "SURROGATE" in told or problem not in views.surrogates(self.frame)
        return told if is_named else f"{told} (surrogate)"


@dataclass(frozen=True)
class Entry:
    """A cell of a table: three digits, half the range over seeds, and whether it is the best of its column."""

    text: str
    spread: str
    best: bool


def entries(frame: pd.DataFrame, problem: str) -> dict[str, list[Entry]]:
    """The summary of a problem as text, by probe; a probe without any value has its status in the name."""
    values, spreads = summary.table(frame, problem), summary.spread(frame, problem)
    marks, ends = summary.best(values), summary.statuses(frame, problem)
    return {
        probe if ends[probe] == "ok" else f"{probe} ({ends[probe]})": [
            Entry(summary.digits(value), summary.digits(spread), bool(mark))
            for value, spread, mark in zip(values.loc[probe], spreads.loc[probe], marks.loc[probe], strict=True)
        ]
        for probe in values.index
    }


def headings(frame: pd.DataFrame, problem: str) -> dict[str, str]:
    """The headings of the summary of a problem in one line each, with what they mean."""
    return {
        one_line(column.heading): f"{column.metric}, {column.scope}: {views.meaning(column.metric).text}"
        for column in summary.columns(frame, problem)
    }
