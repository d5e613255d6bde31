"""A plan: the run that a command continues, the cells that it has already, and the cells left to run."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from curvbench import registry, shipped, store
from curvbench.engines.task import ANSWERED
from curvbench.identity import cell_id, content, libraries, run_identity
from curvbench.registry import probes, problems, source
from curvbench.spec import Cell, Component, Probe, Status

AGAIN = frozenset({Status.INTERRUPTED, Status.SKIPPED})  # statuses whose cells every run tries again
FAILED = frozenset(Status) - ANSWERED - AGAIN  # statuses whose cells are tried again if the user asks for it
LOST = ["the record of the libraries that it had loaded is missing or damaged"]
KEY = ("problem", "problem_args", "probe", "probe_args", "seed", "training")


@dataclass(frozen=True)
class Plan:
    """The cells of a command, and where each comes from.

    ``cells``: all of them by id. ``continued``: the folder of the run to continue. None means a new run. ``shared``:
    fragments of older runs that are reused, by cell id. ``todo``: the ids of the cells to run. ``latest``: the suite's
    latest run at the time of planning. ``seen``: stamps of the fragments in the run to continue, by cell id.
    """

    suite_folder: Path
    environment: Mapping[str, Any]
    cells: Mapping[str, Cell]
    continued: Path | None
    shared: Mapping[str, Path]
    todo: tuple[str, ...]
    latest: Path | None = None
    seen: Mapping[str, store.Stamp] = field(default_factory=dict)

    @property
    def run_identity(self) -> dict[str, Any]:
        """The parts of a cell's identity that all cells of the run share."""
        return run_identity(next(iter(self.cells.values())), self.environment)

    def begin(self, command: str, suite_file: Path) -> Path:
        """Make the run's folder, put the shared cells and ``run.json`` into it, and return it."""
        folder = self.continued or store.new_run(self.suite_folder, self.environment["code"])
        for fragment in self.shared.values():
            store.share_cell(fragment, folder / "cells")
        if self.todo or self.shared or self.continued is None:
            self._write(folder, command, suite_file)
        return folder

    def _write(self, folder: Path, command: str, suite_file: Path) -> None:
        """Write ``run.json``; a new run in which it has no room is removed again."""
        try:
            with store.locked(folder):
                store.write_run(folder, self._record(folder, command, suite_file))
        except store.Unwritable:
            if self.continued is None:
                store.drop_run(folder)
            raise

    def _record(self, folder: Path, command: str, suite_file: Path) -> dict[str, Any]:
        before = store.read_run(folder) if self.continued else {}
        commands = [*before.get("commands", []), {"command": command, "started_at": datetime.now(UTC).isoformat()}]
        cells = {cell["id"]: cell for cell in before.get("cells", [])}
        cells |= {identity: describe(identity, cell) for identity, cell in self.cells.items()}
        return {
            "schema_version": store.SCHEMA_VERSION,
            "run_id": folder.name,
            "suite": self.suite_folder.name,
            "suite_file": _suite(suite_file),
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
    """The plan for ``cells``, which have one ``run_identity`` and one suite; nothing is written.

    The suite's latest run is continued if the same code and libraries made it on the same machine, and if it holds no
    other version of one of the cells. Its failed cells are run again if their status is in ``rerun``. ``force`` begins
    a new run. ``goes_on``: the folder of a run that is under way and is continued in any case. ``root``: the suite's
    folder. None means the working directory.
    """
    by_id = {cell_id(cell, environment): cell for cell in cells}
    if not by_id:
        raise ValueError("the selection is empty: there is no probe, no problem or no seed")
    refuse_unusable("the selection", by_id.values())
    suite_folder = results / next(iter(by_id.values())).suite
    known = store.runs(suite_folder)
    runs = [] if force else known
    changes = Changes(root or Path.cwd())
    latest = runs[-1] if runs and _continues(runs[-1], by_id, environment, changes) else None
    continued = goes_on or latest
    fragments = {i: store.cell_file(continued / "cells", i) for i in by_id} if continued else {}
    seen = {i: store.stamp(fragment) for i, fragment in fragments.items()}  # before they are read
    statuses = store.cell_statuses(continued) if continued else {}
    done = {i for i, status in statuses.items() if status not in AGAIN and status not in rerun}
    failed = {i for i, status in statuses.items() if status in FAILED}  # an older success would hide the new failure
    shared = _shared(runs, set(by_id) - done - failed, changes)
    todo = tuple(identity for identity in by_id if identity not in done and identity not in shared)
    return Plan(suite_folder, environment, by_id, continued, shared, todo, known[-1] if known else None, seen)


class Changes:
    """The changes in the libraries of runs; each set of libraries is examined once. ``root``: the suite's folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._changes: dict[str, list[str]] = {}

    def of(self, run: Path) -> dict[str, list[str]]:
        """The changes in each set of libraries in a run's folder, by the name of the set."""
        records = store.read_libraries(run)
        for name in records.keys() - self._changes:
            record = records[name]
            self._changes[name] = libraries.changes(record, self.root) if record is not None else LOST
        return {name: self._changes[name] for name in records}

    def of_cells(self, run: Path, cells: Iterable[str] | None = None) -> dict[str, list[str]]:
        """The changes in the libraries of each cell of a run; a cell without a record of libraries is left out."""
        folder, changes = run / "cells", self.of(run)
        files = [folder] if cells is None else [folder / f"{cell}.parquet" for cell in cells]
        named = store.load(files, ["cell_id", "libraries"]).dropna().drop_duplicates("cell_id")
        return {cell: changes.get(name, LOST) for cell, name in zip(named["cell_id"], named["libraries"], strict=True)}


def refuse_unusable(name: str, cells: Iterable[Cell]) -> None:
    """Raise ValueError if two different ``cells`` have the same label; ``name`` says what they are the cells of."""
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
            part: _values(getattr(cell, part)) for part in ("problem", "probe", "training") if getattr(cell, part)
        },
        "sources": {"problem": _source(cell.problem, problems()), "probe": _source(cell.probe, probes())},
        "device": cell.device,
        "dtype": cell.dtype,
        "threads": cell.threads,
        "parameters": cell.parameters,
        "meters": list(cell.meters),
        "weights": cell.weights,
    }


