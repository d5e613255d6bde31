"""The papers' claims held against the rows of runs: what was measured, and whether it bears a claim out."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import product
from typing import NamedTuple

import pandas as pd

from curvbench import registry
from curvbench.analysis import scaling
from curvbench.analysis.frames import is_cell_ending, is_surrogate, labels, texts
from curvbench.analysis.papers import Blend, Claim, Column, Entry, Experiment, blend
from curvbench.analysis.summary import digits
from curvbench.analysis.verdicts import (
    LEAST_SHARE,
    MISSED,
    Asked,
    Finding,
    Known,
    Reading,
    Verdict,
    compare,
    effect,
)
from curvbench.spec import TRIALS, Status

WIDTHS = r"width=[^,\]]*\.\."  # of a sweep's label, where the width is what was swept
PLANNED = r"\bepochs=(\d+)"  # in the column ``method``
READ = ["cell_id", "seed", "metric", "scope", "status", "epoch", "value", "method"]  # columns that values are from
RANKS = (Verdict.REFUTED, Verdict.UNDECIDED, Verdict.NOT_MEASURED, Verdict.DIRECTION, Verdict.HOLDS)  # the first rules
FLIPPED = {"<": (False,), ">": (True,), "~": (False, True)}  # by an operator's first sign: the left side is larger


class Unread(Exception):
    """A member of a claim has no value; the text is the reason."""


class NotRun(Unread):
    """None of its cells was run."""

    def __init__(self) -> None:
        super().__init__("not run")


class Failed(Unread):
    """It was tried; the text is how that ended."""


class Ruling(NamedTuple):
    """A verdict, its reason in numbers, and what was measured of the claim's members."""

    verdict: Verdict
    reason: str = ""
    readings: tuple[Reading, ...] = ()

    @property
    def measured(self) -> str:
        """The members that have values, with their medians and ranges."""
        return ", ".join(str(reading) for reading in self.readings if reading.values)

    @property
    def is_counted(self) -> bool:
        """Whether something was measured, and nothing of it is random."""
        found = [reading for reading in self.readings if reading.values]
        return bool(found) and all(reading.counted for reading in found)

    @property
    def seeds(self) -> int:
        """The fewest seeds that two random members have in common; 0 where there is none."""
        found = [reading.values.keys() for reading in self.readings if reading.values and not reading.counted]
        return min((len(a & b) for a, b in product(found, repeat=2)), default=0)


class Judged(NamedTuple):
    """A claim with what the paper reports, and the rulings on its own setting and on the surrogate."""

    experiment: Experiment
    claim: Claim
    reported: str
    original: Ruling
    surrogate: Ruling


class Effort(NamedTuple):
    """What looking for the settings of a row of the paper has cost: trials, and seconds of training in them.

    ``surrogate``: in the small stand-in, not in the paper's own setting.
    """

    row: str
    trials: int
    seconds: float
    surrogate: bool

    def __str__(self) -> str:
        return f"{self.row} {self.trials} trials, {digits(self.seconds)} s"


