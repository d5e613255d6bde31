"""The pages under docs/, printed for their files: ``methods`` from the code, the others from runs; and the ``site``.

``make_docs.py site DEST`` builds the site from what the repository holds (extra ``docs``).
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args

import pandas as pd
import torch
from torch import Tensor, nn

from curvbench import registry, store
from curvbench.analysis import coverage as analysis
from curvbench.analysis.claims import efforts, judge, newest
from curvbench.analysis.frames import labels, of_problem, problems
from curvbench.analysis.papers import Experiment, experiments
from curvbench.analysis.views import Quantity
from curvbench.instance import Instance
from curvbench.problems.layers import Layers, Network
from curvbench.report import claims as report
from curvbench.spec import TRIALS, Status
from curvbench.words import one_line
from docsite.build import build
from docsite.markdown import code, prose, table
from docsite.methods import methods

ROOT = Path(__file__).parent.parent
SITE = ROOT / "build" / "site"
TODAY = {
    "gap closed": Quantity("direction.gap_closed", "network"),
    "quality by rates": Quantity("direction.quality_rates", "network"),
    "scaled error": Quantity("error.scale_optimal", "layer blocks"),
    "divergence": Quantity("error.kl", "layer blocks"),
    "FLOPs": Quantity("flops.ratio", "step"),
    "memory": Quantity("memory.ratio", "step"),
}
FORMS = ("{:,.0f}", "{:.1%}", "{:.1%}")  # of ``analysis.SHARES``
COVERAGE_HEAD = """\
# Coverage

Every probe on every kind of use of a parameter, by a run of `curvbench run suites/coverage` in float64; this page is
printed by `python scripts/make_docs.py coverage RUN > docs/coverage.md`, RUN being that run's folder.

**exact**: the cell succeeded, so that the operator was compared with the exact Fisher of all parameters in closed
form or through all of its score columns: nothing was sampled. **unsupported**: the probe says why it does not apply.
**failed**: anything else.
"""
NETWORKS_HEAD = """\
## Networks

The networks of the problem `layers`, at initialisation: one use of the kind, and Linear layers around it. The last two
columns say what share of the parameters, and of the trace of the exact Fisher over all of them, is covered. In
`low-rank` and `weight-norm` a matrix is computed from parameters, and their scores come through its derivative. In
`unrecognised` no rule knows the operation, so that plain autograd makes the columns of its parameter, exact and dearer.
In `sequence` every token is a loss term.
"""
REFUSED_HEAD = """\
## Refused altogether

A parameter that cannot be covered is left out with a reason, and not the model (`Instance.left_out`). What has no exact
Fisher at all is refused before anything is measured:
"""


def coverage(frame: pd.DataFrame) -> str:
    """The page of coverage from the rows of a run of ``suites/coverage``; raises ValueError for another run."""
    problem_of = {label: registry.parse_problem(label) for label in problems(frame)}
    network_of = {label: problem.network for label, problem in problem_of.items() if isinstance(problem, Layers)}
    if network_of.keys() != problem_of.keys():
        others = ", ".join(problem_of.keys() - network_of.keys())
        raise ValueError(f"expected a run of suites/coverage, got one on {others}")
    networks = sorted(network_of.values(), key=get_args(Network).index)
    matrix = analysis.matrix(frame).rename(columns=network_of)[networks].sort_index()
    shares = analysis.shares(frame).rename(index=network_of).loc[networks]
    outcomes = [[code(str(probe)), *(cell or "" for cell in row)] for probe, *row in matrix.itertuples()]
    sizes = [
        [
            code(str(network)),
            *("" if math.isnan(number) else form.format(number) for form, number in zip(FORMS, row, strict=True)),
        ]
        for network, *row in shares.itertuples()
    ]
    reasons = [f"- {prose(reason)}\n" for reason in analysis.reasons(frame)]
    parts = [COVERAGE_HEAD, table(["probe", *networks], outcomes), *filter(None, ["".join(reasons)])]
    parts += [NETWORKS_HEAD, table(["network", "P", "parameters covered", "trace covered"], sizes)]
    parts += [REFUSED_HEAD, refusals()]
    return "\n".join(parts)


CLAIMS_HEAD = """\
# Claims

The papers' claims beside what was measured of them: surrogates on digits, then reduced runs on MNIST, CIFAR-10 and
Multi30k, each a folder of results with a part of its own. This page is printed by

```sh
curvbench run suites/papers --jobs 2 --results digits
for suite in cwngd_t1_mnist fngd_t2_time_to_target fngd_f8_multi30k; do
    curvbench run suites/papers/$suite --preset small --jobs 2 --results reduced --data DIR
done
python scripts/make_docs.py claims digits reduced > docs/claims.md
```

