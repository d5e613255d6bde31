"""The verb ``init``: write files to begin from."""

from __future__ import annotations

from pathlib import Path

import click

from curvbench.cli.verbs import BadInput, option, users_fault

TEMPLATES = Path(__file__).parents[1] / "templates"
SUITE = ("my_suite.py",)
PROBLEMS = {"module": ("my_module.py",), "hf": ("my_language_model.py",), "data": ("my_table.py", "my_table.csv")}


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path())
@option("--problem", type=click.Choice([*PROBLEMS]), help="A model of one's own, one of transformers, or a table.")
def init(folder: Path, problem: str | None) -> None:
    """Write my_suite.py into FOLDER (here, if none is given): a probe and a suite that run, to be changed.

    With --problem write a file for `curvbench measure`: a plain module, a model of transformers, or data in a CSV or an
    npz.
    """
    names = PROBLEMS[problem] if problem else SUITE
    with users_fault():
        folder.mkdir(parents=True, exist_ok=True)
        if there := [name for name in names if (folder / name).exists()]:
            raise BadInput(f"{str(folder / there[0])!r} is there already: move it, or name another folder")
        for name in names:
            (folder / name).write_bytes((TEMPLATES / name).read_bytes())
    target = folder / names[0]
    if problem:
        click.echo(f"{target}: now `curvbench measure {target}:{target.stem}`")
    else:
        click.echo(f"{target}: now `curvbench run {target}`, and `curvbench validate {target}` after a change")
