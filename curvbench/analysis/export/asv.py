"""For airspeed velocity: benchmarks and result files, so that its site shows the history of stored runs.

A benchmark follows one quantity of one suite, with problems and probes as its parameters; those of
``suites/bench/regression.py`` have the same names, so that both make one line.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from curvbench.analysis import frames, views
from curvbench.analysis.compare import by_suite
from curvbench.analysis.export import TRACKED
from curvbench.analysis.frames import labels, problems
from curvbench.analysis.views import Quantity
from curvbench.spec import FLOP_MODEL, Status
from curvbench.store import refuse_path

AXES = ["problem", "probe"]
MACHINE = ("arch", "cpu", "machine", "num_cpu", "os", "ram")
ENVIRONMENT = "curvbench"
BENCHMARKS_API, MACHINE_API, RESULTS_API = 2, 1, 2  # versions of asv's files
Entry = dict[str, Any]


def name(suite: str, quantity: Quantity) -> str:
    """``regression.track_flops_counted_step``."""
    return f"{suite}.{function_name(quantity)}"


def function_name(quantity: Quantity) -> str:
    """``track_flops_counted_step``."""
    return "track_" + re.sub(r"\W+", "_", f"{quantity.metric} {quantity.scope}")


def version(quantity: Quantity) -> str:
    """The version of a benchmark: a new version means that values are not comparable, and asv begins a new line."""
    return FLOP_MODEL if quantity.metric.startswith("flops.") else "1"


def values(rows: pd.DataFrame, quantity: Quantity) -> dict[tuple[str, str], float | None]:
    """Medians over seeds by problem and probe; lower is better. None means that the cell failed or lacks the value.

    Cells that were not run, are not supported or were skipped are left out.
    """
    is_left_out = rows["status"].isin([Status.UNSUPPORTED, Status.SKIPPED])
    tried = rows[~is_left_out & ((rows["metric"] == quantity.metric) | ~rows.duplicated("cell_id"))]
    values: dict[tuple[str, str], float | None] = {}
    for problem in problems(tried):
        medians = views.values(frames.of_problem(tried, problem), quantity)["median"]
        values |= {(problem, str(probe)): None if pd.isna(value) else float(value) for probe, value in medians.items()}
    return values


def benchmark(suite: str, quantity: Quantity, axes: Sequence[Sequence[str]]) -> Entry:
    """The entry of ``benchmarks.json``; ``axes`` are the problems and the probes."""
    return {
        "code": "",
        "name": name(suite, quantity),
        "param_names": AXES,
        "params": [list(map(repr, axis)) for axis in axes],
        "pretty_name": f"{suite}: {quantity.heading}",
        "timeout": 60.0,
        "type": "track",
        "unit": views.meaning(quantity.metric).unit,
        "version": version(quantity),
    }


def benchmarks(rows: pd.DataFrame, old: Mapping[str, Any]) -> Entry:
    """``benchmarks.json`` with the followed quantities of ``rows``; the parameters of ``old`` entries are kept."""
    entries: Entry = {**old, "version": BENCHMARKS_API}
    for suite, part in by_suite(rows).items():
        for quantity in _followed(part):
            old_axes = entries.get(name(suite, quantity), {}).get("params", [[], []])
            fresh = benchmark(suite, quantity, _axes(part))
            axes = [list(dict.fromkeys([*a, *b])) for a, b in zip(old_axes, fresh["params"], strict=True)]
            entries[fresh["name"]] = entries.get(fresh["name"], {}) | fresh | {"params": axes}
    return entries


def machine(record: Mapping[str, Any], old: Mapping[str, Any]) -> Entry:
    """``machine.json`` of the machine of a run. ``old``: what asv says of it, which is kept as it is.

    asv makes a line for each set of facts, so that a fact which asv leaves out must not be added. Empty means that asv
    does not know the machine.

    Raises:
        ValueError: the machine's name cannot be the name of a folder.
    """
    environment = record.get("environment", {})
    name = str(old.get("machine") or environment.get("host") or "unknown")
    refuse_path(name, "a machine")
    if old:
        return {**old, "machine": name, "version": MACHINE_API}
    facts = {"machine": name, "cpu": environment.get("cpu", ""), "arch": environment.get("arch", "")}
    facts |= {"num_cpu": str(environment.get("cpu_count", "")), "ram": str(environment.get("memory", ""))}
    facts |= {"os": environment.get("os") or environment.get("platform", "")}
    return {**dict.fromkeys(MACHINE, ""), **facts, "version": MACHINE_API}


def file_name(content: Mapping[str, Any]) -> str:
    """The name of a result file in the folder of its machine."""
    return f"{content['commit_hash'][:8]}-{content['env_name']}.json"


def joined(old: Mapping[str, Any], new: Entry) -> Entry:
    """Two result files of one commit joined; the values of ``new`` replace those of ``old``."""
    if not old:
        return new
    columns = list(dict.fromkeys([*new["result_columns"], *old["result_columns"]]))
    sides = [_by_name(side) for side in (old, new)]
    entries = {name: _joined(*(side.get(name, {}) for side in sides)) for name in {**sides[0], **sides[1]}}
    rows = {name: [entry.get(column) for column in columns] for name, entry in entries.items()}
    return {**new, "date": min(old["date"], new["date"]), "result_columns": columns, "results": rows}


def _by_name(content: Mapping[str, Any]) -> dict[str, Entry]:
    """The results of a file, each by its columns; asv leaves out empty columns at the end."""
    columns = content["result_columns"]
    return {name: dict(zip(columns, entry, strict=False)) for name, entry in content["results"].items()}


def _joined(old: Entry, new: Entry) -> Entry:
    """One benchmark of two files: the values of ``new``, and those of ``old`` for parameters that ``new`` lacks."""
    if not old or not new or old.get("version") != new.get("version"):
        return new or old
    values = {**_values(old), **_values(new)}
    axes = [list(dict.fromkeys([*a, *b])) for a, b in zip(old["params"], new["params"], strict=True)]
    cells = [values.get(place, float("nan")) for place in itertools.product(*axes)]
    return {**new, "result": cells, "params": axes}


def _values(entry: Entry) -> dict[tuple[str, ...], float | None]:
    """Values by their parameters, without the cells that were not run."""
    cells = zip(itertools.product(*entry["params"]), entry["result"] or [], strict=False)
    return {place: value for place, value in cells if value is None or value == value}


def has_commit(record: Mapping[str, Any]) -> bool:
    """Whether a run was made in a checkout with a commit, by which asv orders results."""
    return bool(re.fullmatch(r"[0-9a-f]{7,64}", str(record.get("environment", {}).get("git_sha"))))


def python_version(record: Mapping[str, Any]) -> str:
    """The Python of a run as asv names it: ``3.11``."""
    return ".".join(str(record.get("environment", {}).get("python_version", "")).split(".")[:2])


def results(rows: pd.DataFrame, record: Mapping[str, Any], machine: Mapping[str, Any], python: str = "") -> Entry:
    """The result file of a run; ``machine``: the entry of its machine.

    ``python``: the name of its Python in asv's own results, which is a path in an environment that exists. Empty means
    the version.

    Raises:
        ValueError: the run was made outside git, and asv orders results by commit.
    """
    environment = record.get("environment", {})
    if not has_commit(record):
        raise ValueError(
            f"run {record.get('run_id')} knows no commit, by which asv orders results: "
            "run in a git checkout with a commit"
        )
    python = python or python_version(record)
    started = int(rows["started_at"].min().timestamp() * 1000)
    results = {}
    for suite, part in by_suite(rows).items():
        axes = _axes(part)
        for quantity in _followed(part):
            medians = values(part, quantity)
            cells = [medians.get((a, b), float("nan")) for a, b in itertools.product(*axes)]
            params = benchmark(suite, quantity, axes)["params"]
            results[name(suite, quantity)] = [cells, params, version(quantity), started]
    return {
        "commit_hash": environment["git_sha"],
        "date": started,
        "env_name": ENVIRONMENT,
        "env_vars": {},
        "params": {key: machine[key] for key in MACHINE if key in machine} | {"python": python},
        "python": python,
        "requirements": {},
        "result_columns": ["result", "params", "version", "started_at"],
        "results": results,
        "durations": {},
        "version": RESULTS_API,
    }


def _followed(rows: pd.DataFrame) -> Iterable[Quantity]:
    measured = set(zip(rows["metric"], rows["scope"], strict=True))
    return [quantity for quantity in TRACKED if tuple(quantity) in measured]


def _axes(rows: pd.DataFrame) -> list[list[str]]:
    return [list(dict.fromkeys(labels(rows, kind))) for kind in AXES]
