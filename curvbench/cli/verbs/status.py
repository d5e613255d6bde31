"""The verb ``status``: which cells of a run are there, and which would be run again."""

from __future__ import annotations

from pathlib import Path

import click

from curvbench.cli.verbs import folder, users_fault


@click.command()
@click.argument("run")
@folder("--results", default=Path("results"), help="Folder in which a run id or `latest` is looked up.")
def status(run: str, results: Path) -> None:
    """Say why each cell of RUN will or will not be run again.

    RUN is a run's folder, a folder of results (the latest run of each suite), a run id, or `latest`.
    """
    from curvbench import registry, store
    from curvbench.planning import fate, plan

    with users_fault():
        for place in store.resolve(run, results):
            record = store.read_run(place)
            suite = registry.find_suite(record.get("suite_file") or "?")
            changed = plan.Changes(suite.resolve().parent).of_cells(place) if suite else {}
            cells = list(fate.fates(record, store.cell_statuses(place), fate.current(record), changed))
            for cell in cells:
                click.echo(f"{'runs' if cell.will_run else 'stays':5} {cell.id} {cell.label}: {cell.why}")
            count = sum(cell.will_run for cell in cells)
            click.echo(f"{count} of {len(cells)} cells would be run: {record.get('command', 'its command is unknown')}")
            if suite is None:
                missing = record.get("suite_file", "its suite")
                click.echo(f"{missing} is not here: changes in the libraries of its cells cannot be found")
            click.echo(f"{place}")