def _values(component: Component) -> dict[str, Any]:
    """The hyperparameters, a probe among them as its label."""
    return {k: v.label if isinstance(v, Component) else v for k, v in component.hyperparameters.items()}


def _source(component: Component, registered: Mapping[str, type[Component]]) -> dict[str, Any]:
    """The hash of the component's source; for a user's component also the path of its file; the same of inner probes.

    ``inner`` has the entries of the probes among the hyperparameters, each with its name.
    """
    file = next(iter(component.other_sources), source(type(component)))
    path = {} if type(component) in registered.values() else {"file": _here(file)}
    inner = [
        {"name": v.name, **_source(v, registered)} for v in component.hyperparameters.values() if isinstance(v, Probe)
    ]
    return {"content": content(file), **path, **({"inner": inner} if inner else {})}


def _here(file: Path) -> str:
    """A path from where suites are shipped, or from the working directory; else the name, as results are passed on."""
    file = file.resolve()
    is_shipped = file.is_relative_to(shipped.SUITES)
    folder = shipped.ROOT if is_shipped else Path.cwd() if file.is_relative_to(Path.cwd()) else file.parent
    return str(file.relative_to(folder))


def _suite(file: Path) -> str:
    """What ``curvbench run`` takes for a suite from the working directory; else the bare name."""
    spelled = registry.spelled(file)
    return spelled.name if spelled.is_absolute() else str(spelled)


def _key(cell: Cell) -> dict[str, Any]:
    problem, probe = cell.problem, cell.probe
    training = cell.training.arguments if cell.training else ""
    values = (problem.name, problem.arguments, probe.name, probe.arguments, cell.seed, training)
    return dict(zip(KEY, values, strict=True))


def _continues(run: Path, cells: Mapping[str, Cell], environment: Mapping[str, Any], changes: Changes) -> bool:
    record = store.read_run(run)
    if record.get("identity") != run_identity(next(iter(cells.values())), environment):
        return False
    recorded = {tuple(cell.get(name, "") for name in KEY): cell.get("id") for cell in record.get("cells", [])}
    are_same = all(recorded.get(tuple(_key(cell).values()), identity) == identity for identity, cell in cells.items())
    return are_same and not any(changes.of(run).values())


def _shared(runs: Iterable[Path], wanted: set[str], changes: Changes) -> dict[str, Path]:
    """The latest fragment of each wanted cell that has an answer and whose libraries have not changed since."""
    shared: dict[str, Path] = {}
    for run in runs:
        fragments = {i: path for i in wanted if (path := run / "cells" / f"{i}.parquet").is_file()}
        if not fragments:
            continue
        statuses = store.statuses(store.load(fragments.values()))
        changed = changes.of_cells(run, fragments)
        for identity in [i for i in fragments if i in statuses and not changed.get(i)]:
            if statuses[identity] in ANSWERED:
                shared[identity] = fragments[identity]
            elif statuses[identity] in FAILED:
                shared.pop(identity, None)
    return shared
