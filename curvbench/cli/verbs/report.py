"""The verb ``report``: a run as a page or as tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from curvbench.cli.verbs import BadInput, folder, option, users_fault, written

if TYPE_CHECKING:
    from curvbench.report.run import Run

FORMS = ("html", "markdown", "latex", "svg", "pdf")


@click.command()
@click.argument("run")
@option("--format", "form", type=click.Choice(FORMS), default="html", help="Format of the report.")
@option("--output", type=click.Path(path_type=Path), metavar="FILE", help="Where to write; of figures a folder.")
@folder("--results", default=Path("results"), help="Folder in which a run id or `latest` is looked up.")
def report(run: str, form: str, output: Path | None, results: Path) -> None:
    """Write RUN as one HTML page that needs no network, as tables in Markdown or LaTeX, or its figures as SVG or PDF.

    RUN is a run's folder, a folder of results (the latest run of each suite), a run id, or `latest`.
    """
    from curvbench import report as reports
    from curvbench import store

    with users_fault():
        runs = reports.read(store.resolve(run, results))
        if form in ("svg", "pdf"):
            _draw(runs, form, output)
        else:
            written(output, reports.write(runs, form), "report")


def _draw(runs: list[Run], form: str, folder: Path | None) -> None:
    from curvbench.report import images

    if folder is None:
        raise BadInput(f"--format {form} writes a file per figure: name their folder with --output")
    click.echo(f"figures: {len(images.write(runs, form, folder))} in {folder}")
