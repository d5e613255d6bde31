"""The pages under docs/, printed for their files: ``methods`` from the code, the others from runs; and the ``site``.

``make_docs.py site DEST`` builds the site from what the repository holds (extra ``docs``).
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import pandas as pd
import torch
from torch import Tensor, nn

from curvbench import registry, store
from curvbench.analysis import coverage as analysis
from curvbench.analysis.claims import judge, newest
from curvbench.analysis.frames import labels, of_problem, problems
from curvbench.analysis.papers import Experiment, experiments
from curvbench.analysis.views import Quantity
from curvbench.instance import Instance
from curvbench.planning.unsettled import unsettled
from curvbench.problems.layers import Layers, Network
from curvbench.registry import load_suite
from curvbench.report import papers
from curvbench.spec import Status
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

Four papers, claim by claim: what was measured in the paper's own setting, and the verdict. The rows are in
[data/reference](../data/reference), suite by suite. `curvbench claims` prints the same verdicts, and
`curvbench claims --plan` says what it would take to measure the rest. This page is printed by
`python scripts/make_docs.py claims data/reference > docs/claims.md`.
"""


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


def claims(results: Path) -> str:
    """The page of claims from a folder of results; raises ValueError if it has no suite of a paper."""
    runs = store.runs_below(results)
    frame = newest([store.load(run) for run in runs])
    published = experiments()
    judged = judge(frame, published)
    suites = {e.id: load_suite(ROOT / "suites" / "papers" / e.id)[1] for e in published if _has_suite(e)}
    commands = {plan.suite: plan.command for plan in unsettled(judged, suites)}
    commands |= {run.parent.name: store.read_run(run)["command"] for run in runs}
    return f"{CLAIMS_HEAD}\n{papers.page(judged, frame, papers.findings(), commands)}"


def _has_suite(experiment: Experiment) -> bool:
    return (ROOT / "suites" / "papers" / f"{experiment.id}.py").is_file()


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
    pages.add_parser("claims", help="from a folder of results of suites/papers").add_argument("results", type=Path)
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
    return claims(given.results)


if __name__ == "__main__":
    main()
