"""The verb ``report``: a run as a page or as tables."""

from __future__ import annotations

from pathlib import Path

import click

from curvbench.cli.verbs import folder, option, users_fault, written

FORMS = ("html", "markdown", "latex")


@click.command()
@click.argument("run")
@option("--format", "form", type=click.Choice(FORMS), default="html", help="Format of the report.")
@option("--output", type=click.Path(path_type=Path), metavar="FILE", help="Where to write; without it, the terminal.")
@folder("--results", default=Path("results"), help="Folder in which a run id or `latest` is looked up.")
def report(run: str, form: str, output: Path | None, results: Path) -> None:
    """Write RUN as one HTML page that needs no network, or as tables in Markdown or LaTeX.

    RUN is a run's folder, a folder of results (the latest run of each suite), a run id, or `latest`.
    """
    from curvbench import report as reports
    from curvbench import store

    with users_fault():
        text = reports.write(reports.read(store.resolve(run, results)), form)
        written(output, text, "report")
