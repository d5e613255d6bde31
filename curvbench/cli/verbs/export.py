"""The verb ``export``: a run in the format of another tool."""

from __future__ import annotations

import json
import platform
import sys
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
        known = _known_to_asv(record)
        place = folder / asv.machine(record, known)["machine"]
        machine = asv.machine(record, known or stored(place / "machine.json"))
        commit = asv.results(rows, record, machine, _python(record, place))
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


def _known_to_asv(record: dict[str, Any]) -> dict[str, Any]:
    """What asv calls this machine and says of it, for a run that was made on it; empty if asv does not know it.

    asv takes the only machine of its own file, or the one with the host's name.
    """
    host = platform.node()
    if record.get("environment", {}).get("host") != host:
        return {}
    content = _read(Path.home() / ".asv-machine.json")
    machines = {name: entry for name, entry in content.items() if isinstance(entry, dict)}
    entry: dict[str, Any] = next(iter(machines.values())) if len(machines) == 1 else machines.get(host, {})
    return entry


def _python(record: dict[str, Any], place: Path) -> str:
    """The name of a run's Python in asv's own results for its machine, so that both make one line.

    asv names the Python of an environment that exists by its path; only the path of this process is known to be it.
    """
    from curvbench.analysis.export import asv

    version = asv.python_version(record)
    own = [_read(file, place) for file in place.glob("*.json") if file.name != "machine.json"]
    names = {content.get("params", {}).get("python") for content in own if content.get("env_name") != asv.ENVIRONMENT}
    is_here = version == "{}.{}".format(*sys.version_info) and version not in names
    return sys.executable if is_here and sys.executable in names else version


def _read(path: Path, folder: Path | None = None) -> dict[str, Any]:
    """The content of a JSON file, empty if there is none; no link may lead out of ``folder``."""
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
