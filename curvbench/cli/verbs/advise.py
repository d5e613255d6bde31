"""The verb ``advise``: the method that serves best within a budget, from results that exist."""

from __future__ import annotations

from pathlib import Path

import click

from curvbench.cli.verbs import folder, option, users_fault

FORMS = ("table", "markdown", "json")


@click.command()
@click.argument("runs", nargs=-1, metavar="[RESULTS]...")
@option("--flops", type=float, default=2.0, metavar="NUMBER", help="What a step may cost, in gradients.")
@option("--memory", type=float, default=3.0, metavar="NUMBER", help="What a step may take, in times SGD's peak memory.")
@option("--refresh", type=int, default=100, metavar="STEPS", help="Steps from one refresh of statistics to the next.")
@option("--problem", metavar="LABEL", help="Only this problem, by label or name.")
@option("--format", "form", type=click.Choice(FORMS), default="table", help="Form of the answer.")
@folder(
    "--results", default=Path("results"), help="Folder that is read without RESULTS, and in which ids are looked up."
)
def advise(
    runs: tuple[str, ...], flops: float, memory: float, refresh: int, problem: str | None, form: str, results: Path
) -> None:
    """Say which method serves best within a budget, from results that exist.

    RESULTS are folders of results (the latest run of each suite), of runs, Parquet files, run ids or `latest`. For one
    problem this is its verdict; over several it is ranks, and how often each method is best. The numbers behind the
    sentences follow. Exit codes: 0 there is an answer, even that not enough was measured, 2 bad input.
    """
    import pandas as pd

    from curvbench.analysis.advice import advise as advice
    from curvbench.cli.locate import read

    with users_fault():
        rows = pd.concat([read(run, results) for run in runs or (str(results),)], ignore_index=True)
        found = advice(rows, flops=flops, memory=memory, refresh=refresh, problem=problem)
    click.echo(found.text(form), nl=False)
