"""The page of the papers' claims for people: what to take home, counts, and a line per claim."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from curvbench.analysis import tables
from curvbench.analysis.claims import Effort, Judged, Ruling, efforts
from curvbench.analysis.frames import is_surrogate, texts
from curvbench.analysis.papers import FOLDER, Experiment
from curvbench.analysis.summary import digits
from curvbench.analysis.tables import escaped
from curvbench.analysis.verdicts import Reading, Verdict
from curvbench.registry.errata import ERRATA
from curvbench.report.claims import LEGEND, claim_text
from curvbench.words import one_line

FINDINGS = "findings"  # the file beside those of the papers
NUMBER = re.compile(r"\{([^{}]+)\}")  # in a finding: a suite, a row and a column, as in ``{fngd_f4_sharing:FNGD.time}``
HEADINGS = ("claim", "verdict", "the paper", "measured here")
COUNTED = "counted only"


class Finding(NamedTuple):
    """A sentence to take home, and the verdicts that it stands on: by suite, and the text of the claim."""

    text: str
    stands_on: Mapping[str, Mapping[str, str]]


class Unfounded(ValueError):
    """A finding names a number or a verdict that the rows do not have; the text says which."""


def findings(folder: Path = FOLDER.parent) -> list[Finding]:
    """What a reader should take home, as ``data/findings.toml`` has it."""
    content = tomllib.loads((folder / f"{FINDINGS}.toml").read_text("utf-8"))
    return [Finding(entry["text"], entry["stands_on"]) for entry in content["findings"]]


def told(finding: Finding, judged: Iterable[Judged]) -> str:
    """The sentence with its numbers, which are the medians of the rows.

    Raises:
        Unfounded: a number was not measured, or a claim has another verdict than the finding says.
    """
    known = {(entry.experiment.id, entry.claim.text): entry.original for entry in judged}
    for suite, verdicts in finding.stands_on.items():
        for claim, verdict in verdicts.items():
            found = known.get((suite, claim))
            if found is None or found.verdict != verdict:
                raise Unfounded(f"{suite}: {claim!r} is {found.verdict if found else 'unknown'}, expected {verdict}")
    values = {f"{e.experiment.id}:{member}": reading for e in judged for member, reading in _measured(e)}

    def number(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise Unfounded(f"{match[1]} was not measured")
        return digits(values[match[1]].middle)

    return NUMBER.sub(number, finding.text)


def _measured(entry: Judged) -> Iterator[tuple[str, Reading]]:
    """The members of a claim that have values in the paper's setting, ``row.column``."""
    members = [member for chain in entry.claim.chains for member in chain if isinstance(member, str)]
    for reading in entry.original.readings:
        if reading.values:
            yield next(member for member in members if member.rpartition(".")[0] == reading.name), reading


def page(judged: Sequence[Judged], frame: pd.DataFrame, found: Sequence[Finding], commands: Mapping[str, str]) -> str:
    """The page as Markdown.

    ``frame``: the rows behind the verdicts. ``commands``: what measures an experiment again, by its suite.
    """
    parts = ["## What to take home", "\n".join(f"- {told(finding, judged)}" for finding in found)]
    parts += ["## Papers", _counts(judged)]
    for paper in dict.fromkeys(entry.experiment.paper for entry in judged):
        parts.append(f"## {escaped(paper)}")
        of_paper = [entry for entry in judged if entry.experiment.paper == paper]
        for name in dict.fromkeys(entry.experiment.id for entry in of_paper):
            entries = [entry for entry in of_paper if entry.experiment.id == name]
            spent = efforts(frame, entries[0].experiment)
            parts += _section(entries, frame[frame["suite"] == name], spent, commands.get(name, ""))
    return "\n\n".join([*parts, "## How a verdict comes about", escaped(LEGEND)]) + "\n"


def _counts(judged: Sequence[Judged]) -> str:
    """A row per paper with the number of its claims by verdict in the paper's own setting."""
    rows = []
    for paper in dict.fromkeys(entry.experiment.paper for entry in judged):
        rulings = [entry.original for entry in judged if entry.experiment.paper == paper]
        rows.append([escaped(paper), *_numbers(rulings)])
    rows.append(["all", *_numbers([entry.original for entry in judged])])
    heading = ["paper", "claims", *map(str, Verdict), f"of these {COUNTED}"]
    return tables.markdown(heading, rows, [False] + [True] * (len(heading) - 1))


def _numbers(rulings: Sequence[Ruling]) -> list[str]:
    counter = Counter(ruling.verdict for ruling in rulings)
    numbers = [len(rulings), *(counter[verdict] for verdict in Verdict), sum(r.counted_only for r in rulings)]
    return [str(number) if number else "" for number in numbers]


def _section(entries: Sequence[Judged], rows: pd.DataFrame, spent: Sequence[Effort], command: str) -> Iterator[str]:
    """An experiment: its setting and what differs, a line per claim, and surrogates folded below."""
    experiment = entries[0].experiment
    yield f"### {escaped(experiment.source)}"
    yield "\n".join(f"- {note}" for note in _notes(experiment, rows[~is_surrogate(rows)], spent, command))
    own = [[escaped(claim_text(entry.claim)), *_line(entry.original, entry.reported)] for entry in entries]
    yield tables.markdown(HEADINGS, own, [False] * len(HEADINGS))
    small = [[escaped(e.claim.text), *_line(e.surrogate, e.reported)] for e in entries if e.surrogate.readings]
    if small:
        table = tables.markdown(HEADINGS, small, [False] * len(HEADINGS))
        yield f"<details><summary>On a small surrogate, which decides nothing</summary>\n\n{table}\n\n</details>"


def _line(ruling: Ruling, reported: str) -> list[str]:
    only = f" ({COUNTED})" if ruling.counted_only else ""
    behind = "; ".join(filter(None, [ruling.measured, ruling.reason]))
    return [f"**{ruling.verdict}**{only}", escaped(reported), escaped(behind)]


def _notes(experiment: Experiment, rows: pd.DataFrame, spent: Sequence[Effort], command: str) -> Iterator[str]:
    """The paper's setting, what was done otherwise, where it ran, and how to run it again."""
    yield escaped(f"the paper: {experiment.setting}")
    if len(rows):
        machines = ", ".join(sorted(set(texts(rows, "device_name"))))
        threads = ", ".join(str(number) for number in sorted(set(rows["threads"])))
        differs = f"; hardware differs: the paper used {experiment.hardware}" if experiment.hardware else ""
        versions = ", ".join(sorted(set(texts(rows, "torch_version"))))
        commits = ", ".join(sorted({sha[:7] for sha in texts(rows, "git_sha") if sha}))
        yield escaped(f"here: {machines}, threads {threads}, torch {versions}, commit {commits}{differs}")
    for remark in experiment.remarks:
        yield escaped(remark)
    for name in experiment.errata:
        yield escaped(one_line(f"erratum {name}: {ERRATA[name].text}"))
    if tuned := "; ".join(str(effort) for effort in spent if not effort.surrogate):
        yield escaped(f"tuned by {tuned}")
    if command:
        yield f"again: `{command}`"
