"""The papers' claims compared with the rows of runs: the measured values, and the verdict on each claim."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property
from itertools import product
from typing import NamedTuple

import pandas as pd

from curvbench import registry
from curvbench.analysis import scaling
from curvbench.analysis.counted import Counted
from curvbench.analysis.frames import is_cell_ending, is_surrogate, labels, texts
from curvbench.analysis.papers import Blend, Claim, Column, Entry, Experiment, blend
from curvbench.analysis.resampling import interval
from curvbench.analysis.summary import digits
from curvbench.analysis.verdicts import (
    LEAST_SHARE,
    MISSED,
    Bounded,
    Criterion,
    Finding,
    Reading,
    Verdict,
    compare,
    effect,
)
from curvbench.spec import TRIALS, Status
from curvbench.spec.labels import arguments_of, split_label

WIDTHS = r"width=[^,\]]*\.\."  # in the label of a sweep over the width
PACED = r"\bpaced=[1-9]"  # in the column ``method`` of cells whose steps were clocked
PLANNED = r"\bepochs=(\d+)"  # planned epochs, in the column ``method``
# The columns that values are read from.
READ = ["cell_id", "seed", "metric", "scope", "status", "epoch", "value", "method", "samples"]
# The first verdict that a comparison of a claim has is the verdict on the claim.
RANKS = (Verdict.REFUTED, Verdict.UNDECIDED, Verdict.NOT_MEASURED, Verdict.DIRECTION, Verdict.HOLDS)
# For a claim, or against it: counts decide by their medians alone.
SIDES = {Verdict.HOLDS: 1, Verdict.DIRECTION: 1, Verdict.REFUTED: -1}
# By the first sign of an operator: whether the left side is claimed to be the larger.
FLIPPED = {"<": (False,), ">": (True,), "~": (False, True)}


class NoValue(Exception):
    """A member of a claim has no value; the text says why."""


class NotRun(NoValue):
    """None of the member's cells was run."""

    def __init__(self) -> None:
        super().__init__("not run")


class Failed(NoValue):
    """The member was tried without success; the text says how that ended."""


class Ruling(NamedTuple):
    """A verdict, its reason in numbers, and the readings of the claim's members.

    ``counted_only``: whether layer shapes decided, without a run, so that nothing is known of seconds.
    """

    verdict: Verdict
    reason: str = ""
    readings: tuple[Reading, ...] = ()
    counted_only: bool = False

    @property
    def measured(self) -> str:
        """The members that have values, with their medians and ranges."""
        return ", ".join(str(reading) for reading in self.readings if reading.values)

    @property
    def is_counted(self) -> bool:
        """Whether values were measured, and none of them is random."""
        measured = [reading for reading in self.readings if reading.values]
        return bool(measured) and all(reading.counted for reading in measured)

    @property
    def seeds(self) -> int:
        """The fewest seeds that two random members have in common; 0 without random members."""
        seeds = [reading.values.keys() for reading in self.readings if reading.values and not reading.counted]
        return min((len(a & b) for a, b in product(seeds, repeat=2)), default=0)


class Judged(NamedTuple):
    """A claim, the paper's numbers as text, and the rulings on the paper's setting and on the surrogate."""

    experiment: Experiment
    claim: Claim
    reported: str
    original: Ruling
    surrogate: Ruling


class Effort(NamedTuple):
    """The cost of the search for the settings of a row of the paper: trials, and their seconds of training.

    ``surrogate``: whether the search was in the small stand-in rather than in the paper's setting.
    """

    row: str
    trials: int
    seconds: float
    surrogate: bool

    def __str__(self) -> str:
        return f"{self.row} {self.trials} trials, {digits(self.seconds)} s"


