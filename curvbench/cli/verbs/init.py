"""The verb ``init``: write a suite with a probe, to begin from."""

from __future__ import annotations

from pathlib import Path

import click

from curvbench.cli.verbs import BadInput, users_fault

TEMPLATE = Path(__file__).parents[1] / "templates" / "my_suite.py"


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path())
def init(folder: Path) -> None:
    """Write my_suite.py into FOLDER (here, if none is given): a probe and a suite that run, to be changed."""
    target = folder / TEMPLATE.name
    with users_fault():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with open(target, "x") as file:
                file.write(TEMPLATE.read_text())
        except FileExistsError:
            raise BadInput(f"{str(target)!r} is there already: move it, or name another folder") from None
    click.echo(f"{target}: now `curvbench run {target}`, and `curvbench validate {target}` after a change")
