"""The papers' tables and figures as data: ``data/papers/*.toml``, one file per paper, one table per suite.

An experiment has the name of its suite in ``suites/papers``. A ``[columns]`` entry says how a column of the paper is
read from the rows of a training. A ``[rows]`` entry says which cells a row of the paper stands for, and holds its
numbers. A ``[[claims]]`` entry is a comparison of entries ``row.column``, in the paper's words.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from curvbench.registry.errata import ERRATA
from curvbench.shipped import DATA
from curvbench.spec import METRICS
from curvbench.words import near_misses, one_line

FOLDER = DATA / "papers"

Take = Literal["last", "best", "per epoch", "per later epoch"]
Blend = Literal["best", "mean", "range"]
Op = Literal["<", "<=", ">", ">=", "~"]
Order = Literal["all", "first"]
COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
SCORES = ("%", "BLEU", "ROUGE-1", "ROUGE-2", "ROUGE-L")
E = TypeVar("E")


@dataclass(frozen=True)
class Column:
    """A column of a paper, in ``unit``, and how it is measured. Without ``metric`` and ``exponent`` it is not measured.

    ``take``: the last value of a training, its best value, or seconds ``per epoch`` or ``per later epoch`` than the
    first. ``epoch``: the value after this epoch is taken instead. None means that ``take`` decides. ``stand_in``: the
    metric of a surrogate, if it differs. ``over``: the row by which values are divided, per seed. ``exponent``: a phase
    whose exponent in the width is fitted. ``transform`` is applied to the measured value before ``scale`` multiplies
    it. ``level``: the epochs until the metric first reaches this value are taken instead. ``beside``: a counted metric
    of the same scope that has to agree about the direction: seconds of another machine than the paper's do not decide
    against the FLOPs. ``counted``: the count that decides a claim if nothing was measured, from layer shapes: FLOPs of
    a mean ``step``, or bytes of a training in ``total``, over those of SGD.
    """

    unit: str
    metric: str = ""
    stand_in: str = ""
    scope: str = "network"
    take: Take = "last"
    epoch: int | None = None
    over: str = ""
    exponent: str = ""
    transform: Literal["", "exp"] = ""
    scale: float = 1.0
    level: float | None = None
    beside: str = ""
    counted: Literal["", "step", "total"] = ""

    def __post_init__(self) -> None:
        _one_of("take", self.take, Take)

    @property
    def is_ratio(self) -> bool:
        """Whether effects are ratios; effects of scores are differences."""
        return self.unit not in SCORES

    @property
    def is_counted(self) -> bool:
        """Whether values are counts of FLOPs or bytes, which no seed changes."""
        return bool(self.exponent) or self.metric.startswith(("flops.", "memory.", "pace.flops"))

    @property
    def is_paced(self) -> bool:
        """Whether values come from steps that were clocked, and not from a training."""
        return self.metric.startswith("pace.")

    @property
    def is_of_all_epochs(self) -> bool:
        """Whether a longer training may have a better value."""
        return not self.is_counted and self.epoch is None and self.take in ("best", "last") and not self.is_to_target

    @property
    def is_to_target(self) -> bool:
        """Whether the column is the cost of reaching a target."""
        return self.metric.endswith("_to_target") or self.level is not None

    @property
    def why_open(self) -> str:
        """Why a value of this column may be known only by its bounds."""
        if self.is_to_target:
            return "is censored: the target was missed in a shorter training than the paper's"
        return "stopped at its target, its course beyond is not known"

    @property
    def better(self) -> str:
        """``lower`` or ``higher``; ratios and exponents are better when lower."""
        if self.is_to_target:
            return "lower"
        metrics = [METRICS[metric] for metric in (self.metric, self.stand_in) if metric in METRICS]
        return metrics[0].better if metrics else "lower"


@dataclass(frozen=True)
class Entry:
    """A row of a paper: its ``values`` by column, and the cells that it stands for.

    ``probe``, ``problem``: cells with these hyperparameters, written as for ``-p`` and ``-m``; without a problem, cells
    of any. ``of``: other rows, of which this row is the ``take``. ``absent``: why curvbench does not have the method.
    ``budget``: the epochs for which the paper trains the row. None means the experiment's budget. ``priced``: the probe
    whose costs are counted, if that is another variant than the one that trains.
    """

    probe: str = ""
    problem: str = ""
    absent: str = ""
    of: Sequence[str] = ()
    take: Blend = "best"
    budget: float | None = None
    priced: str = ""
    values: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _one_of("take", self.take, Blend)
        if bool(self.probe) + bool(self.absent) + bool(self.of) != 1:
            raise ValueError("a row has one of probe, of and absent")


@dataclass(frozen=True)
class Claim:
    """A comparison that a paper makes. Members are ``row.column`` or numbers.

    ``chain``: each member is compared with all after it, or, with the order ``first``, the first member with all
    others. ``op``: ``~`` means within ``slack`` of a number; the other operators allow for ``slack`` too. ``reading``:
    how words without numbers became a comparison. ``part_of``: the paper's sentence, if the claim is a part of it.
    ``why``: the reason why the claim cannot be measured. ``original_only``: surrogates cannot be compared with the
    number. ``again``: the chain for other readings of what the paper leaves open or prints wrong, such as the sizes
    of a network; a verdict is given where all agree. ``holds_on_reported``: whether the claim holds on the paper's own
    numbers.
    """

    text: str
    chain: Sequence[str | float] = ()
    op: Op = "<"
    order: Order = "all"
    slack: float = 0.0
    reading: str = ""
    part_of: str = ""
    why: str = ""
    original_only: bool = False
    again: Sequence[Sequence[str | float]] = ()
    holds_on_reported: bool = True

    def __post_init__(self) -> None:
        _one_of("op", self.op, Op)
        _one_of("order", self.order, Order)
        if not self.why and len(self.chain) < 2:
            raise ValueError("a claim compares two members at least, or says in `why` that it cannot be measured")

    @property
    def chains(self) -> list[Sequence[str | float]]:
        """The chain, and that of every other reading."""
        return [self.chain, *self.again]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The places in the chain that are compared."""
        places = range(len(self.chain))
        return [pair for pair in combinations(places, 2) if self.order == "all" or pair[0] == 0]