def newest(runs: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The rows of the latest run of each suite with originals and of its latest run with surrogates.

    ``runs``: oldest first.

    Raises:
        ValueError: there is no run.
    """
    if not runs:
        raise ValueError("there is no run")
    latest = {key: rows for run in runs for key, rows in run.groupby([run["suite"], is_surrogate(run)], observed=True)}
    return pd.concat(latest.values(), ignore_index=True) if latest else runs[-1]


def judge(frame: pd.DataFrame, experiments: Iterable[Experiment]) -> list[Judged]:
    """A ruling on every claim, from the rows of any suites. The latest cell of each probe, problem and seed counts.

    ``verdicts.compare`` judges one comparison. A claim is refuted if one of its comparisons is refuted. Otherwise it is
    undecided if a comparison is undecided, or if cells of a member failed or gave no number. Otherwise it is not
    measured if a comparison was not run. Otherwise it holds in direction only if a comparison does. A claim about costs
    that was not measured in the paper's setting is judged by counts where it has some, and the reason says so.
    """
    judged = []
    for experiment in experiments:
        rows = frame[frame["suite"] == experiment.id]
        stands_in = is_surrogate(rows)
        original, surrogate = _Cells(experiment, rows[~stands_in]), _Cells(experiment, rows[stands_in], True)
        counted = Counted(experiment)
        for claim in experiment.claims:
            rulings = _counted_at_least(rule(original, claim), counted, claim), rule(surrogate, claim)
            judged.append(Judged(experiment, claim, reported(experiment, claim), *rulings))
    return judged


def efforts(frame: pd.DataFrame, experiment: Experiment) -> list[Effort]:
    """The cost of tuning by row of the paper, originals before surrogates; rows that were not tuned are left out."""
    trials = frame[frame["suite"] == experiment.id + TRIALS]
    probes, problems, stands_in = labels(trials, "probe"), labels(trials, "problem"), is_surrogate(trials)
    costs = []
    for name, entry in experiment.rows.items():
        fitting = _matching(probes, entry.probe) if entry.probe else pd.Series(False, index=trials.index)
        fitting = fitting & _matching(problems, entry.problem) if entry.problem else fitting
        for surrogate, rows in trials[fitting].groupby(stands_in):
            seconds = rows[rows["metric"] == "train.seconds"].groupby("cell_id")["value"].max().sum()
            costs.append(Effort(name, int(rows["cell_id"].nunique()), float(seconds), bool(surrogate)))
    return sorted(costs, key=lambda effort: effort.surrogate)


def reported(experiment: Experiment, claim: Claim) -> str:
    """The claim in the paper's numbers; empty if the paper prints none."""
    values = [experiment.reported(member) for member in claim.chain]
    texts = [_text(member, value) for member, value in zip(claim.chain, values, strict=True) if value is not None]
    if not any(isinstance(m, str) and v is not None for m, v in zip(claim.chain, values, strict=True)):
        return ""
    if claim.op == "~":
        return texts[0]
    return f" {claim.op} ".join(texts if claim.order == "all" else filter(None, [texts[0], ", ".join(texts[1:])]))


def rule(cells: _Cells, claim: Claim) -> Ruling:
    """The ruling on a claim from the cells of the paper's setting, or from the cells of the surrogate.

    Readings between which the paper leaves the choice have to agree, and so have FLOPs beside seconds.
    """
    if claim.why:
        return Ruling(Verdict.NOT_MEASURED, claim.why)
    if cells.frame.empty:
        return Ruling(Verdict.NOT_MEASURED, "not run")
    if cells.surrogate and claim.original_only:
        return Ruling(Verdict.NOT_MEASURED, "a number of the paper's own setting")
    rulings = [_beside_counts(cells, replace(claim, chain=chain)) for chain in claim.chains]
    return rulings[0] if cells.surrogate else _agreed(rulings)


def _agreed(rulings: Sequence[Ruling]) -> Ruling:
    """One ruling for several readings of a claim: their verdict if they have the same, else undecided."""
    if len(rulings) == 1:
        return rulings[0]
    verdicts = [ruling.verdict for ruling in rulings]
    reason = "; ".join(ruling.reason for ruling in rulings)
    readings = tuple(reading for ruling in rulings for reading in ruling.readings)
    if len(set(verdicts)) == 1:
        return Ruling(verdicts[0], reason, readings)
    if Verdict.NOT_MEASURED in verdicts:
        return Ruling(Verdict.NOT_MEASURED, reason, readings)
    agreeing = {Verdict.HOLDS, Verdict.DIRECTION}.issuperset(verdicts)
    return Ruling(Verdict.DIRECTION if agreeing else Verdict.UNDECIDED, f"readings differ: {reason}", readings)


def _beside_counts(cells: _Cells, claim: Claim) -> Ruling:
    """The ruling on one chain; undecided where seconds and FLOPs point in opposite directions."""
    ruling = _ruled(cells, claim)
    members = [member for member in claim.chain if isinstance(member, str)]
    if not any(cells.experiment.column(member).beside for member in members) or not ruling.measured:
        return ruling
    counted = _ruled(cells.of_counts, claim)
    reason = f"{ruling.reason}; FLOPs: {counted.measured or counted.reason}"
    opposed = SIDES.get(ruling.verdict, 0) * SIDES.get(counted.verdict, 0) < 0
    verdict = Verdict.UNDECIDED if opposed else ruling.verdict
    return Ruling(verdict, f"seconds and FLOPs disagree: {reason}" if opposed else reason, ruling.readings)


def _counted_at_least(ruling: Ruling, counted: Counted, claim: Claim) -> Ruling:
    """The ruling, or that on the counts if nothing was measured."""
    if ruling.verdict is not Verdict.NOT_MEASURED or claim.why or not counted.decides(claim):
        return ruling
    by_counts = _agreed([_ruled(counted, replace(claim, chain=chain)) for chain in claim.chains])
    return by_counts._replace(reason=f"{counted.note(claim)}; {by_counts.reason}", counted_only=True)


def _ruled(cells: _Cells | Counted, claim: Claim) -> Ruling:
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


def _findings(cells: _Cells | Counted, claim: Claim, readings: Mapping[int, Reading]) -> Iterator[Finding]:
    """The findings of the comparisons whose members both have values."""
    measured = {k: reading for k, reading in readings.items() if reading.values}
    for i, j in claim.pairs:
        if i in measured and j in measured and (measured[i].name or measured[j].name):
            for flipped in FLIPPED[claim.op[0]]:
                small, large = (j, i) if flipped else (i, j)
                yield compare(measured[small], measured[large], _criterion(cells, claim, small, large, flipped))


def _criterion(cells: _Cells | Counted, claim: Claim, small: int, large: int, flipped: bool) -> Criterion:
    """The criterion of a comparison: half of the paper's effect, if it has a size and the claimed direction."""
    unsized = Criterion(claim.op in ("<", ">"), claim.slack, 0.0 if claim.op == "~" else None, flipped=flipped)
    members = claim.chain[small], claim.chain[large]
    column = cells.experiment.column(next(member for member in members if isinstance(member, str)))
    low, high = (cells.experiment.reported(member) for member in members)
    if not unsized.strict or low is None or high is None or cells.stands_in(column):
        return unsized
    sized = unsized._replace(is_ratio=column.is_ratio)
    share = LEAST_SHARE * effect(low, high, sized)
    return sized._replace(effect=share) if low < high + claim.slack and share < MISSED else unsized


class _Cells:
    """The latest cell of each probe, problem and seed of an experiment, in the paper's setting or as surrogates."""

    def __init__(self, experiment: Experiment, frame: pd.DataFrame, surrogate: bool = False) -> None:
        self.experiment, self.surrogate, self._given = experiment, surrogate, frame
        paced = frame.loc[texts(frame, "method").str.contains(PACED), "cell_id"]
        frame = frame.assign(
            probe_label=labels(frame, "probe"),
            problem_label=labels(frame, "problem"),
            is_paced=frame["cell_id"].isin(paced),
        )
        keys = ["probe_label", "problem_label", "is_paced", "seed"]
        newest = frame.sort_values("started_at", kind="stable").drop_duplicates(keys, keep="last")["cell_id"]
        self.frame = frame[frame["cell_id"].isin(newest)]
        read = [name for name in READ if name in self.frame]  # rows may have been stored without samples
        self._settings = {key: rows[read] for key, rows in self.frame.groupby(keys[:3], sort=False, observed=True)}
        self._readings: dict[str | float, Reading] = {}

    @cached_property
    def of_counts(self) -> _Cells:
        """The same cells, read in the counts beside seconds; the paper's numbers are not of counts."""
        columns = {
            name: replace(column, metric=column.beside, beside="") if column.beside else column
            for name, column in self.experiment.columns.items()
        }
        rows = {name: replace(entry, values={}) for name, entry in self.experiment.rows.items()}
        return _Cells(replace(self.experiment, columns=columns, rows=rows), self._given, self.surrogate)

    def absent(self, member: str | float) -> bool:
        """Whether a member belongs to a method that curvbench does not have."""
        return isinstance(member, str) and bool(self.experiment.rows[member.rpartition(".")[0]].absent)

    def stands_in(self, column: Column) -> bool:
        """Whether a surrogate is read in another metric than the paper's."""
        return bool(self.surrogate and column.stand_in) and not (self.frame["metric"] == column.metric).any()

    def read(self, member: str | float) -> Reading:
        """A member of a claim with its values, or the reason why it has none."""
        if member not in self._readings:
            self._readings[member] = self._read(member)
        return self._readings[member]

    def _read(self, member: str | float) -> Reading:
        if not isinstance(member, str):
            return Reading("", {0: Bounded.exactly(float(member))}, counted=True)
        row, _, name = member.rpartition(".")
        try:
            values = self._values(row, name)
        except NoValue as error:
            return Reading(row, reason=str(error), failed=isinstance(error, Failed))
        if missing := [seed for seed, value in values.items() if math.isnan(value.value)]:
            return Reading(row, reason=f"no number in seed {missing[0]}", failed=True)
        column = self.experiment.columns[name]
        is_open = any(value.least < value.most for value in values.values())
        note = f"{row} {column.why_open}" if is_open else ""
        if not column.is_paced or column.is_counted or self.experiment.rows[row].of:
            return Reading(row, values, counted=column.is_counted, note=note)
        return Reading(row, values, note=note, unit="process", interval=self._interval(row, column))

    def _interval(self, row: str, column: Column) -> tuple[float, float]:
        """The interval of a median of clocked steps, over the processes and the steps of each."""
        group, dot, _ = row.rpartition(".")
        base = self.experiment.rows[group + dot + column.over] if column.over else None
        own = self._samples(self.experiment.rows[row], column)
        over = self._samples(base, column) if base else {}
        seeds = sorted(own.keys() & over.keys()) if base else sorted(own)
        return interval([own[seed] for seed in seeds], [over[seed] for seed in seeds] if base else ())

    def _samples(self, entry: Entry, column: Column) -> dict[int, list[float]]:
        """The samples of each seed's process; its value if it has a single one."""
        rows = self._of(entry, column)
        chosen = rows[(rows["metric"] == column.metric) & (rows["scope"] == column.scope)]
        values = {int(seed): [float(value)] for seed, value in zip(chosen["seed"], chosen["value"], strict=True)}
        taken = zip(chosen["seed"], chosen["samples"], strict=True) if "samples" in chosen else ()
        return values | {int(seed): list(samples) for seed, samples in taken if samples is not None and len(samples)}

    def _values(self, row: str, name: str) -> dict[int, Bounded]:
        """A value per seed."""
        entry, column = self.experiment.rows[row], self.experiment.columns[name]
        if entry.of:
            return self._blended(entry, name)
        if column.exponent:
            return {0: Bounded.exactly(self._exponent(entry, column.exponent))}
        values = self._measured(entry, column)
        if not column.over:
            return values
        group, dot, _ = row.rpartition(".")
        if row == (base_row := group + dot + column.over):
            return dict.fromkeys(values, Bounded.exactly(1.0))
        base = self._measured(self.experiment.rows[base_row], column)
        if not (seeds := values.keys() & base.keys()):
            raise Failed(f"no seed in common with {column.over}")
        return {seed: values[seed].over(base[seed]) for seed in sorted(seeds)}

    def _measured(self, entry: Entry, column: Column) -> dict[int, Bounded]:
        metric = column.stand_in if self.stands_in(column) else column.metric
        is_shortened = self.surrogate or column.level is not None  # a paper's own training is as long as the paper's
        budget = (entry.budget or self.experiment.budget) if is_shortened else 0.0
        cells = self._of(entry, column).groupby("cell_id")
        return {int(rows["seed"].iloc[0]): _value(rows, column, metric, budget) for _, rows in cells}

    def _blended(self, entry: Entry, name: str) -> dict[int, Bounded]:
        """The group's rows combined per seed. A surrogate may lack rows; ``best`` leaves out rows that diverged."""
        parts = []
        for row in entry.of:
            try:
                parts.append(self._values(row, name))
            except NotRun:
                if not self.surrogate:
                    raise
            except NoValue as error:
                if entry.take != "best" or str(error) != Status.DIVERGED:
                    raise
        if not parts:
            raise NotRun
        if not (seeds := sorted(set.intersection(*(set(values) for values in parts)))):
            raise Failed(f"no seed in common among {', '.join(entry.of)}")
        better = self.experiment.columns[name].better
        return {seed: _blend([values[seed] for values in parts], entry.take, better) for seed in seeds}

    def _of(self, entry: Entry, column: Column) -> pd.DataFrame:
        """The rows of the cells that a row of the paper stands for: clocked steps, or trainings and measurements."""
        if not entry.probe:
            raise NoValue(entry.absent)
        settings = [
            (probe, problem, is_paced)
            for probe, problem, is_paced in self._settings
            if is_paced == column.is_paced
            and fits(probe, entry.probe)
            and (not entry.problem or fits(problem, entry.problem))
        ]
        if not settings:
            raise NotRun
        if len(settings) > 1:
            examples = ", ".join(f"{probe} on {problem}" for probe, problem, _ in settings[:2])
            raise NoValue(f"{len(settings)} settings match: {examples}")
        rows = self._settings[settings[0]]
        if len(failed := rows[is_cell_ending(rows)]):
            raise Failed(str(failed["status"].iloc[0]))
        return rows

    def _exponent(self, entry: Entry, phase: str) -> float:
        """The fitted exponent in the width of the network."""
        if not _matching(self.frame["probe_label"], entry.probe).any():
            raise NotRun
        sweeps = [row for row in scaling.growth(self.frame) if row.quantity == phase and re.search(WIDTHS, row.problem)]
        exponents = [row.counted.value for row in sweeps if fits(row.probe, entry.probe)]
        if len(exponents) != 1 or math.isnan(exponents[0]):
            raise NoValue(f"no growth of {phase} with the width was counted")
        return exponents[0]


def _value(rows: pd.DataFrame, column: Column, metric: str, budget: float) -> Bounded:
    """The value of a column in the rows of one cell; ``budget``: epochs of the training that the cell stands for."""
    begin = rows["epoch"].astype("float64").min()
    epochs = rows[(rows["metric"] == metric) & (rows["scope"] == column.scope)].sort_values("epoch", kind="stable")
    series = pd.Series(epochs["value"].astype("float64").to_numpy(), epochs["epoch"].astype("float64") - begin)
    if len(epochs) and epochs["status"].iloc[-1] != Status.OK:
        if metric.endswith("_to_target"):
            return _missed(rows, column, series.index[-1], budget)
        raise Failed(str(epochs["status"].iloc[-1]))
    if column.level is not None:
        return _until(series, column.level, budget)
    if column.epoch is not None:
        series = series[series.index == column.epoch]
    if series.empty:
        raise NoValue(f"no {metric or 'metric'} in its rows")
    value = _in_unit(_selected(series, column), column)
    if not math.isfinite(value):
        raise Failed(f"{metric} is {value}")
    if column.is_of_all_epochs and _has_stopped(rows, series.index[-1]):
        return Bounded(value, value, MISSED) if column.better == "higher" else Bounded(value, -MISSED, value)
    return Bounded.exactly(value)


def _until(series: pd.Series, level: float, budget: float) -> Bounded:
    """The epochs until a value reached the level; missed in fewer epochs than ``budget``, it may have come later."""
    if (reached := series[series >= level]).size:
        return Bounded.exactly(float(reached.index[0]))
    trained = float(series.index[-1]) if series.size else 0.0
    return Bounded.exactly(MISSED) if trained >= budget else Bounded(MISSED, trained, MISSED)


def _selected(series: pd.Series, column: Column) -> float:
    """The value that a column selects from the values by epoch."""
    values, epochs = series.to_list(), series.index.to_list()
    if column.take == "best":
        return math.nan if any(map(math.isnan, values)) else blend(values, "best", column.better)
    if column.take == "last":
        return values[-1]
    if column.take == "per later epoch" and len(values) < 2:
        raise NoValue("trained for one epoch only")
    value, epoch = (values[0], epochs[0]) if column.take == "per later epoch" else (0.0, 0.0)
    return (values[-1] - value) / (epochs[-1] - epoch) if epochs[-1] > epoch else math.nan


def _in_unit(value: float, column: Column) -> float:
    """A measured value in the unit of its column."""
    try:
        return column.scale * (math.exp(value) if column.transform == "exp" else value)
    except OverflowError:
        return math.inf


def _missed(rows: pd.DataFrame, column: Column, trained: float, budget: float) -> Bounded:
    """A missed target: never reached, or later than the end of a training that was shorter than ``budget``."""
    if trained >= budget:
        return Bounded.exactly(MISSED)
    seconds = rows.loc[rows["metric"] == "train.seconds", "value"].max()
    end = trained if column.metric == "train.epochs_to_target" else seconds
    return Bounded(MISSED, column.scale * end if end > 0 else 0.0, MISSED)


def _has_stopped(rows: pd.DataFrame, trained: float) -> bool:
    """Whether a training ended at its target, before the epochs that were planned."""
    planned = re.search(PLANNED, str(rows["method"].iloc[-1]))
    has_target = bool(texts(rows, "metric").str.endswith("_to_target").any())
    return planned is not None and has_target and trained < int(planned[1])


def _blend(values: Sequence[Bounded], take: Blend, better: str) -> Bounded:
    """The best or the mean of bounded values, which is bounded too; the range of bounded values is unknown."""
    if take == "range" and any(value.least < value.most for value in values):
        return Bounded.exactly(math.nan)
    return Bounded(*(blend(side, take, better) for side in zip(*values, strict=True)))


def _matching(labels: pd.Series, selector: str) -> pd.Series:
    return labels.map({label: fits(label, selector) for label in set(labels)}).astype(bool)


@cache
def fits(label: str, selector: str) -> bool:
    """Whether a component has the name and, given or by default, the hyperparameters of a selector."""
    (name, written), (selected_name, chosen) = split_label(label), split_label(selector)
    arguments, selected = arguments_of(written), arguments_of(chosen)
    component = (registry.probes() | registry.problems()).get(name)
    defaults = registry.describe(name, component)["hyperparameters"] if component else {}
    settings = defaults | arguments
    return name == selected_name and all(_are_alike(settings.get(key), value) for key, value in selected.items())


def _are_alike(value: object, text: str) -> bool:
    """Whether two spellings mean the same value: True and true, 1 and 1.0."""
    try:
        return float(str(value)) == float(text)
    except ValueError:
        return str(value).lower() == text.lower()


def _text(member: str | float, value: float) -> str:
    """A member of a claim with the paper's number as it is printed."""
    return f"{member.rpartition('.')[0]} {value:.12g}" if isinstance(member, str) else f"{member:g}"
