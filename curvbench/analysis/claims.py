"""The papers' claims held against the rows of runs: what was measured, and whether it bears a claim out."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from statistics import median
from typing import NamedTuple

import pandas as pd

from curvbench import registry, tuning
from curvbench.analysis import scaling
from curvbench.analysis.papers import COMPARE, Claim, Column, Entry, Experiment, blend
from curvbench.analysis.summary import digits, labels
from curvbench.spec import SURROGATE, Status

LEAST_SHARE = 0.5
"""Of the paper's effect: a smaller one holds in direction only."""

WIDTHS = r"width=[^,\]]*\.\."  # of a sweep's label, where the width is what was swept
MISSED = math.inf  # epochs and seconds to a target that was not reached: more than any that was
READ = ["cell_id", "seed", "metric", "scope", "status", "epoch", "value"]  # columns that values are taken from


class Verdict(StrEnum):
    """What the measurement says of a claim."""

    HOLDS = "holds"
    DIRECTION = "holds in direction only"
    REFUTED = "refuted"
    NOT_MEASURED = "not measured"


class Unread(Exception):
    """A member of a claim has no value; the text is the reason."""


class NotRun(Unread):
    """None of its cells was run."""

    def __init__(self) -> None:
        super().__init__("not run")


@dataclass(frozen=True)
class Reading:
    """A member of a claim as it was measured: a value per seed, or the reason why there is none.

    A number of the claim itself has no name.
    """

    name: str
    values: tuple[float, ...] = ()
    reason: str = ""

    @property
    def middle(self) -> float:
        """The median over seeds."""
        return median(self.values)

    def overlaps(self, other: Reading, slack: float = 0.0) -> bool:
        """Whether the ranges over seeds meet, once ``slack`` is added to this one."""
        return min(self.values) + slack <= max(other.values) and min(other.values) <= max(self.values) + slack

    def __str__(self) -> str:
        low, high = min(self.values), max(self.values)
        spread = f" [{_shown(low)}, {_shown(high)}]" if low < high else ""
        return f"{self.name} {_shown(self.middle)}{spread}".lstrip()


class Ruling(NamedTuple):
    """A verdict, its reason (empty where the numbers say it), and what was measured of the claim's members."""

    verdict: Verdict
    reason: str = ""
    readings: tuple[Reading, ...] = ()

    @property
    def measured(self) -> str:
        """The members that have values, with their medians and ranges."""
        return ", ".join(str(reading) for reading in self.readings if reading.values)

    @property
    def seeds(self) -> int:
        """The fewest seeds behind a member."""
        return min((len(reading.values) for reading in self.readings), default=0)


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
    latest = {key: rows for run in runs for key, rows in run.groupby([run["suite"], _stands_in(run)], observed=True)}
    return pd.concat(latest.values(), ignore_index=True) if latest else runs[-1]


def _stands_in(frame: pd.DataFrame) -> pd.Series:
    """Which rows are a surrogate's."""
    return frame["method"].fillna("").str.startswith(SURROGATE)


def judge(frame: pd.DataFrame, experiments: Iterable[Experiment]) -> list[Judged]:
    """A ruling on every claim from the rows of any suites; of each probe, problem and seed the latest cell counts.

    On medians over seeds. A claim is refuted where one of its comparisons is the other way round and the ranges over
    seeds are apart; undecided, and so not measured, where they meet. It holds in direction only where a comparison's
    ranges meet, or its effect is smaller than ``LEAST_SHARE`` of the paper's.
    """
    found = []
    for experiment in experiments:
        mine = frame[frame["suite"] == experiment.id]
        stands_in = _stands_in(mine)
        original, surrogate = _Cells(experiment, mine[~stands_in]), _Cells(experiment, mine[stands_in], True)
        for claim in experiment.claims:
            rulings = rule(original, claim), rule(surrogate, claim)
            found.append(Judged(experiment, claim, reported(experiment, claim), *rulings))
    return found


def efforts(frame: pd.DataFrame, experiment: Experiment) -> list[Effort]:
    """What tuning has cost, by row of the paper, originals before surrogates; none of those that were not tuned."""
    mine = frame[frame["suite"] == experiment.id + tuning.FOLDER]
    probes, problems, stands_in = labels(mine, "probe"), labels(mine, "problem"), _stands_in(mine)
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
    chosen = [k for k, member in enumerate(claim.chain) if not cells.absent(member)]
    readings = {k: cells.read(claim.chain[k]) for k in chosen}
    pairs = [(chosen[0] if claim.order == "first" else chosen[n], k) for n, k in enumerate(chosen[1:])]
    verdict, reason = _verdict(cells, claim, readings, pairs)
    left_out = ", ".join(str(member).rpartition(".")[0] for k, member in enumerate(claim.chain) if k not in readings)
    reason = "; ".join(filter(None, [reason, f"without {left_out}" if left_out else ""]))
    return Ruling(verdict, reason, tuple(readings[k] for k in chosen if isinstance(claim.chain[k], str)))