What a suite does otherwise than its paper stands below its heading; what a verdict takes, at the end of the page. The
first table of a part is what was run. Trials are the trainings that looked for rates and dampings; a cell without a
result diverged, failed or missed its data. Seconds are those of the clock while training, of all cells, evaluation
apart: cells that ran side by side, and whatever else the machine did, are in them.
"""
RAN = ("suite", "problem", "cells", "without a result", "seconds", "trials", "without a result", "seconds")


def today(frame: pd.DataFrame) -> str:
    """The tables of docs/today.md from a run of suites/today: the methods of every problem, the best step first."""
    return "\n".join(_of_today(frame, problem) for problem in problems(frame))


def _of_today(frame: pd.DataFrame, problem: str) -> str:
    rows = of_problem(frame, problem)
    columns = {}
    for name, (metric, scope) in TODAY.items():
        chosen = rows[(rows["metric"] == metric) & (rows["scope"] == scope)]
        columns[name] = chosen.groupby(labels(chosen, "probe"))["value"].median()
    found = pd.DataFrame(columns).sort_values("gap closed", ascending=False, kind="stable")
    cells = ([f"`{probe}`", *("" if math.isnan(v) else f"{v:.3g}" for v in row)] for probe, *row in found.itertuples())
    head, _ = table(["method", *columns], []).splitlines()
    lines = [head, "|---|" + "--:|" * len(columns), *table([], cells).splitlines()[2:]]
    return f"## `{problem}`\n\n{chr(10).join(lines)}\n"


def claims(results: Mapping[str, pd.DataFrame]) -> str:
    """The page of claims from the rows of folders of results, by name; raises ValueError for one without a suite."""
    parts, missing = [CLAIMS_HEAD], {experiment.id: experiment for experiment in experiments()}
    for name, frame in results.items():
        run = [experiment for experiment in experiments() if (frame["suite"] == experiment.id).any()]
        if not run:
            raise ValueError(f"{name}: no suite of suites/papers was run here")
        judged = judge(frame, run)
        spent = {experiment.id: efforts(frame, experiment) for experiment in run}
        versions = {
            key: ", ".join(map(str, frame[key].unique())) for key in ("device_name", "torch_version", "threads")
        }
        parts += [
            f"## {name}\n",
            "{device_name}, torch {torch_version}, threads per cell: {threads}.\n".format(**versions),
        ]
        parts += [
            table(RAN, _ran(frame, run)),
            report.counts(judged) + ".\n",
            *(f"{text}\n" for text in report.sections(judged, spent)),
        ]
        missing = {key: experiment for key, experiment in missing.items() if experiment not in run}
    why = [f"- {key}: {'; '.join({claim.why or 'not run' for claim in e.claims})}\n" for key, e in missing.items()]
    return (
        "\n".join([*parts, *(["## Not measured\n", "".join(why)] if why else []), "## Legend\n", report.LEGEND]) + "\n"
    )


def _ran(frame: pd.DataFrame, run: Iterable[Experiment]) -> Iterator[list[str]]:
    """Rows of the table of what was run."""
    for experiment in run:
        trained, tried = (frame[frame["suite"] == experiment.id + end] for end in ("", TRIALS))
        yield [experiment.id, ", ".join(map(code, problems(trained))), *_spent(trained), *_spent(tried)]


def _spent(frame: pd.DataFrame) -> list[str]:
    """Cells, those without a result, and seconds of training; empty where there is none."""
    lost = frame.loc[frame["metric"].fillna("") == "", "cell_id"].nunique()
    seconds = frame[frame["metric"] == "train.seconds"].groupby("cell_id")["value"].max()
    numbers = [frame["cell_id"].nunique(), lost, round(seconds.sum())]
    return [f"{number:,}" if number else "" for number in numbers]


def refusals() -> str:
    """The table of what an instance refuses, with the reasons that it gives."""
    rows = []
    linear, frozen = nn.Linear(6, 3), nn.Linear(6, 3).requires_grad_(False)
    for name, model in (
        ("BatchNorm in training mode", nn.Sequential(linear, nn.BatchNorm1d(3))),
        ("dropout that is always on", Dropping(linear)),
        ("a module without a shape", nn.Sequential(nn.LazyLinear(3))),
        ("a model whose parameters are all frozen", frozen),
        ("outputs that hold NaN", nn.Sequential(linear, Logarithm())),
    ):
        try:
            _instance(model, torch.randn(4, 6))
        except ValueError as reason:
            rows.append([name, prose(str(reason))])
        else:
            raise AssertionError(f"{name} is not refused any more")
    return table(["model", "reason"], rows)


class Dropping(nn.Module):
    """A module behind dropout that no mode switches off."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) -> what the module gives."""
        outputs: Tensor = self.module(nn.functional.dropout(x, training=True))
        return outputs


