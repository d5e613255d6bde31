"""The content of a report of a run, the same for every format."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from curvbench.analysis import frames, noise, summary, views
from curvbench.analysis.commands import repeat
from curvbench.analysis.verdict import sentences
from curvbench.spec.pictures import Blocks
from curvbench.words import one_line

FACTS = {  # of the record, in words
    **{"device_name": "machine", "torch_version": "PyTorch", "python_version": "Python", "platform": "system"},
    **{"git_sha": "commit", "git_dirty": "files differed from it", "code": "code of curvbench", "cpu_count": "cores"},
}
OPTIONS = {"device": "device", "dtype": "precision", "threads": "threads", "parameters": "parameters covered"}


@dataclass(frozen=True)
class Run:
    """Name, rows and record (``run.json``) of a run, and the blocks stored by cells of its first seed, by cell id."""

    name: str
    frame: pd.DataFrame
    record: Mapping[str, Any]
    blocks: Mapping[str, Blocks]

    @property
    def suite(self) -> str:
        return str(self.frame["suite"].iloc[0])

    @property
    def environment(self) -> dict[str, str]:
        """Where and when the run was made: the recorded ``FACTS``, device, precision, threads, parameters and date."""
        environment = self.record.get("environment", {})
        facts = {name: _word(environment[key]) for key, name in FACTS.items() if environment.get(key) is not None}
        facts |= {name: ", ".join(map(str, self.frame[key].unique())) for key, name in OPTIONS.items()}
        return {"started": f"{self.frame['started_at'].min():%Y-%m-%d %H:%M} UTC", **facts}

    @property
    def commands(self) -> list[str]:
        """The commands that made the run."""
        return [str(entry.get("command", "")) for entry in self.record.get("commands", [])]

    @property
    def legend(self) -> str:
        """The meaning of the columns of its tables."""
        marks = f"; {noise.LEGEND}" if noise.are_noisy(self.frame).any() else ""
        return summary.legend(self.frame).partition("; *")[0] + "; bold: best of the column" + marks

    @property
    def failures(self) -> pd.DataFrame:
        """Cells without a value: label, status, reason, and the command that measures them again."""
        failed = summary.failures(self.frame)
        cells = self.frame.drop_duplicates("cell_id").set_index("cell_id")
        file = str(self.record.get("suite_file", f"suites/{self.suite}"))
        commands = [repeat(cells.loc[cell].to_dict(), file, self.record) for cell in failed["cell_id"]]
        return failed[["label", "status", "reason"]].assign(command=commands)

    def blocks_of(self, problem: str) -> dict[str, Blocks]:
        """The blocks of one problem by the probe's label."""
        cells = frames.of_problem(self.frame, problem).drop_duplicates("cell_id")
        pairs = zip(cells["cell_id"], frames.labels(cells, "probe"), strict=True)
        return {probe: self.blocks[cell] for cell, probe in pairs if cell in self.blocks}

    def verdict(self, problem: str) -> list[str]:
        """The sentences on a problem, provisional while cells of the run have no rows."""
        planned = {cell["id"] for cell in self.record.get("cells", [])}
        rows = frames.of_problem(self.frame, problem)
        return sentences(rows, provisional=not planned <= set(self.frame["cell_id"]))

    def title(self, problem: str) -> str:
        """``summary.title``, which calls a surrogate one; the report gives ranges in brackets."""
        return summary.title(self.frame, problem).replace(summary.SPREAD, "[least, greatest]")


@dataclass(frozen=True)
class Entry:
    """A cell of a table: three digits, the range over seeds and samples, and whether it is the best of its column."""

    text: str
    range: str
    best: bool


def _word(fact: Any) -> str:
    return {True: "yes", False: "no"}[fact] if isinstance(fact, bool) else str(fact)


def entries(frame: pd.DataFrame, problem: str) -> dict[str, list[Entry]]:
    """The summary of a problem as text, by probe; a probe without any value has its status in the name."""
    values, (low, high) = summary.table(frame, problem), summary.ranges(frame, problem)
    noisy = summary.noisy(frame, problem)
    marks, ends = summary.best(values), summary.statuses(frame, problem)
    return {
        probe if ends[probe] == "ok" else f"{probe} ({ends[probe]})": [
            Entry(summary.digits(value), _range(*ends), bool(mark))
            for value, mark, *ends in zip(*(part.loc[probe] for part in (values, marks, low, high, noisy)), strict=True)
        ]
        for probe in values.index
    }


def _range(low: float, high: float, noisy: bool) -> str:
    """``[0.961, 0.975]``, of a noisy clock with that word; empty for a single value."""
    return "" if math.isnan(low) else f"[{summary.digits(low)}, {summary.digits(high)}{views.NOISY * noisy}]"


def headings(frame: pd.DataFrame, problem: str) -> dict[str, str]:
    """The headings of the summary of a problem in one line each, with what they mean."""
    return {
        one_line(column.heading): f"{column.metric}, {column.scope}: {views.meaning(column.metric).text}"
        for column in summary.columns(frame, problem)
    }