def _verdict(
    cells: _Cells, claim: Claim, readings: Mapping[int, Reading], pairs: Sequence[tuple[int, int]]
) -> tuple[Verdict, str]:
    both = [(a, b) for a, b in pairs if readings[a].values and readings[b].values]
    missed = [(a, b) for a, b in both if readings[a].middle == readings[b].middle == MISSED]
    wrong = [(a, b) for a, b in both if (a, b) not in missed and not _right(claim, readings[a], readings[b])]
    apart = [(a, b) for a, b in wrong if claim.op == "~" or not readings[a].overlaps(readings[b], _slack(claim))]
    if apart:
        return Verdict.REFUTED, _against(claim, readings, apart[0])
    if unread := [reading for reading in readings.values() if not reading.values]:
        return Verdict.NOT_MEASURED, f"{unread[0].name}: {unread[0].reason}"
    if missed:
        a, b = missed[0]
        return Verdict.NOT_MEASURED, f"{readings[a].name} and {readings[b].name} miss the target"
    if wrong:
        a, b = wrong[0]
        return Verdict.NOT_MEASURED, f"undecided: the ranges of {readings[a].name} and {readings[b].name} meet"
    weak = next((why for a, b in pairs if (why := _weak(cells, claim, readings, a, b))), "")
    return (Verdict.DIRECTION, weak) if weak else (Verdict.HOLDS, "")


def _right(claim: Claim, a: Reading, b: Reading) -> bool:
    if claim.op == "~":
        return abs(a.middle - b.middle) <= claim.slack
    return COMPARE[claim.op](a.middle + _slack(claim), b.middle)


def _slack(claim: Claim) -> float:
    """What is added to the left side of a comparison in its favour."""
    return claim.slack if claim.op.startswith(">") else -claim.slack


def _against(claim: Claim, readings: Mapping[int, Reading], pair: tuple[int, int]) -> str:
    a, b = (readings[k] for k in pair)
    sign = "=" if a.middle == b.middle else "<" if a.middle < b.middle else ">"
    return f"{a.name} {_shown(a.middle)} {sign} {b.name} {_shown(b.middle)}".replace("  ", " ")


def _weak(cells: _Cells, claim: Claim, readings: Mapping[int, Reading], a: int, b: int) -> str:
    """Why a comparison that is the right way round does not reach the paper's; empty where it does.

    Effects in another metric than the paper's have no size to be held against.
    """
    left, right = readings[a], readings[b]
    members = claim.chain[a], claim.chain[b]
    if claim.op in ("~", "<=", ">=") or not all(isinstance(member, str) for member in members):
        return ""
    if left.overlaps(right):
        return f"the ranges of {left.name} and {right.name} meet"
    column = cells.experiment.column(str(members[0]))
    numbers = [value for member in members if (value := cells.experiment.reported(member)) is not None]
    if len(numbers) < len(members) or (cells.surrogate and column.stand_in):
        return ""
    is_ratio = column.is_ratio
    effects = [_effect(a, b, is_ratio) for a, b in ((left.middle, right.middle), (numbers[0], numbers[1]))]
    if not effects[0] >= LEAST_SHARE * effects[1]:
        how = "a factor of {:.3g}, the paper's {:.3g}" if is_ratio else "{:.3g} apart, in the paper {:.3g}"
        shown = [math.exp(effect) if is_ratio else effect for effect in effects]
        return f"{left.name} and {right.name}: {how.format(*shown)}"
    return ""


def _effect(a: float, b: float, is_ratio: bool) -> float:
    """How far apart two values are: the logarithm of their ratio, or their difference."""
    if not is_ratio or min(a, b) <= 0:
        return abs(a - b)
    return MISSED if MISSED in (a, b) else abs(math.log(a / b))


