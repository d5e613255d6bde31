"""Which run a command continues, what is there already, what is left to do."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from curvbench import store
from curvbench.engines.task import ANSWERED
from curvbench.identity import cell_id, content, libraries, run_identity
from curvbench.registry import probes, problems, source
from curvbench.spec import Cell, Component, Status

AGAIN = frozenset({Status.INTERRUPTED, Status.SKIPPED})
FAILED = frozenset(Status) - ANSWERED - AGAIN
KEY = ("problem", "problem_args", "probe", "probe_args", "seed", "training")


@dataclass(frozen=True)
class Plan:
    """Cells by id; the run to continue (None: a new one); cells of older runs to share; ids to run; stored statuses."""

    suite_folder: Path
    environment: Mapping[str, Any]
    cells: Mapping[str, Cell]
    continued: Path | None
    shared: Mapping[str, Path]
    todo: tuple[str, ...]

    @property
    def run_identity(self) -> dict[str, Any]:
        """What all cells of the run have in common."""
        return run_identity(next(iter(self.cells.values())), self.environment)

    def begin(self, command: str, suite_file: Path) -> Path:
        """The run's folder, made if there is none, with the shared cells and ``run.json``."""
        folder = self.continued or store.new_run(self.suite_folder, self.environment["code"])
        for fragment in self.shared.values():
            store.share_cell(fragment, folder / "cells")
        if self.todo or self.shared or self.continued is None:
            with store.locked(folder):
                store.write_run(folder, self._record(folder, command, suite_file))
        return folder

    def _record(self, folder: Path, command: str, suite_file: Path) -> dict[str, Any]:
        before = store.read_run(folder) if self.continued else {}
        commands = [*before.get("commands", []), {"command": command, "started_at": datetime.now(UTC).isoformat()}]
        cells = {cell["id"]: cell for cell in before.get("cells", [])}
        cells |= {identity: describe(identity, cell) for identity, cell in self.cells.items()}
        return {
            "schema_version": store.SCHEMA_VERSION,
            "run_id": folder.name,
            "suite": self.suite_folder.name,
            "suite_file": _here(suite_file),
            "command": command,
            "commands": commands,
            "identity": self.run_identity,
            "environment": dict(self.environment),
            "cells": list(cells.values()),
        }


def make(
    cells: Iterable[Cell],
    results: Path,
    environment: Mapping[str, Any],
    force: bool = False,
    rerun: Collection[Status] = (),
    root: Path | None = None,
    goes_on: Path | None = None,
) -> Plan:
    """What has to be done for ``cells`` (one suite, device, dtype and threads); nothing is written.

    The suite's latest run is continued if it was made by the same code and libraries on the same machine and holds no
    other version of one of the cells. Its failed cells are run again if their status is in ``rerun``. ``force`` begins
    a new run; ``goes_on`` is one that is under way. ``root``: the suite's folder, the working directory without it.
    """
    by_id = {cell_id(cell, environment): cell for cell in cells}
    if not by_id:
        raise ValueError("the selection is empty: there is no probe, no problem or no seed")
    refuse_unusable("the selection", by_id.values())
    suite_folder = results / next(iter(by_id.values())).suite
    runs = [] if force else store.runs(suite_folder)
    changes = Changes(root or Path.cwd())
    latest = runs[-1] if runs and _continues(runs[-1], by_id, environment, changes) else None
    continued = goes_on or latest
    statuses = store.cell_statuses(continued) if continued else {}
    done = {i for i, status in statuses.items() if status not in AGAIN and status not in rerun}
    failed = {i for i, status in statuses.items() if status in FAILED}  # an older success would hide that they fail now
    shared = _shared(runs, set(by_id) - done - failed, changes)
    todo = tuple(identity for identity in by_id if identity not in done and identity not in shared)
    return Plan(suite_folder, environment, by_id, continued, shared, todo)


