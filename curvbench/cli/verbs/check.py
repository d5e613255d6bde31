"""The verb ``check``: a gate that fails if a run is worse than its baseline."""

from __future__ import annotations

import shlex
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from curvbench.cli import actions
from curvbench.cli.exits import OK, REGRESSION, USAGE
from curvbench.cli.verbs import BadInput, compared, left_out, option, raw, users_fault

if TYPE_CHECKING:
    import pandas as pd

    from curvbench.analysis.check import Gate

FOLDER = "baselines"  # the folder of baselines that pages and templates have
FORMS = ("table", "markdown", "json", "csv", "junit")
UNREAD = "FAILED, because a part could not be read"


@click.command()
@click.argument("run")
@option("--against", "baseline", metavar="BASELINE", help="Folder of baselines, or a run as RUN.  [required]")
@option("--update", is_flag=True, help="Make RUN the baseline in that folder, and say what changed.")
@option("--any-change", is_flag=True, help="Fail on improvements too, so that the baseline always equals the code.")
@compared
@raw
@option("--format", "form", type=click.Choice(FORMS), default="table", help="Form of the answer.")
@option("--output", type=click.Path(path_type=Path), metavar="FILE", help="Where to write; without it, the terminal.")
def check(run: str, baseline: str | None, update: bool, form: str, output: Path | None, **given: Any) -> int:
    """Compare RUN with BASELINE, and fail if RUN is worse.

    FLOPs and live bytes have to be equal, errors to a relative tolerance, peaks of CUDA to 1 %. Times are judged if
    both sides have five samples taken in turn. Nothing passes if a part of either side cannot be read. RUN is a run's
    folder, a folder of results (the latest run of each suite), a Parquet file, a run id, `latest`, or a git revision
    with stored runs. In GitHub Actions the answer is also the summary of the job and annotations. Exit codes: 0 passed,
    1 regression, 2 bad input.
    """
    from curvbench.analysis import tables
    from curvbench.cli.locate import choose, read

    with users_fault():
        if baseline is None:
            raise BadInput(f"--against is missing: say with what {run} is compared; {_making(run, FOLDER, given)}")
        with left_out() as lost:
            rows = read(run, given["results"], given["all_runs"])
        if update and lost:
            raise BadInput(f"no baseline can be made of a run of which a part cannot be read: {lost[0]}")
        if update:
            if (
                any(given[name] for name in ("probes", "problems", "metrics", "thresholds", "any_change"))
                or output
                or form != "table"
            ):
                others = "-p, -m, --metric, --threshold, --any-change, --format and --output"
                raise BadInput(f"--update makes the whole run the baseline and judges nothing: leave out {others}")
            click.echo(_update(rows, Path(baseline)), nl=False)
            return OK
        filters = (given["probes"], given["problems"], given["metrics"])
        with left_out() as lost_of_baseline:
            baseline_rows = choose(_baseline(run, baseline, rows, given), *filters)
        gate = _gate(choose(rows, *filters), baseline_rows, run, given)
        gate = replace(gate, left_out=[*lost, *lost_of_baseline])
        _keep(gate, run, baseline, given)
        text = tables.csv(gate.table, given["raw"]) if form == "csv" else _text(gate, run, baseline, form)
        if output is not None:
            output.write_text(text, encoding="utf-8", errors="backslashreplace")
            text = _text(gate, run, baseline, "table")  # the log has to show the reason too
        if actions.is_here():
            _publish(gate, rows, run, baseline, given)
    click.echo(text, nl=False)
    return OK if gate.passed else REGRESSION if len(gate.failing) else USAGE


def _baseline(run: str, baseline: str, rows: pd.DataFrame, given: dict[str, Any]) -> pd.DataFrame:
    """The rows of a baseline; raises ValueError with the command that makes one if there is none."""
    from curvbench import shipped, store
    from curvbench.cli import baselines
    from curvbench.cli.locate import read

    folder = shipped.find(baseline)
    try:
        if baselines.is_folder_of_baselines(folder):
            return store.load(baselines.find(folder, rows))
        return read(baseline, given["results"], given["all_runs"])
    except ValueError as error:
        if folder.is_file() or (folder.is_dir() and store.runs_below(folder)):
            raise
        fault = f"{baseline!r} holds no baseline" if folder.is_dir() and not any(folder.iterdir()) else str(error)
        raise ValueError(f"{fault}; {_making(run, baseline, given)}") from error


def _making(run: str, baseline: str, given: dict[str, Any]) -> str:
    """How ``run`` becomes a baseline, as a command."""
    words = ["curvbench", "check", run, "--against", baseline, "--update"]
    words += ["--results", str(given["results"])] if given["results"] != Path("results") else []
    words += ["--all-runs"] if given["all_runs"] else []
    return f"`{shlex.join(words)}` makes this run the baseline, to be committed"


def _update(rows: pd.DataFrame, folder: Path) -> str:
    """Write the baselines whose numbers differ from ``rows``, and return the changes as text."""
    from curvbench import store
    from curvbench.analysis import tables
    from curvbench.analysis.check import by_size, counts
    from curvbench.analysis.compare import compare, described, shares_cells
    from curvbench.cli import baselines
    from curvbench.spec import Status

    if not (rows["status"] == Status.OK).any():
        raise ValueError("nothing of this run succeeded: it is no baseline")
    parts = []
    for suite, file in baselines.files(folder, rows).items():
        new = baselines.repeatable(rows[rows["suite"] == suite])
        old = store.load(file) if file.is_file() else new.head(0)
        if not shares_cells(old, new):
            parts.append(f"{file} is new: {new['cell_id'].nunique()} cells\n")
        else:
            table = compare(old, new)
            changed = by_size(table[table["verdict"] != "equal"])
            parts += [tables.text(described(changed), "table")] if len(changed) else []
            parts.append(f"{file} is {'rewritten' if len(changed) else 'left as it is'}: {counts(table)}\n")
            if changed.empty:
                continue
        baselines.write(file, new)
    return "\n".join(parts)


