"""The verb ``copy``: write a shipped suite out, to be changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from curvbench.cli.verbs import BadInput, users_fault


@click.command()
@click.argument("suite")
@click.argument("folder", type=click.Path(path_type=Path), default=Path())
def copy(suite: str, folder: Path) -> None:
    """Write the shipped SUITE into FOLDER (here, if none is given), where it takes the place of the shipped one.

    SUITE is a name that `curvbench list --suites` shows. A file that is there already is left as it is.
    """
    from curvbench import registry

    with users_fault():
        source = registry.packaged_suite(suite)
        beside = source.with_suffix("")  # the files that a suite reads lie in a folder of its name
        files = [source, *(sorted(beside.glob("*.py")) if beside.is_dir() else [])]
        targets = {file: folder / file.relative_to(source.parent) for file in files}
        if there := [target for target in targets.values() if target.exists()]:
            raise BadInput(f"{str(there[0])!r} is there already: move it, or name another folder")
        for file, target in targets.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    target = targets[source]
    click.echo(f"{target}: now `curvbench run {target}`, and `curvbench validate {target}` after a change")
