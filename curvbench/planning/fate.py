"""Why a cell of a run will or will not be run again, if the same command were given now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from curvbench import identity, registry
from curvbench.cells import shipped
from curvbench.engines.task import ANSWERED
from curvbench.planning.plan import AGAIN
from curvbench.spec import Status
from curvbench.words import one_line

NAMES = {"code": "curvbench's code", "torch": "torch", "device": "the device"}


class Fate(NamedTuple):
    """A cell by its id and label, whether it would be run, and why."""

    id: str
    label: str
    runs: bool
    why: str


def fates(
    record: Mapping[str, Any],
    statuses: Mapping[str, Status],
    now: Mapping[str, Any],
    libraries: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> Iterator[Fate]:
    """The fate of each cell that ``run.json`` names; ``now`` is the identity of a run begun now, as far as known.

    ``libraries``: what has changed of those of each cell, by its id.
    """
    then = record.get("identity", {})
    common = [
        f"{name} changed ({then.get(key)}, now {now[key]})"
        for key, name in NAMES.items()
        if key in now and then.get(key) != now[key]
    ]
    for cell in record.get("cells", []):
        sources = list(_sources(cell))
        changes = [*common, *(f"{name} changed" for name, same in sources if same is False), *_weights(cell)]
        changes += libraries.get(cell["id"], [])
        runs, why = _verdict(statuses.get(cell["id"]), changes)
        hidden = ", ".join(name for name, same in sources if same is None)
        yield Fate(
            cell["id"], _label(cell), runs, f"{why} (no file of {hidden} here to compare with)" if hidden else why
        )


def current(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the identity of the run would be now, on the device it was made on."""
    import torch

    found = {"code": identity.code_identity(), "torch": torch.__version__}
    try:
        return found | {"device": identity.device_name(record.get("environment", {}).get("device", "cpu"))}
    except ValueError:
        return found | {"device": "no such device"}


def _verdict(status: Status | None, changes: list[str]) -> tuple[bool, str]:
    if changes:
        return True, "; ".join(changes)
    if status is None:
        return True, "never ran"
    if status in ANSWERED:
        return False, str(status)
    return status in AGAIN, f"{status}" if status in AGAIN else f"{status}; --rerun-failed={status} runs it"


def _sources(cell: Mapping[str, Any]) -> Iterator[tuple[str, bool | None]]:
    """The components of a cell, and whether their files are as they were; None where those are not found."""
    for part, known in (("problem", registry.problems), ("probe", registry.probes)):
        recorded = cell.get("sources", {}).get(part)
        name = str(cell.get(part))
        if recorded is None:
            continue
        file = registry.source(known()[name]) if name in known() else Path(recorded["file"])
        yield name, identity.content(file) == recorded["content"] if file.is_file() else None


def _weights(cell: Mapping[str, Any]) -> Iterator[str]:
    """What has become of the shipped snapshot that the cell started from."""
    if not (planned := cell.get("weights")):
        return
    try:
        problem = registry.parse_problem(_named(cell.get("problem"), cell.get("problem_args")))
        now = shipped.shipped(problem, cell["seed"])
    except ValueError as error:
        yield str(error)
    else:
        if now != planned:
            yield "the shipped weights changed" if now else "the shipped weights are gone"


def _label(cell: Mapping[str, Any]) -> str:
    probe, problem = (_named(cell.get(part), cell.get(f"{part}_args")) for part in ("probe", "problem"))
    rate = f", {cell['training']}" if cell.get("training") else ""
    return one_line(f"{probe} on {problem}, seed {cell.get('seed')}{rate}")


def _named(name: Any, arguments: Any) -> str:
    return f"{name}[{arguments}]" if arguments else str(name)
