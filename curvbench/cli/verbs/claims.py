"""The verb ``claims``: compare the papers' claims with measurements."""

from __future__ import annotations

import warnings
from pathlib import Path

import click

from curvbench.cli.exits import OK, REGRESSION
from curvbench.cli.verbs import BadInput, folder, left_out, option, users_fault

FORMS = ("table", "markdown", "json")


@click.command()
@click.argument("run", required=False)
@option("--format", "form", type=click.Choice(FORMS), default="table", help="Form of the answer.")
@option("--strict", is_flag=True, help="Exit code 1 if a claim is refuted in the paper's own setting.")
@option("--plan", is_flag=True, help="What it would take to measure the claims that are not measured, cheapest first.")
@folder("--results", default=Path("results"), help="Folder in which a run id or `latest` is looked up.")
def claims(run: str | None, form: str, strict: bool, plan: bool, results: Path) -> int:
    """Compare the claims of the papers with the measurements of RUN.

    RUN is a run's folder, a folder of results (of each suite the latest run in the paper's own setting, and the latest
    of its surrogate), a run id, or `latest`; without RUN the rows that curvbench ships are compared. The experiments
    are the suites of suites/papers. A claim holds, holds in direction only, is refuted, is undecided, or was not
    measured; the answer ends with the rules. Surrogates have a column of their own and never count as the original, nor
    as its refutation. The exit code is 0; with --strict it is 1 if a claim is refuted, and no other verdict changes it.
    It is 2 if a part of the results cannot be read.
    """
    from rich.console import Console

    from curvbench import shipped, store
    from curvbench.analysis.claims import efforts, judge, newest
    from curvbench.analysis.papers import experiments
    from curvbench.analysis.verdicts import Verdict
    from curvbench.planning.unsettled import unsettled
    from curvbench.registry import load_suite
    from curvbench.registry.suites import packaged_suites
    from curvbench.report import claims as report

    run = str(shipped.DATA / "reference") if run is None else run
    with users_fault():
        published = experiments()
        with left_out() as lost:
            below = store.runs_below(run) if Path(run).is_dir() else []
            frame = newest([store.load(path) for path in below or store.resolve(run, results)])
        if not set(frame["suite"]) & {experiment.id for experiment in published}:
            warnings.warn(f"{run}: no experiment of a paper was run here; they are in suites/papers", stacklevel=2)
        judged = judge(frame, published)
        spent = {experiment.id: efforts(frame, experiment) for experiment in published}
    if plan:
        known = {name: file for name, file in packaged_suites().items() if name.startswith("papers/")}
        suites = {name.removeprefix("papers/"): load_suite(file)[1] for name, file in known.items()}
        click.echo(report.plan(unsettled(judged, suites)), nl=False)
    elif form == "table":
        report.show(judged, spent, Console())
    else:
        click.echo(report.markdown(judged, spent) if form == "markdown" else report.as_json(judged, spent))
    if lost:
        raise BadInput(f"the verdicts stand on a part of the results, because not all can be read: {lost[0]}")
    refuted = [entry for entry in judged if entry.original.verdict is Verdict.REFUTED]
    return REGRESSION if strict and refuted else OK
