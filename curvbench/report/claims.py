"""The papers' claims beside their measurements, as a terminal table, Markdown or JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from curvbench.analysis import tables
from curvbench.analysis.claims import Effort, Judged, Ruling
from curvbench.analysis.papers import Claim, Experiment
from curvbench.analysis.tables import escaped
from curvbench.analysis.verdicts import FEWEST, LEAST_RATIO, MISSED, Reading, Verdict
from curvbench.planning.unsettled import RATE, Unsettled
from curvbench.registry.errata import ERRATA

HEADINGS = ("claim", "the paper", "measured in its setting", "SURROGATE, not the original")
STYLES = {
    Verdict.HOLDS: "green",
    Verdict.DIRECTION: "yellow",
    Verdict.REFUTED: "red",
    Verdict.UNDECIDED: "magenta",
    Verdict.NOT_MEASURED: "dim",
}
WIDTH = 160
Efforts = Mapping[str, Sequence[Effort]]  # by experiment
LEGEND = (
    "Numbers are medians over seeds [least, greatest], and of clocked steps medians over processes [interval of 95 "
    "% by a bootstrap that draws processes, then steps]. A comparison holds, or is the other way round, if the "
    f"ranges of at least {FEWEST} common seeds or processes do not meet and the medians differ by half of the "
    f"paper's effect or more, or by a ratio of {LEAST_RATIO} if the paper prints no effect in the measured metric. "
    "Counts (FLOPs, bytes) are the same with every seed. A claim holds if all of its comparisons hold, and is "
    "refuted if one is the other way round. It holds in direction only if the medians are in its order with less "
    "evidence than that; it is undecided if they are not in its order, or if a member failed or gave no number. "
    "Seconds come from another machine than the paper's: where FLOPs point the other way, the claim is undecided. "
    "Where a paper leaves a size open or prints a formula wrong, every reading has to give the same verdict. "
    "Counted only: layer shapes decide about FLOPs or bytes, and nothing is known of seconds. A target missed in a "
    "shorter training than the paper's is censored: it is later than the end of that training, which can bear a "
    "claim out and never refutes one. A surrogate is a small stand-in: it shows how a claim fares there, and "
    "neither supports nor refutes the original."
)


def show(judged: Sequence[Judged], efforts: Efforts, console: Console) -> None:
    """Print a table per experiment, the meaning of the verdicts and their counts."""
    console.width = max(console.width, WIDTH)
    for experiment, group in _by_experiment(judged):
        table = Table(box=None, padding=(0, 2, 1, 0), show_edge=False)
        for heading, ratio in zip(HEADINGS, (3, 3, 3, 4), strict=True):
            table.add_column(heading, ratio=ratio, overflow="fold")
        for entry in group:
            rulings = [_styled(ruling) for ruling in (entry.original, entry.surrogate)]
            table.add_row(Text(claim_text(entry.claim)), Text(entry.reported), *rulings)
        console.print(Text(_title(experiment), style="bold"))
        for note in _notes(experiment, efforts):
            console.print(Text(f"  {note}", style="dim"))
        console.print(table)
    console.print(Text(LEGEND), Text(counts(judged)), sep="\n")


def markdown(judged: Sequence[Judged], efforts: Efforts) -> str:
    """A section per experiment, the meaning of the verdicts and their counts."""
    return "\n\n".join([*sections(judged, efforts), escaped(LEGEND), escaped(counts(judged))]) + "\n"


def sections(judged: Sequence[Judged], efforts: Efforts) -> list[str]:
    """Heading, notes and table of each experiment in Markdown."""
    parts = []
    for experiment, group in _by_experiment(judged):
        rows = [
            [claim_text(entry.claim), entry.reported, _flat(entry.original), _flat(entry.surrogate)] for entry in group
        ]
        parts += [
            f"### {escaped(_title(experiment))}",
            "\n".join(f"- {escaped(n)}" for n in _notes(experiment, efforts)),
        ]
        parts.append(tables.markdown(HEADINGS, [list(map(escaped, row)) for row in rows], [False] * len(HEADINGS)))
    return parts


def as_json(judged: Sequence[Judged], efforts: Efforts) -> str:
    """A list of objects, one per claim."""
    claims = [_described(entry) | {"tuning": [e._asdict() for e in efforts[entry.experiment.id]]} for entry in judged]
    return json.dumps(claims, indent=1, ensure_ascii=False)


def counts(judged: Iterable[Judged]) -> str:
    """The number of verdicts of each kind, for the papers' settings and for surrogates."""
    kinds = {"in the papers' settings": "original", "surrogates": "surrogate"}
    counters = {name: Counter(getattr(j, kind).verdict for j in judged) for name, kind in kinds.items()}
    return "; ".join(f"{name}: {', '.join(f'{n[v]} {v}' for v in Verdict)}" for name, n in counters.items())


