"""The verb ``claims``: compare the papers' claims with measurements."""

from __future__ import annotations

import warnings
from pathlib import Path

import click

from curvbench.cli.exits import OK, REGRESSION
from curvbench.cli.verbs import BadInput, folder, left_out, option, users_fault

FORMS = ("table", "markdown", "json")


@click.command()
@click.argument("run")
@option("--format", "form", type=click.Choice(FORMS), default="table", help="Form of the answer.")
@option("--strict", is_flag=True, help="Exit code 1 if a claim is refuted in the paper's own setting.")
@folder("--results", default=Path("results"), help="Folder in which a run id or `latest` is looked up.")
def claims(run: str, form: str, strict: bool, results: Path) -> int:
    """Compare the claims of the papers with the measurements of RUN.

    RUN is a run's folder, a folder of results (of each suite the latest run in the paper's own setting, and the latest
    of its surrogate), a run id, or `latest`. The experiments are the suites of suites/papers. A claim holds, holds in
    direction only, is refuted, is undecided, or was not measured; the answer ends with the rules. Surrogates
    have a column of their own and never count as the original, nor as its refutation. The exit code is 0; with --strict
    it is 1 if a claim is refuted, and no other verdict changes it. It is 2 if a part of the results cannot be read.
    """
    from rich.console import Console

    from curvbench import store
    from curvbench.analysis.claims import efforts, judge, newest
    from curvbench.analysis.papers import experiments
    from curvbench.analysis.verdicts import Verdict
    from curvbench.report import claims as report

    with users_fault():
        published = experiments()
        with left_out() as lost:
            below = store.runs_below(run) if Path(run).is_dir() else []
            frame = newest([store.load(path) for path in below or store.resolve(run, results)])
        if not set(frame["suite"]) & {experiment.id for experiment in published}:
            warnings.warn(f"{run}: no experiment of a paper was run here; they are in suites/papers", stacklevel=2)
        judged = judge(frame, published)
        spent = {experiment.id: efforts(frame, experiment) for experiment in published}
    if form == "table":
        report.show(judged, spent, Console())
    else:
        click.echo(report.markdown(judged, spent) if form == "markdown" else report.as_json(judged, spent))
    if lost:
        raise BadInput(f"the verdicts stand on a part of the results, because not all can be read: {lost[0]}")
    refuted = [entry for entry in judged if entry.original.verdict is Verdict.REFUTED]
    return REGRESSION if strict and refuted else OK