class Changes:
    """What has changed of the libraries of runs, each set of them looked at once; ``root`` is the suite's folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._known: dict[str, list[str]] = {}

    def of(self, run: Path) -> dict[str, list[str]]:
        """The changes in each set of libraries in a run's folder, by its name."""
        records = store.read_libraries(run)
        for name in records.keys() - self._known:
            self._known[name] = libraries.changes(records[name], self.root)
        return {name: self._known[name] for name in records}

    def of_cells(self, run: Path, cells: Iterable[str] | None = None) -> dict[str, list[str]]:
        """The changes in what each cell of a run had loaded; none where it does not say what that was."""
        folder, changes = run / "cells", self.of(run)
        files = [folder] if cells is None else [folder / f"{cell}.parquet" for cell in cells]
        named = store.load(files, ["cell_id", "libraries"]).dropna().drop_duplicates("cell_id")
        lost = ["what it had loaded is not known any more"]
        return {cell: changes.get(name, lost) for cell, name in zip(named["cell_id"], named["libraries"], strict=True)}


def refuse_unusable(name: str, cells: Iterable[Cell]) -> None:
    """Raise ValueError where two of the ``cells`` of something could not be told apart."""
    labels: dict[Any, Cell] = {}
    for cell in cells:
        if labels.setdefault((cell.label, cell.training), cell) != cell:
            raise ValueError(f"{name}: two different components have the same name and hyperparameters: {cell.label}")


def describe(identity: str, cell: Cell) -> dict[str, Any]:
    """A cell as ``run.json`` holds it."""
    return {
        "id": identity,
        **_key(cell),
        "hyperparameters": {
            part: getattr(cell, part).hyperparameters
            for part in ("problem", "probe", "training")
            if getattr(cell, part)
        },
        "sources": {"problem": _source(cell.problem, problems()), "probe": _source(cell.probe, probes())},
        "device": cell.device,
        "dtype": cell.dtype,
        "threads": cell.threads,
        "meters": list(cell.meters),
        "weights": cell.weights,
    }


def _source(component: Component, shipped: Mapping[str, type[Component]]) -> dict[str, str]:
    """What tells whether the file of a component has changed since; its name only where it is none of the package's."""
    kind = type(component)
    named = {} if kind in shipped.values() else {"file": _here(source(kind))}
    return {"content": content(source(kind)), **named}


def _here(file: Path) -> str:
    """A file as seen from the working directory, its name alone where it lies elsewhere: results are passed on."""
    file = file.resolve()
    return str(file.relative_to(Path.cwd())) if file.is_relative_to(Path.cwd()) else file.name


def _key(cell: Cell) -> dict[str, Any]:
    problem, probe = cell.problem, cell.probe
    training = cell.training.arguments if cell.training else ""
    values = (problem.name, problem.arguments, probe.name, probe.arguments, cell.seed, training)
    return dict(zip(KEY, values, strict=True))


def _continues(run: Path, cells: Mapping[str, Cell], environment: Mapping[str, Any], changes: Changes) -> bool:
    try:
        record = store.read_run(run)
    except ValueError as error:
        warnings.warn(f"{error}; a new run is begun", stacklevel=2)
        return False
    if record.get("identity") != run_identity(next(iter(cells.values())), environment):
        return False
    known = {tuple(cell.get(name, "") for name in KEY): cell.get("id") for cell in record.get("cells", [])}
    same = all(known.get(tuple(_key(cell).values()), identity) == identity for identity, cell in cells.items())
    return same and not any(changes.of(run).values())


def _shared(runs: Iterable[Path], wanted: set[str], changes: Changes) -> dict[str, Path]:
    """The latest fragment of each wanted cell that is answered, by the libraries that are here now."""
    shared: dict[str, Path] = {}
    for run in runs:
        there = {i: path for i in wanted if (path := run / "cells" / f"{i}.parquet").is_file()}
        if not there:
            continue
        statuses = store.statuses(store.load(there.values(), ["cell_id", "status", "metric"]))
        changed = changes.of_cells(run, there)
        for identity in [i for i in there if i in statuses and not changed.get(i)]:
            if statuses[identity] in ANSWERED:
                shared[identity] = there[identity]
            elif statuses[identity] in FAILED:
                shared.pop(identity, None)
    return shared
