"""The verb ``compare``: two runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from curvbench.cli.exits import OK, REGRESSION
from curvbench.cli.verbs import compared, option, raw, users_fault, written

if TYPE_CHECKING:
    import pandas as pd

FORMS = ("table", "markdown", "csv", "json")
SORTS = ("change", "metric", "probe", "problem")


@click.command()
@click.argument("a")
@click.argument("b")
@compared
@raw
@option("--sort", type=click.Choice(SORTS), default="change", help="Order of the changes.")
@option("--format", "form", type=click.Choice(FORMS), default="table", help="Form of the answer.")
@option("--output", type=click.Path(path_type=Path), metavar="FILE", help="Where to write; without it, the terminal.")
def compare(a: str, b: str, sort: str, form: str, output: Path | None, **given: Any) -> int:
    """Say what is better and what is worse in B than in A.

    A and B are each a run's folder, a folder of results (the latest run of each suite), a Parquet file, a run id,
    `latest`, or a git revision with stored runs. CSV and JSON hold every measurement. Exit codes: 0 nothing is worse
    beyond its threshold, 1 something is, 2 bad input.
    """
    from curvbench.analysis import compare as comparison
    from curvbench.analysis import tables
    from curvbench.analysis.limits import with_thresholds
    from curvbench.cli.locate import choose, read

    with users_fault():
        limits = with_thresholds(given["thresholds"])
        sides = [read(run, given["results"], given["all_runs"]) for run in (a, b)]
        chosen = [choose(rows, given["probes"], given["problems"], given["metrics"]) for rows in sides]
        table = comparison.compare(chosen[0], chosen[1], limits)
        if form == "csv":
            text = tables.csv(table, given["raw"])
        elif form == "json":
            text = tables.text(table, form)
        else:
            text = _page(a, b, chosen, table, sort, form, given["metrics"])
        written(output, text, "comparison")
    return REGRESSION if (table["verdict"] == "worse").any() else OK


def _page(
    a: str, b: str, sides: list[pd.DataFrame], table: pd.DataFrame, sort: str, form: str, metrics: tuple[str, ...]
) -> str:
    """The differences of machines and versions, the changes, the pivoted table and the counts, as text."""
    from curvbench.analysis import tables
    from curvbench.analysis.check import by_size, counts
    from curvbench.analysis.compare import SAME, described, described_differences, pivot

    changed = by_size(table[~table["verdict"].isin(SAME)])
    changed = changed if sort == "change" else changed.sort_values(sort, kind="stable")
    changed = changed[changed["verdict"] != "not judged"]
    asked = table[table["metric"].ne("")] if metrics else table.head(0)
    wide = pivot(table, list(asked[["metric", "scope"]].drop_duplicates().itertuples(index=False, name=None)))
    parts = [f"A: {a}\nB: {b}\n", *(f"differs: {line}\n" for line in described_differences(*sides))]
    parts += [tables.text(described(changed), form)] if len(changed) else ["nothing changed beyond its threshold\n"]
    parts += [tables.text(wide, form)] if len(wide) else []
    return "\n".join([*parts, counts(table) + "\n"])
