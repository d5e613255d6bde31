"""The verb ``runs``: a list of runs, and the notes on one of them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from curvbench.cli.verbs import BadInput, folder, option, users_fault

if TYPE_CHECKING:
    from curvbench.analysis.runs import Progress


@click.command()
@click.argument("run", required=False)
@option("--label", help="Call RUN this; an empty text removes it.")
@option("--note", help="Note this of RUN; an empty text removes it.")
@option("--tags", metavar="A,B", help="Tag RUN with these instead of its tags; an empty text removes them.")
@option("--archive/--unarchive", "archived", default=None, help="Hide RUN from lists and choosers, or show it again.")
@option("--archived", "with_archived", is_flag=True, help="List archived runs too.")
@folder("--results", default=Path("results"), help="Folder of the runs.")
def runs(run: str | None, with_archived: bool, results: Path, **asked: Any) -> None:
    """List the runs of a folder of results, or note something of RUN.

    RUN is a run's folder, a run id, or `latest`. Notes stand in `notes.json` in the run's folder, which keeps its name,
    its results and its links. The shipped sample takes no notes.
    """
    from curvbench import store
    from curvbench.analysis import tables
    from curvbench.analysis.runs import row

    changes = {name: value for name, value in asked.items() if value is not None}
    if "tags" in changes:
        changes["tags"] = store.tags(changes["tags"])
    if changes and run is None:
        raise BadInput("name the run that these notes are on: curvbench runs RUN --label ...")
    with users_fault():
        places = [_one(run, results)] if run is not None else store.runs_below(results)
        for place in places if changes else ():
            store.change_notes(place, **changes)
        listed = [(place, store.read_notes(place)) for place in places]
        shown = [(place, notes) for place, notes in listed if with_archived or run is not None or not notes.archived]
        rows = [row(place.name, store.read_run(place), notes, _state(place)) for place, notes in shown]
        if rows:
            click.echo(tables.text(_filled(rows), "table"), nl=False)
    if hidden := len(listed) - len(shown):
        click.echo(f"{hidden} archived, not listed: --archived lists them")
    elif not rows:
        click.echo(f"no run in {str(results)!r}")


def _one(run: str, results: Path) -> Path:
    from curvbench import store

    places = store.resolve(run, results)
    if len(places) > 1:
        raise BadInput(f"{run} is {len(places)} runs: name one, as {places[0]}")
    return places[0]


def _state(run: Path) -> Progress | None:
    """How far a run is. None means, with a warning, that its rows cannot be read."""
    from curvbench.analysis.runs import look

    try:
        return look(run)
    except (ValueError, OSError) as error:
        warnings.warn(f"{run}: {error}", stacklevel=2)
        return None


def _filled(rows: list[dict[str, Any]]) -> Any:
    """The rows as a table without the columns in which no run has anything."""
    import pandas as pd

    table = pd.DataFrame(rows)
    return table[[name for name in table if table[name].map(bool).any()]]
