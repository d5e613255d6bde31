"""Why a cell of a run will or will not be run again, if the same command were given now."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from curvbench import identity, registry
from curvbench.cells import shipped
from curvbench.engines.task import ANSWERED
from curvbench.planning.plan import AGAIN
from curvbench.shipped import find
from curvbench.spec import Component, Status
from curvbench.words import one_line

NAMES = {"code": "curvbench's code", "torch": "torch", "device": "the device"}


class Fate(NamedTuple):
    """A cell by its id and label, whether it would be run again, and why."""

    id: str
    label: str
    will_run: bool
    why: str


def fates(
    record: Mapping[str, Any],
    statuses: Mapping[str, Status],
    now: Mapping[str, Any],
    libraries: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> Iterator[Fate]:
    """The fate of each cell in ``record``, the content of ``run.json``.

    ``now``: the identity of a run that would begin now, without the parts that are unknown. ``libraries``: for each
    cell, by id, the changes in the libraries that it had loaded.
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
        will_run, why = _verdict(statuses.get(cell["id"]), changes)
        if missing := ", ".join(name for name, same in sources if same is None):
            why = f"{why} (no file of {missing} here to compare with)"
        yield Fate(cell["id"], _label(cell), will_run, why)


def current(record: Mapping[str, Any]) -> dict[str, Any]:
    """The identity that the run would have now, on the device on which it was made."""
    import torch

    parts = {"code": identity.code_identity(), "torch": torch.__version__}
    try:
        return parts | {"device": identity.device_name(record.get("environment", {}).get("device", "cpu"))}
    except ValueError:
        return parts | {"device": "no such device"}


def _verdict(status: Status | None, changes: list[str]) -> tuple[bool, str]:
    if changes:
        return True, "; ".join(changes)
    if status is None:
        return True, "never ran"
    if status in ANSWERED:
        return False, str(status)
    return status in AGAIN, f"{status}" if status in AGAIN else f"{status}; --rerun-failed={status} runs it"


def _sources(cell: Mapping[str, Any]) -> Iterator[tuple[str, bool | None]]:
    """The components of a cell, and whether their files are unchanged. None means that a file is not here."""
    for part, shipped_parts in (("problem", registry.problems), ("probe", registry.probes)):
        if (recorded := cell.get("sources", {}).get(part)) is not None:
            yield from _unchanged(str(cell.get(part)), recorded, shipped_parts())


def _unchanged(
    name: str, recorded: Mapping[str, Any], shipped: Mapping[str, type[Component]]
) -> Iterator[tuple[str, bool | None]]:
    """``_sources`` of one component and of the probes among its hyperparameters."""
    file = registry.source(shipped[name]) if name in shipped else find(recorded.get("file", ""))
    yield name, identity.content(file) == recorded["content"] if os.path.isfile(file) else None
    for inner in recorded.get("inner", ()):
        yield from _unchanged(inner.get("name", ""), inner, shipped)


def _weights(cell: Mapping[str, Any]) -> Iterator[str]:
    """The change, if any, in the shipped snapshot that the cell started from."""
    if not (planned := cell.get("weights")):
        return
    try:
        problem = registry.parse_problem(_named(cell.get("problem"), cell.get("problem_args")))
        now = shipped.shipped(problem, cell.get("seed", 0))
    except ValueError as error:
        yield str(error)
    else:
        if now != planned:
            yield "the shipped weights changed" if now else "the shipped weights are gone"


def _label(cell: Mapping[str, Any]) -> str:
    probe, problem = (_named(cell.get(part), cell.get(f"{part}_args")) for part in ("probe", "problem"))
    training = f", {cell['training']}" if cell.get("training") else ""
    return one_line(f"{probe} on {problem}, seed {cell.get('seed')}{training}")


def _named(name: Any, arguments: Any) -> str:
    return f"{name}[{arguments}]" if arguments else str(name)