class _Cells:
    """The cells of one experiment, of its own setting or of its surrogate, the latest of each probe, problem and seed.

    Cells that only look for a setting do not count.
    """

    def __init__(self, experiment: Experiment, frame: pd.DataFrame, surrogate: bool = False) -> None:
        self.experiment, self.surrogate = experiment, surrogate
        looking = frame["metric"].fillna("").str.startswith("validation.")
        frame = frame[~frame["cell_id"].isin(frame.loc[looking, "cell_id"])]
        frame = frame.assign(probe_label=labels(frame, "probe"), problem_label=labels(frame, "problem"))
        keys = ["probe_label", "problem_label", "seed"]
        newest = frame.sort_values("started_at", kind="stable").drop_duplicates(keys, keep="last")["cell_id"]
        self.frame = frame[frame["cell_id"].isin(newest)]
        self._settings = {key: rows[READ] for key, rows in self.frame.groupby(keys[:2], sort=False, observed=True)}
        self._known: dict[str | float, Reading] = {}

    def absent(self, member: str | float) -> bool:
        """Whether a member is of a method that there is not here."""
        return isinstance(member, str) and bool(self.experiment.rows[member.rpartition(".")[0]].absent)

    def read(self, member: str | float) -> Reading:
        """A member of a claim with its values, or the reason why it has none."""
        if member not in self._known:
            self._known[member] = self._read(member)
        return self._known[member]

    def _read(self, member: str | float) -> Reading:
        if not isinstance(member, str):
            return Reading("", (float(member),))
        row, _, column = member.rpartition(".")
        try:
            return Reading(row, tuple(self._values(row, column).values()))
        except Unread as error:
            return Reading(row, reason=str(error))

    def _values(self, row: str, name: str) -> dict[int, float]:
        """A value per seed."""
        entry, column = self.experiment.rows[row], self.experiment.columns[name]
        if entry.of:
            return self._blended(entry, name)
        if column.exponent:
            return {0: self._exponent(entry, column.exponent)}
        values = self._measured(entry, column)
        if not column.over:
            return values
        group, dot, _ = row.rpartition(".")
        base = self._measured(self.experiment.rows[group + dot + column.over], column)
        if not (both := values.keys() & base.keys()):
            raise Unread(f"no seed in common with {column.over}")
        return {seed: values[seed] / base[seed] for seed in sorted(both)}

    def _measured(self, entry: Entry, column: Column) -> dict[int, float]:
        cells = self._of(entry)
        return {int(rows["seed"].iloc[0]): _value(rows, column, self.surrogate) for _, rows in cells.groupby("cell_id")}

    def _blended(self, entry: Entry, name: str) -> dict[int, float]:
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
        seeds = sorted(set.intersection(*(set(values) for values in found)))
        better = self.experiment.columns[name].better
        return {seed: blend([values[seed] for values in found], entry.take, better) for seed in seeds}

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
        if len(failed := rows[rows["metric"].fillna("") == ""]):
            raise Unread(str(failed["status"].iloc[0]))
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


def _value(rows: pd.DataFrame, column: Column, surrogate: bool) -> float:
    """What a column takes from the rows of one cell."""
    stands_in = surrogate and column.stand_in and not (rows["metric"] == column.metric).any()
    metric = column.stand_in if stands_in else column.metric
    mine = rows[(rows["metric"] == metric) & (rows["scope"] == column.scope)].sort_values("epoch", kind="stable")
    if len(mine) and mine["status"].iloc[-1] != Status.OK:
        if metric.endswith("_to_target"):
            return MISSED
        raise Unread(str(mine["status"].iloc[-1]))
    begin = rows["epoch"].astype("float64").min()
    epochs = mine["epoch"].astype("float64") - begin
    if column.epoch is not None:
        mine = mine[epochs == column.epoch]
    values = mine["value"].astype("float64").to_list()
    if not values:
        raise Unread(f"no {metric or 'metric'} in its rows")
    if column.take == "best":
        found = blend(values, "best", column.better)
    elif column.take == "per epoch":
        found = values[-1] / epochs.iloc[-1]
    elif column.take == "per later epoch":
        if len(values) < 2:
            raise Unread("trained for one epoch only")
        found = (values[-1] - values[0]) / (epochs.iloc[-1] - epochs.iloc[0])
    else:
        found = values[-1]
    return column.scale * (math.exp(found) if column.transform == "exp" else found)


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


def _shown(value: float) -> str:
    return "missed" if value == MISSED else digits(value)


def _text(member: str | float, value: float) -> str:
    """A member of a claim with the paper's number as it is printed."""
    return f"{member.rpartition('.')[0]} {value:.12g}" if isinstance(member, str) else f"{member:g}"