def _by_experiment(judged: Iterable[Judged]) -> list[tuple[Experiment, list[Judged]]]:
    groups: dict[str, list[Judged]] = {}
    for entry in judged:
        groups.setdefault(entry.experiment.id, []).append(entry)
    return [(group[0].experiment, group) for group in groups.values()]


def _title(experiment: Experiment) -> str:
    return f"{experiment.id}: {experiment.paper}, {experiment.source}"


def _notes(experiment: Experiment, efforts: Efforts) -> list[str]:
    """Setting, errata, remarks and the cost of tuning of an experiment."""
    errata = [f"erratum {i}: {ERRATA[i].text}" for i in experiment.errata]
    groups = groupby(efforts[experiment.id], key=lambda effort: effort.surrogate)
    tuned = [f"{'surrogate ' * surrogate}tuned by {'; '.join(map(str, group))}" for surrogate, group in groups]
    return [experiment.setting, *errata, *experiment.remarks, *tuned]


def claim_text(claim: Claim) -> str:
    """The claim, the sentence of which it is a part, and how its words became a comparison."""
    of = f" (of: {claim.part_of})" if claim.part_of and claim.part_of != claim.text else ""
    read = f" (read as: {claim.reading})" if claim.reading else ""
    return f"{claim.text}{of}{read}"


def _flat(ruling: Ruling) -> str:
    seeds = f" ({ruling.seeds} seed{'s' * (ruling.seeds > 1)})" if ruling.seeds else _counted(ruling)
    detail = "; ".join(filter(None, [ruling.measured, ruling.reason]))
    return f"{ruling.verdict}{seeds}{': ' if detail else ''}{detail}"


def _counted(ruling: Ruling) -> str:
    return " (counted only)" if ruling.counted_only else " (counted)" * ruling.is_counted


def _styled(ruling: Ruling) -> Text:
    verdict, rest = str(ruling.verdict), _flat(ruling)
    return Text.assemble((verdict, STYLES[ruling.verdict]), rest.removeprefix(verdict))


def _described(entry: Judged) -> dict[str, Any]:
    experiment, claim = entry.experiment, entry.claim
    return {
        "suite": experiment.id,
        "paper": experiment.paper,
        "source": experiment.source,
        "setting": experiment.setting,
        "claim": claim.text,
        "chain": list(claim.chain),
        "op": claim.op,
        "order": claim.order,
        "reading": claim.reading,
        "reported": entry.reported,
        "holds_on_reported": claim.holds_on_reported,
        "original": _ruled(entry.original),
        "surrogate": _ruled(entry.surrogate),
        "errata": [{"id": i, **ERRATA[i]._asdict()} for i in experiment.errata],
        "remarks": list(experiment.remarks),
    }


def _ruled(ruling: Ruling) -> dict[str, Any]:
    readings = [_read(reading) for reading in ruling.readings]
    return {
        "verdict": str(ruling.verdict),
        "reason": ruling.reason,
        "counted_only": ruling.counted_only,
        "seeds": ruling.seeds,
        "readings": readings,
    }


def _read(reading: Reading) -> dict[str, Any]:
    """A reading as JSON can hold it: a missed target is null."""
    values = {seed: None if value.value == MISSED else value.value for seed, value in reading.values.items()}
    middle = reading.middle if values and reading.middle != MISSED else None
    return {
        "name": reading.name,
        "values": list(values.values()),
        "seeds": [] if reading.counted else list(values),
        "median": middle,
        "missed": list(values.values()).count(None),
        "reason": reading.reason or reading.note,
    }


def plan(plans: Iterable[Unsettled]) -> str:
    """What it would take to measure what is not measured, as Markdown: an entry per suite."""
    return "\n".join(line for entry in plans for line in _planned(entry)) + "\n"


def _planned(entry: Unsettled) -> Iterator[str]:
    yield f"- **{entry.suite}**: {'; '.join(entry.claims)}"
    if entry.why:
        yield f"  Cannot be measured: {entry.why}."
        return
    hours = "" if entry.hours is None else f"{_rounded(entry.hours)} GPU hours at {RATE / 1e12:g} TFLOP/s: "
    trials = f" and {entry.trials:,} trials" if entry.trials else ""
    counted = "" if entry.flops is None else f", {entry.flops:.2g} FLOP"
    needs = f"needs {entry.needs}" if entry.needs else "needs no data"
    yield f"  {hours}{entry.cells:,} cells{trials}{counted}; {needs}."
    yield f"  `{entry.command}`"


def _rounded(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"
