"""For GitHub Actions: a gate as the summary of a job, and as annotations beside the code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from curvbench.analysis.check import Gate, by_size
from curvbench.analysis.compare import CELL, NOT_JUDGED, SAME, described
from curvbench.analysis.tables import escaped, markdown
from curvbench.analysis.verdict.gates import sentences
from curvbench.words import one_line

SUMMARY_BYTES = 2**20  # of all summaries of a step; GitHub refuses a longer one as a whole
ANNOTATIONS = 10  # of a kind in a step; GitHub drops further ones without a word
MESSAGE = 2000  # characters of an annotation, of which GitHub shows a few lines
HEAD = ("cell", "metric", "baseline", "run", "change", "also")
RIGHT = (False, False, True, True, True, False)
CLOSING = 300  # bytes kept for the title of the folded part, its end, and the numbers of lines that are left out
Name = tuple[Any, ...]  # probe, problem, seed


def summary(gate: Gate, baseline: str, run: str, room: int = SUMMARY_BYTES) -> str:
    """The gate in Markdown of at most ``room`` bytes: failing cells, worst first, and the other cells folded.

    Each cell is one line, with its worst measurement and the number of its other ones. Where there are more lines than
    room, the last ones are left out and counted. Empty means that there is no room at all.
    """
    failing, passing = _lines(gate.failing), _lines(_passing(gate))
    fault = f"{len(failing)} of {len(failing) + len(passing)} cells fail" if failing else "passed"
    head = f"### curvbench check: {fault}\n\n"
    head += "".join(f"- {escaped(text)}\n" for text in sentences(gate))
    head += f"\n{escaped(run)} against {escaped(baseline)}\n\n"
    left = room - len(head.encode()) - CLOSING
    if left < 0:
        return ""
    worst = _table(failing, left) if failing else ""
    folded = _table(passing, left - len(worst.encode())) if passing else ""
    title = f"{len(passing)} cells that do not fail" if failing else f"{len(passing)} cells"
    return head + worst + (f"<details><summary>{title}</summary>\n\n{folded}</details>\n\n" if passing else "")


def commands(gate: Gate, files: Mapping[Name, str]) -> list[str]:
    """Workflow commands: an error for each failing cell, and warnings about what the gate does not guard.

    ``files``: the file in which the probe of a cell stands, relative to the repository.
    """
    failing = _by_cell(gate.failing)
    errors = [_command("error", files.get(name, ""), _label(name), _told(rows)) for name, rows in failing.items()]
    others = gate.table[gate.table["verdict"] == NOT_JUDGED]["reason"].value_counts()
    warnings = [f"{count} measurements are not judged: {reason}" for reason, count in others.items()]
    unknown = _by_cell(gate.changed[(gate.changed["metric"] == "") & (gate.changed["verdict"] == "only in B")])
    warnings += [f"{_label(name)} is not in the baseline, so that nothing guards it" for name in unknown]
    return _fewest(errors, "error") + _fewest([_command("warning", "", "", text) for text in warnings], "warning")


def error(text: str) -> str:
    """The workflow command that shows a text as an error."""
    return _command("error", "", "", text)


def _passing(gate: Gate) -> pd.DataFrame:
    """The measurements of cells of which none fails: those that changed first, by the size of their change."""
    fails = pd.MultiIndex.from_frame(gate.failing[CELL])
    table = by_size(gate.table[~pd.MultiIndex.from_frame(gate.table[CELL]).isin(fails)])
    return table.loc[table["verdict"].isin([*SAME, NOT_JUDGED]).sort_values(kind="stable").index]


def _by_cell(table: pd.DataFrame) -> dict[Name, pd.DataFrame]:
    return {name: rows for name, rows in table.groupby(CELL, sort=False)}


def _lines(table: pd.DataFrame) -> list[list[str]]:
    firsts = described(table.drop_duplicates(CELL)).to_dict("records")
    return [_line(name, rows, first) for (name, rows), first in zip(_by_cell(table).items(), firsts, strict=True)]


def _line(name: Name, rows: pd.DataFrame, first: Mapping[Any, Any]) -> list[str]:
    """A cell as a line of the table: its first measurement as text, and the verdicts of the other ones."""
    verdicts = rows["verdict"].iloc[1:].value_counts()
    also = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
    change = " ".join(filter(None, (first["change"], first["verdict"])))
    texts = (_label(name), first["metric"], first["A"], first["B"], change, " ".join((also, first["reason"])))
    return [escaped(one_line(text, MESSAGE)) for text in texts]


def _table(lines: Sequence[Sequence[str]], room: int) -> str:
    """The first lines that fit into ``room`` bytes, with the number of those left out."""
    spent, fitting = 0, 0
    for line in [HEAD, ["---:"] * len(HEAD), *lines]:
        spent += len(f"| {' | '.join(line)} |\n".encode())
        fitting += spent <= room
    fitting = max(fitting - 2, 0)
    left_out = len(lines) - fitting
    note = f"{left_out} more cells have no room here: the log of the step has them.\n\n" if left_out else ""
    return (markdown(HEAD, lines[:fitting], RIGHT) + "\n\n" if fitting else "") + note


def _told(rows: pd.DataFrame) -> str:
    """The worst measurement of a cell as a sentence, and the number of the others that fail."""
    (row,) = described(rows.head(1)).to_dict("records")
    values = f"from {row['A']} to {row['B']}" if row["A"] and row["B"] else ""
    others = f"and {len(rows) - 1} more" if len(rows) > 1 else ""
    return " ".join(filter(None, (f"{row['verdict']}:", row["metric"], values, row["change"], row["reason"], others)))


def _label(name: Name) -> str:
    probe, problem, seed = name
    return f"{probe} on {problem}, seed {seed}"


def _fewest(every: list[str], kind: str) -> list[str]:
    """At most ``ANNOTATIONS`` of the commands, the last of which counts those left out."""
    if len(every) <= ANNOTATIONS:
        return every
    left_out = len(every) - ANNOTATIONS + 1
    return [*every[: ANNOTATIONS - 1], _command(kind, "", "", f"{left_out} more: the summary of the job has them")]


def _command(kind: str, file: str, title: str, text: str) -> str:
    """``::error file=F,title=T::text``, escaped as GitHub's own tools do."""
    given: Iterable[tuple[str, str]] = (("file", file), ("title", title or "curvbench"))
    properties = ",".join(f"{name}={_property(value)}" for name, value in given if value)
    return f"::{kind} {properties}::{_data(one_line(text, MESSAGE))}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
