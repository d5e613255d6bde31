"""The verb ``data``: a data set from its authors."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from curvbench.cli.verbs import DATA_FOLDER, BadInput, folder, users_fault


@click.command()
@click.argument("name")
@folder("--data", "root", **DATA_FOLDER)
def data(name: str, root: Path | None) -> None:
    """Download the data set NAME from its authors."""
    if root is None:
        raise BadInput("say where the data sets are to be: --data DIR, or set CURVBENCH_DATA")
    from curvbench.data.download import download

    with users_fault():
        place = download(name, root, _show_transfer if sys.stderr.isatty() else None)
    click.echo(f"{name} is in {place}")


def _show_transfer(file: str, done: int, total: int) -> None:
    of = f" of {total / 1e6:.1f}" if total > 0 else ""
    click.echo(f"\r{file}: {done / 1e6:.1f}{of} MB", nl=done == total, err=True)