def _gate(rows: pd.DataFrame, baseline: pd.DataFrame, run: str, given: dict[str, Any]) -> Gate:
    from curvbench.analysis.check import Gate, refuse_incomparable, without_lone_times
    from curvbench.analysis.compare import compare, described_differences
    from curvbench.analysis.history import steps
    from curvbench.analysis.limits import with_thresholds

    limits = with_thresholds(given["thresholds"])
    refuse_incomparable(baseline, rows)
    table = compare(baseline, without_lone_times(rows, baseline), limits)
    gate = Gate(table, given["any_change"], described_differences(baseline, rows))
    return (
        gate if gate.passed else replace(gate, steps=steps(_history(run, given["results"], rows), gate.failing, limits))
    )


def _history(run: str, results: Path, rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of every run in the folder of RUN that cover what ``rows`` do, by name and commit, oldest first."""
    from curvbench import store
    from curvbench.analysis.frames import covering_alike
    from curvbench.cli.locate import commit, locate

    history = {}
    for place in locate(run, results):
        for other in store.runs(place.parent) if store.is_run(place) else []:
            sha = commit(other)
            history[other.name + (f" (commit {sha})" if sha else "")] = covering_alike(store.load(other), rows)
    return history


def _keep(gate: Gate, run: str, baseline: str, given: dict[str, Any]) -> None:
    """Keep what the gate says beside the run, which the dashboard shows; of several runs and of the sample nothing."""
    from curvbench import store
    from curvbench.analysis.verdict.gates import sentences
    from curvbench.cli.locate import locate

    places = [place for place in locate(run, given["results"], given["all_runs"]) if store.is_run(place)]
    for place in places:
        store.read_run(place)  # which warns of a damaged record
    is_whole = not any(given[name] for name in ("probes", "problems", "metrics"))
    if is_whole and len(places) == 1 and not store.is_shipped(places[0]):
        now = datetime.now(UTC).isoformat(timespec="seconds")
        store.write_check(places[0], store.Check(baseline, now, gate.passed, tuple(sentences(gate))))


def _publish(gate: Gate, rows: pd.DataFrame, run: str, baseline: str, given: dict[str, Any]) -> None:
    """Show a gate in GitHub Actions: in the job's summary, and beside the files of the probes."""
    from curvbench.analysis.export import actions as form

    actions.add_to_summary(lambda room: form.summary(gate, baseline, run, room), form.SUMMARY_BYTES)
    actions.say(form.commands(gate, _files(run, rows, given)))


def _files(run: str, rows: pd.DataFrame, given: dict[str, Any]) -> dict[tuple[Any, ...], str]:
    """The file of the user in which the probe of each cell stands: its own, or the suite's."""
    from curvbench import store
    from curvbench.analysis.compare import CELL
    from curvbench.analysis.frames import labels
    from curvbench.cli.locate import locate

    places = [place for place in locate(run, given["results"], given["all_runs"]) if (place / "run.json").is_file()]
    files = {}
    for record in map(store.read_run, places):
        for cell in record.get("cells", []):
            file = cell.get("sources", {}).get("probe", {}).get("file") or record.get("suite_file", "")
            files[cell["id"]] = actions.in_repository(file)
    cells = rows.drop_duplicates("cell_id")
    cells = cells.assign(probe=labels(cells, "probe"), problem=labels(cells, "problem"))
    names = cells[CELL].itertuples(index=False, name=None)
    return {name: files.get(cell, "") for name, cell in zip(names, cells["cell_id"], strict=True)}


def _text(gate: Gate, run: str, baseline: str, form: str) -> str:
    from curvbench.analysis import tables
    from curvbench.analysis.check import counts
    from curvbench.analysis.compare import described
    from curvbench.analysis.export import junit
    from curvbench.analysis.tables import escaped
    from curvbench.analysis.verdict.gates import sentences

    if form == "junit":
        return junit.of_gate(gate)
    if form == "json":
        return gate.as_json()
    parts = ["".join(f"- {escaped(sentence) if form == 'markdown' else sentence}\n" for sentence in sentences(gate))]
    parts += [f"A: {baseline}\nB: {run}\n", *(f"differs: {line}\n" for line in gate.differences)]
    for title, rows in (("fails", gate.failing), ("better", gate.improved), ("changed", gate.changed)):
        parts += [f"{title}:\n\n{tables.text(described(rows), form)}"] if len(rows) else []
    parts += [f"first seen:\n\n{tables.text(gate.steps, form)}"] if len(gate.steps) else []
    parts += ["".join(f"left out: {escaped(text) if form == 'markdown' else text}\n" for text in gate.left_out)]
    outcome = "passed" if gate.passed else f"FAILED, {len(gate.failing)} of these" if len(gate.failing) else UNREAD
    return "\n".join([*parts, f"{counts(gate.table)}\ncheck: {outcome}\n"])