def newest(runs: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Of runs, oldest first, the rows of each suite's latest that has originals and of its latest that has surrogates.

    Raises:
        ValueError: there is no run.
    """
    if not runs:
        raise ValueError("there is no run")
    latest = {key: rows for run in runs for key, rows in run.groupby([run["suite"], is_surrogate(run)], observed=True)}
    return pd.concat(latest.values(), ignore_index=True) if latest else runs[-1]


def judge(frame: pd.DataFrame, experiments: Iterable[Experiment]) -> list[Judged]:
    """A ruling on every claim from the rows of any suites; of each probe, problem and seed the latest cell counts.

    See ``verdicts.compare`` for a comparison. A claim is refuted where one of its comparisons is, whatever became of
    the others; else undecided where one is, or where a member's cells failed or gave no number; not measured where one
    was not run; and it holds in direction only where one does.
    """
    found = []
    for experiment in experiments:
        mine = frame[frame["suite"] == experiment.id]
        stands_in = is_surrogate(mine)
        original, surrogate = _Cells(experiment, mine[~stands_in]), _Cells(experiment, mine[stands_in], True)
        for claim in experiment.claims:
            rulings = rule(original, claim), rule(surrogate, claim)
            found.append(Judged(experiment, claim, reported(experiment, claim), *rulings))
    return found


def efforts(frame: pd.DataFrame, experiment: Experiment) -> list[Effort]:
    """What tuning has cost, by row of the paper, originals before surrogates; none of those that were not tuned."""
    mine = frame[frame["suite"] == experiment.id + TRIALS]
    probes, problems, stands_in = labels(mine, "probe"), labels(mine, "problem"), is_surrogate(mine)
    found = []
    for name, entry in experiment.rows.items():
        fitting = _matching(probes, entry.probe) if entry.probe else pd.Series(False, index=mine.index)
        fitting = fitting & _matching(problems, entry.problem) if entry.problem else fitting
        for surrogate, rows in mine[fitting].groupby(stands_in):
            seconds = rows[rows["metric"] == "train.seconds"].groupby("cell_id")["value"].max().sum()
            found.append(Effort(name, int(rows["cell_id"].nunique()), float(seconds), bool(surrogate)))
    return sorted(found, key=lambda effort: effort.surrogate)


def reported(experiment: Experiment, claim: Claim) -> str:
    """What the paper says, in its numbers; empty where it prints none."""
    values = [experiment.reported(member) for member in claim.chain]
    texts = [_text(member, value) for member, value in zip(claim.chain, values, strict=True) if value is not None]
    if not any(isinstance(m, str) and v is not None for m, v in zip(claim.chain, values, strict=True)):
        return ""
    if claim.op == "~":
        return texts[0]
    return f" {claim.op} ".join(texts if claim.order == "all" else filter(None, [texts[0], ", ".join(texts[1:])]))


def rule(cells: _Cells, claim: Claim) -> Ruling:
    """The ruling on a claim from the cells of its own setting, or from those of the surrogate."""
    if claim.why:
        return Ruling(Verdict.NOT_MEASURED, claim.why)
    if cells.frame.empty:
        return Ruling(Verdict.NOT_MEASURED, "not run")
    if cells.surrogate and claim.original_only:
        return Ruling(Verdict.NOT_MEASURED, "a number of the paper's own setting")
    readings = {k: cells.read(member) for k, member in enumerate(claim.chain) if not cells.absent(member)}
    left_out = [str(member).rpartition(".")[0] for k, member in enumerate(claim.chain) if k not in readings]
    without = f"without {', '.join(left_out)}" if left_out else ""
    measured = tuple(reading for k, reading in readings.items() if isinstance(claim.chain[k], str))
    if not (findings := [*_unread(readings.values()), *_findings(cells, claim, readings)]):
        return Ruling(Verdict.NOT_MEASURED, without, measured)
    first = min(findings, key=lambda finding: (RANKS.index(finding.verdict), finding.strength))
    return Ruling(first.verdict, "; ".join(filter(None, [first.reason, without])), measured)


def _unread(readings: Iterable[Reading]) -> Iterator[Finding]:
    for reading in readings:
        if not reading.values:
            verdict = Verdict.UNDECIDED if reading.failed else Verdict.NOT_MEASURED
            yield Finding(verdict, f"{reading.name}: {reading.reason}")


def _findings(cells: _Cells, claim: Claim, readings: Mapping[int, Reading]) -> Iterator[Finding]:
    """Those of the claim's comparisons of which both members have values."""
    known = {k: reading for k, reading in readings.items() if reading.values}
    for i, j in claim.pairs:
        if i in known and j in known and (known[i].name or known[j].name):
            for flipped in FLIPPED[claim.op[0]]:
                small, large = (j, i) if flipped else (i, j)
                yield compare(known[small], known[large], _asked(cells, claim, small, large, flipped))


def _asked(cells: _Cells, claim: Claim, small: int, large: int, flipped: bool) -> Asked:
    """What a comparison asks for: half of the paper's effect, where that has a size and the direction claimed."""
    unsized = Asked(claim.op in ("<", ">"), claim.slack, 0.0 if claim.op == "~" else None, flipped=flipped)
    members = claim.chain[small], claim.chain[large]
    column = cells.experiment.column(next(member for member in members if isinstance(member, str)))
    low, high = (cells.experiment.reported(member) for member in members)
    if not unsized.strict or low is None or high is None or cells.stands_in(column):
        return unsized
    sized = unsized._replace(is_ratio=column.is_ratio)
    share = LEAST_SHARE * effect(low, high, sized)
    return sized._replace(effect=share) if low < high + claim.slack and share < MISSED else unsized


class _Cells:
    """The cells of one experiment, of its own setting or its surrogate, the latest of each probe, problem and seed."""

    def __init__(self, experiment: Experiment, frame: pd.DataFrame, surrogate: bool = False) -> None:
        self.experiment, self.surrogate = experiment, surrogate
        frame = frame.assign(probe_label=labels(frame, "probe"), problem_label=labels(frame, "problem"))
        keys = ["probe_label", "problem_label", "seed"]
        newest = frame.sort_values("started_at", kind="stable").drop_duplicates(keys, keep="last")["cell_id"]
        self.frame = frame[frame["cell_id"].isin(newest)]
        self._settings = {key: rows[READ] for key, rows in self.frame.groupby(keys[:2], sort=False, observed=True)}
        self._known: dict[str | float, Reading] = {}

    def absent(self, member: str | float) -> bool:
        """Whether a member is of a method that there is not here."""
        return isinstance(member, str) and bool(self.experiment.rows[member.rpartition(".")[0]].absent)

    def stands_in(self, column: Column) -> bool:
        """Whether a surrogate is read in another metric than the paper's."""
        return bool(self.surrogate and column.stand_in) and not (self.frame["metric"] == column.metric).any()

    def read(self, member: str | float) -> Reading:
        """A member of a claim with its values, or the reason why it has none."""
        if member not in self._known:
            self._known[member] = self._read(member)
        return self._known[member]

    def _read(self, member: str | float) -> Reading:
        if not isinstance(member, str):
            return Reading("", {0: Known.exactly(float(member))}, counted=True)
        row, _, name = member.rpartition(".")
        try:
            values = self._values(row, name)
        except Unread as error:
            return Reading(row, reason=str(error), failed=isinstance(error, Failed))
        if lost := [seed for seed, known in values.items() if math.isnan(known.value)]:
            return Reading(row, reason=f"no number in seed {lost[0]}", failed=True)
        column = self.experiment.columns[name]
        is_open = any(known.least < known.most for known in values.values())
        return Reading(row, values, counted=column.is_counted, note=f"{row} {column.why_open}" if is_open else "")

    def _values(self, row: str, name: str) -> dict[int, Known]:
        """A value per seed."""
        entry, column = self.experiment.rows[row], self.experiment.columns[name]
        if entry.of:
            return self._blended(entry, name)
        if column.exponent:
            return {0: Known.exactly(self._exponent(entry, column.exponent))}
        values = self._measured(entry, column)
        if not column.over:
            return values
        group, dot, _ = row.rpartition(".")
        if row == (base_row := group + dot + column.over):
            return dict.fromkeys(values, Known.exactly(1.0))
        base = self._measured(self.experiment.rows[base_row], column)
        if not (both := values.keys() & base.keys()):
            raise Failed(f"no seed in common with {column.over}")
        return {seed: values[seed].over(base[seed]) for seed in sorted(both)}

    def _measured(self, entry: Entry, column: Column) -> dict[int, Known]:
        metric = column.stand_in if self.stands_in(column) else column.metric
        budget = (entry.budget or self.experiment.budget) if self.surrogate else 0.0
        cells = self._of(entry).groupby("cell_id")
        return {int(rows["seed"].iloc[0]): _value(rows, column, metric, budget) for _, rows in cells}

    def _blended(self, entry: Entry, name: str) -> dict[int, Known]:
        """Seed by seed over the rows of a group; a surrogate may have fewer of them, and what diverges is no best."""
        found = []
        for row in entry.of:
            try:
                found.append(self._values(row, name))
            except NotRun:
                if not self.surrogate:
                    raise
            except Unread as error:
                if entry.take != "best" or str(error) != Status.DIVERGED:
                    raise
        if not found:
            raise NotRun
        if not (seeds := sorted(set.intersection(*(set(values) for values in found)))):
            raise Failed(f"no seed in common among {', '.join(entry.of)}")
        better = self.experiment.columns[name].better
        return {seed: _blend([values[seed] for values in found], entry.take, better) for seed in seeds}

    def _of(self, entry: Entry) -> pd.DataFrame:
        """The rows of the cells that a row of the paper stands for."""
        if not entry.probe:
            raise Unread(entry.absent)
        found = [
            (probe, problem)
            for probe, problem in self._settings
            if _fits(probe, entry.probe) and (not entry.problem or _fits(problem, entry.problem))
        ]
        if not found:
            raise NotRun
        if len(found) > 1:
            shown = ", ".join(f"{probe} on {problem}" for probe, problem in found[:2])
            raise Unread(f"{len(found)} settings match: {shown}")
        rows = self._settings[found[0]]
        if len(failed := rows[is_cell_ending(rows)]):
            raise Failed(str(failed["status"].iloc[0]))
        return rows

    def _exponent(self, entry: Entry, phase: str) -> float:
        """The fitted exponent in the width of the network."""
        if not _matching(self.frame["probe_label"], entry.probe).any():
            raise NotRun
        found = [row for row in scaling.growth(self.frame) if row.quantity == phase and re.search(WIDTHS, row.problem)]
        mine = [row.counted.value for row in found if _fits(row.probe, entry.probe)]
        if len(mine) != 1 or math.isnan(mine[0]):
            raise Unread(f"no growth of {phase} with the width was counted")
        return mine[0]


def _value(rows: pd.DataFrame, column: Column, metric: str, budget: float) -> Known:
    """What a column takes from the rows of one cell; ``budget``: the epochs of the training that it stands for."""
    begin = rows["epoch"].astype("float64").min()
    mine = rows[(rows["metric"] == metric) & (rows["scope"] == column.scope)].sort_values("epoch", kind="stable")
    series = pd.Series(mine["value"].astype("float64").to_numpy(), mine["epoch"].astype("float64") - begin)
    if len(mine) and mine["status"].iloc[-1] != Status.OK:
        if metric.endswith("_to_target"):
            return _missed(rows, column, series.index[-1], budget)
        raise Failed(str(mine["status"].iloc[-1]))
    if column.epoch is not None:
        series = series[series.index == column.epoch]
    if series.empty:
        raise Unread(f"no {metric or 'metric'} in its rows")
    found = _finished(_taken(series, column), column)
    if not math.isfinite(found):
        raise Failed(f"{metric} is {found}")
    if column.is_of_all_epochs and _stopped(rows, series.index[-1]):
        return Known(found, found, MISSED) if column.better == "higher" else Known(found, -MISSED, found)
    return Known.exactly(found)


def _taken(series: pd.Series, column: Column) -> float:
    """The value that a column takes from those by epoch."""
    values, epochs = series.to_list(), series.index.to_list()
    if column.take == "best":
        return math.nan if any(map(math.isnan, values)) else blend(values, "best", column.better)
    if column.take == "last":
        return values[-1]
    if column.take == "per later epoch" and len(values) < 2:
        raise Unread("trained for one epoch only")
    value, epoch = (values[0], epochs[0]) if column.take == "per later epoch" else (0.0, 0.0)
    return (values[-1] - value) / (epochs[-1] - epoch) if epochs[-1] > epoch else math.nan


def _finished(value: float, column: Column) -> float:
    """A value in the unit of its column."""
    try:
        return column.scale * (math.exp(value) if column.transform == "exp" else value)
    except OverflowError:
        return math.inf


def _missed(rows: pd.DataFrame, column: Column, trained: float, budget: float) -> Known:
    """Never, or where the training was shorter than the one that it stands for, later than its end."""
    if trained >= budget:
        return Known.exactly(MISSED)
    seconds = rows.loc[rows["metric"] == "train.seconds", "value"].max()
    end = trained if column.metric == "train.epochs_to_target" else seconds
    return Known(MISSED, column.scale * end if end > 0 else 0.0, MISSED)


def _stopped(rows: pd.DataFrame, trained: float) -> bool:
    """Whether a training ended at its target, before the epochs that were planned."""
    planned = re.search(PLANNED, str(rows["method"].iloc[-1]))
    waited = bool(texts(rows, "metric").str.endswith("_to_target").any())
    return planned is not None and waited and trained < int(planned[1])


def _blend(values: Sequence[Known], take: Blend, better: str) -> Known:
    """Of values that are known in part the best and the mean are, too; a range is not."""
    if take == "range" and any(known.least < known.most for known in values):
        return Known.exactly(math.nan)
    return Known(*(blend(side, take, better) for side in zip(*values, strict=True)))


def _matching(shown: pd.Series, selector: str) -> pd.Series:
    return shown.map({label: _fits(label, selector) for label in set(shown)}).astype(bool)


@cache
def _fits(label: str, selector: str) -> bool:
    """Whether a component has the name and, given or by default, the hyperparameters of a selector."""
    (name, mine), (wanted, asked) = _parts(label), _parts(selector)
    known = (registry.probes() | registry.problems()).get(name)
    defaults = registry.describe(name, known)["hyperparameters"] if known else {}
    return name == wanted and all(_alike((defaults | mine).get(key), value) for key, value in asked.items())


def _parts(label: str) -> tuple[str, dict[str, str]]:
    name, _, arguments = label.removesuffix("]").partition("[")
    pairs = (part.partition("=") for part in arguments.split(",") if part)
    return name, {key: value for key, _, value in pairs}


def _alike(value: object, asked: str) -> bool:
    """Whether two spellings mean the same value: True and true, 1 and 1.0."""
    try:
        return float(str(value)) == float(asked)
    except ValueError:
        return str(value).lower() == asked.lower()


def _text(member: str | float, value: float) -> str:
    """A member of a claim with the paper's number as it is printed."""
    return f"{member.rpartition('.')[0]} {value:.12g}" if isinstance(member, str) else f"{member:g}"