@dataclass(frozen=True)
class Experiment:
    """One table or figure of a paper: its place, caption and setting, its numbers and the claims about them.

    ``budget``: the epochs of the paper's trainings. A target that a shorter training misses is censored. ``hardware``:
    the machine on which the paper took seconds; empty means that it does not say. ``shapes``: the shipped layer shapes
    by group of rows, for counts at ``batch`` samples with statistics and factorization every ``refresh`` steps.
    ``examples``: the samples of the paper's training data. ``needs``: the data that its trainings need.
    """

    id: str
    paper: str
    source: str
    caption: str
    setting: str
    columns: Mapping[str, Column]
    rows: Mapping[str, Entry]
    claims: Sequence[Claim]
    errata: Sequence[str] = ()
    remarks: Sequence[str] = ()
    budget: float = math.inf
    shapes: Mapping[str, str] = field(default_factory=dict)
    batch: int = 1
    refresh: int = 1
    hardware: str = ""
    examples: int = 0
    needs: str = ""

    def shapes_of(self, row: str) -> str:
        """The shipped layer shapes of a row's network; empty if there are none."""
        return self.shapes.get(row.rpartition(".")[0], "")

    def column(self, path: str) -> Column:
        """The column of ``row.column``."""
        return self.columns[path.rpartition(".")[2]]

    def reported(self, member: str | float) -> float | None:
        """The paper's number for a member of a claim. None means that the paper prints none."""
        if not isinstance(member, str):
            return float(member)
        row, _, column = member.rpartition(".")
        entry = self.rows[row]
        if not entry.of:
            return entry.values.get(column)
        values = [v for name in entry.of if (v := self.reported(f"{name}.{column}")) is not None]
        return blend(values, entry.take, self.columns[column].better) if values else None


def blend(values: Sequence[float], take: Blend, better: str) -> float:
    """The best (the lowest or highest), the mean or the range of some values."""
    if take == "mean":
        return sum(values) / len(values)
    if take == "range":
        return max(values) - min(values)
    return max(values) if better == "higher" else min(values)


def experiments(folder: Path = FOLDER) -> list[Experiment]:
    """Every experiment of every paper, in the order of the files.

    Raises:
        ValueError: the folder is not there, or a file is damaged; the text names file and key.
    """
    if not folder.is_dir():
        raise ValueError(f"no folder {str(folder)!r}: the papers' numbers are in curvbench's checkout")
    return [experiment for file in sorted(folder.glob("*.toml")) for experiment in _of_paper(file)]


def _of_paper(file: Path) -> list[Experiment]:
    try:
        content = tomllib.loads(file.read_text("utf-8"))
        paper = content.pop("paper")
        return [_experiment(k, paper, table) for k, table in content.items() if isinstance(table, dict)]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file}: {one_line(error)}") from error


def _experiment(name: str, paper: str, table: dict[str, Any]) -> Experiment:
    columns = {key: _read(Column, f"{name}.columns.{key}", value) for key, value in table.pop("columns", {}).items()}
    rows = {key: _row(f"{name}.rows.{key}", value, columns) for key, value in table.pop("rows", {}).items()}
    claims = [_read(Claim, f"{name}.claims", value) for value in table.pop("claims", [])]
    experiment = _read(
        Experiment, name, {"id": name, "paper": paper, "columns": columns, "rows": rows, "claims": claims, **table}
    )
    _refuse_unknown(experiment)
    return experiment


def _row(where: str, table: dict[str, Any], columns: Mapping[str, Column]) -> Entry:
    values = {key: float(table.pop(key)) for key in list(table) if key in columns}
    return _read(Entry, where, {**table, "values": values})


def _read(kind: type[E], where: str, table: Mapping[str, Any]) -> E:
    fields = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    if unknown := [key for key in table if key not in fields]:
        raise ValueError(f"{where}: unknown key {unknown[0]!r}: {near_misses(unknown[0], fields)}")
    try:
        return kind(**table)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def _refuse_unknown(experiment: Experiment) -> None:
    """Raise ValueError for a name that an experiment uses and does not define."""
    if strange := [i for i in experiment.errata if i not in ERRATA]:
        raise ValueError(f"{experiment.id}: unknown erratum {strange[0]!r}")
    members = [m for claim in experiment.claims for chain in claim.chains for m in chain if isinstance(m, str)]
    for row, _, column in (member.rpartition(".") for member in members):
        if row not in experiment.rows:
            raise ValueError(f"{experiment.id}: no row {row!r}: {near_misses(row, experiment.rows)}")
        if column not in experiment.columns:
            raise ValueError(f"{experiment.id}: no column {column!r}: {near_misses(column, experiment.columns)}")
    for name, entry in experiment.rows.items():
        if missing := [row for row in entry.of if row not in experiment.rows]:
            raise ValueError(
                f"{experiment.id}.rows.{name}: no row {missing[0]!r}: {near_misses(missing[0], experiment.rows)}"
            )


def _one_of(name: str, value: str, literal: Any) -> None:
    if value not in get_args(literal):
        raise ValueError(f"{name} is one of {', '.join(get_args(literal))}, got {value!r}")
