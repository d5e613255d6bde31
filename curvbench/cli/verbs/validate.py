"""The verb ``validate``: whether a suite can be run, without running it."""

from __future__ import annotations

from pathlib import Path

import click

from curvbench.cli.verbs import users_fault


@click.command()
@click.argument("suite", type=click.Path(path_type=Path))
def validate(suite: Path) -> None:
    """Check every preset of SUITE, a Python file with or without .py, without running anything.

    Exit codes: 0 it can be run, 2 it cannot.
    """
    from curvbench import registry
    from curvbench.planning import plan, selection

    with users_fault():
        name, content = registry.load_suite(suite)
        for key in content.presets:
            cells = selection.select(name, selection.preset(content, key))
            plan.refuse_unusable(key, cells)
            click.echo(f"{key}: {selection.counts(cells)}")
    click.echo(f"{name} can be run: {content.title}")
