"""The verb ``export``: a run in the format of another tool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from curvbench.cli.verbs import BadInput, folder, option, raw, users_fault, written

FORMS = ("csv", "json", "parquet", "asv", "github", "junit")


@click.command()
@click.argument("run")
@option("--format", "form", type=click.Choice(FORMS), required=True, help="Format of the export.")
@option("--output", type=click.Path(path_type=Path), metavar="FILE", help="Where to write; asv: its results folder.")
@option("--all-runs", is_flag=True, help="Every run of a folder or revision, not the latest of each suite.")
@raw
@folder("--results", default=Path("results"), help="Folder in which ids, `latest` and revisions are looked up.")
def export(run: str, form: str, output: Path | None, all_runs: bool, raw: bool, results: Path) -> None:
    """Write RUN as CSV, JSON or one Parquet file, for asv, for github-action-benchmark, or as JUnit's XML.

    RUN is a run's folder, a folder of results (the latest run of each suite), a Parquet file, a run id, `latest`, or a
    git revision with stored runs.
    """
    from curvbench import store
    from curvbench.cli import locate

    with users_fault():
        if output is None and form in ("parquet", "asv"):
            raise BadInput(f"--format {form} writes files: say where with --output")
        if form == "asv":
            assert output is not None
            runs = locate.locate(run, results, all_runs)
            with_commit = [place for place in runs if _has_commit(place)]
            click.echo(f"asv: {_asv(with_commit or runs, output)} result files in {output}")
            if without := [place.name for place in runs if place not in with_commit]:
                click.echo(f"left out, because they know no commit: {', '.join(without)}")
            return
        rows = locate.read(run, results, all_runs)
        if form == "parquet":
            assert output is not None
            store.write_rows(output, rows)
            click.echo(f"{form}: {output}")
        else:
            written(output, _text(rows, form, raw), form)


def _text(rows: Any, form: str, raw: bool) -> str:
    from curvbench.analysis import tables
    from curvbench.analysis.export import github, junit

    if form in ("csv", "json"):
        return tables.csv(rows, raw) if form == "csv" else tables.text(rows, form)
    return github.of_rows(rows) if form == "github" else junit.of_rows(rows)


def _has_commit(run: Path) -> bool:
    from curvbench import store
    from curvbench.analysis.export import asv

    return not store.is_run(run) or asv.has_commit(store.read_run(run))


def _asv(runs: list[Path], folder: Path) -> int:
    """Add one result file per commit and machine to the folder, all of them or none; return how many there are."""
    from curvbench import store
    from curvbench.analysis.export import asv

    content: dict[Path, dict[str, Any]] = {}
    results: set[Path] = set()

    def stored(path: Path) -> dict[str, Any]:
        return content[path] if path in content else _read(path, folder)

    for run in runs:
        if not store.is_run(run):
            raise ValueError(f"asv needs runs with their commit, and {str(run)!r} is no run")
        rows, record = store.load(run), store.read_run(run)
        place = folder / asv.machine(record, {})["machine"]
        machine = asv.machine(record, stored(place / "machine.json"))
        commit = asv.results(rows, record, machine)
        file = place / asv.file_name(commit)
        content[place / "machine.json"] = machine
        try:
            content[file] = asv.joined(stored(file), commit)
            content[folder / "benchmarks.json"] = asv.benchmarks(rows, stored(folder / "benchmarks.json"))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} or benchmarks.json beside it is no file of asv: {error!r}") from error
        results.add(file)
    for path, entries in content.items():
        _write(path, entries, folder)
    return len(results)


def _read(path: Path, folder: Path) -> dict[str, Any]:
    from curvbench.store import files

    try:
        content = json.loads(files.read(path, inside=folder)) if path.is_file() else {}
        if not isinstance(content, dict):
            raise ValueError(f"expected an object, got {type(content).__name__}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return content


def _write(path: Path, content: dict[str, Any], folder: Path) -> None:
    """Write a file of ``folder`` atomically; raises ValueError if a link would lead out of the folder."""
    from curvbench.store import files

    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{path.parent} leads out of {folder}: nothing is written there")
    files.replace(path, (json.dumps(content, indent=1) + "\n").encode())