class Logarithm(nn.Module):
    """Logarithms, of negative numbers too."""

    def forward(self, x: Tensor) -> Tensor:
        """Entry by entry."""
        return x.log()


FAULTS_HEAD = """\
# Faults

How a run meets faults. The same command goes on after each of them.

`scripts/soak` plants these faults from outside while small cells run, and counts what was lost, doubled or wrong, which
processes were left and which files. All five must be 0.

| fault | outcome |
|---|---|
| the process of the run is killed, with `kill -9` too | its cells end with it; the next run goes on |
| a cell, or the keeper above it, is killed | a row, `killed` or `crashed`, with the signal |
| the fork server is killed | it is started again; the cells that it ran run again, one at a time |
| the fork server cannot start, because memory or processes are limited | one line with its last words, exit code 2 |
| the guard is killed | nothing: the keepers end what is left |
| the disk of the results is full or read-only | one line, exit code 2 |
| the disk is too small for what a cell writes, or full for a while | a row `interrupted`, which the next run replaces |
| limits of open files, memory or file sizes (`ulimit`) | rows, or one line |
| `HOME` and `TMPDIR` cannot be written | one line if nothing else can be, else nothing |
| memory limits of control groups, version 1 or 2, nested | the least of them is what cells share |
| two runs in one folder | both end; what one has measured, the other takes over |
| results are cut, emptied or altered between two runs | they are named, set aside and measured again |

Every cell runs below a keeper, a small process that adopts whatever the cell starts, also what detaches itself, and
ends it with the cell. This is so on Linux. **On macOS no system call adopts such processes: a process that a cell
detaches from itself outlives the run.** A cell can still do what its user can: it may remove results, which are then
measured again once, or stop a process of another run. A guard, a third process, ends keepers and cells if the process
of the run is killed.

The probes of `tests/hostile.py` misbehave from inside, and this is how they ended beside honest ones. The table is
printed by

```sh
SLURM_MEM_PER_NODE=3000 curvbench run tests/hostile.py --jobs 2 --timeout 20s
python scripts/make_docs.py faults results/hostile > docs/faults.md
```

"""
LONGEST = 90  # characters of a reason in the table of faults


def faults(frame: pd.DataFrame) -> str:
    """The page of faults from the rows of a run of ``tests/hostile.py``; raises ValueError for another run."""
    ends = registry.load_file(ROOT / "tests" / "hostile.py").ENDS
    rows = []
    for name, end in ends.items():
        mine = frame[frame["probe_args"] == ("" if name == "honest" else f"does={name}")]
        if mine.empty:
            raise ValueError(f"expected a run of tests/hostile.py, got one without its probe {name}")
        status = next(iter(store.statuses(mine).values()))
        reason = "" if status is Status.OK else mine[mine["status"] == status]["reason"].iloc[0]
        shown = re.sub(r"/\S*/|logs/\w+|curvbench_file_\w+", "...", one_line(reason, LONGEST))
        rows.append([code(name), end.does, str(status), prose(shown)])
    return FAULTS_HEAD + table(["probe", "it", "status", "reason"], rows)


def _instance(model: nn.Module, inputs: Tensor) -> Instance:
    return Instance(model, inputs, torch.arange(len(inputs)) % 3)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the page that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    pages = parser.add_subparsers(dest="page", required=True)
    pages.add_parser("methods", help="from the code")
    pages.add_parser("coverage", help="from a run of suites/coverage").add_argument("run", type=Path)
    pages.add_parser("today", help="tables, from a run of suites/today").add_argument("run", type=Path)
    folders = pages.add_parser("claims", help="from folders of results of suites/papers")
    folders.add_argument("results", type=Path, nargs="+")
    pages.add_parser("faults", help="from a run of tests/hostile.py").add_argument("run", type=Path)
    pages.add_parser("site", help="all pages, in HTML").add_argument("dest", type=Path, nargs="?", default=SITE)
    given = parser.parse_args(arguments)
    try:
        if given.page == "site":
            build(given.dest)
        else:
            print(_page(given), end="")
    except ValueError as error:
        parser.error(str(error))


def _page(given: argparse.Namespace) -> str:
    if given.page == "methods":
        return methods([registry.describe(*item) for item in registry.probes().items()])
    if given.page == "coverage":
        return coverage(store.load(given.run))
    if given.page == "today":
        return today(store.load(given.run))
    if given.page == "faults":
        return faults(store.load(given.run))
    return claims({folder.name: newest([*map(store.load, store.runs_below(folder))]) for folder in given.results})


if __name__ == "__main__":
    main()
