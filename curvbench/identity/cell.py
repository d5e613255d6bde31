"""The id of a cell: a short hash of what decides its rows, except the libraries that it loads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from curvbench.identity.code import code_identity, component, short_hash
from curvbench.spec import Cell


def cell_id(cell: Cell, environment: Mapping[str, Any]) -> str:
    """Hash over what decides the rows of ``cell``, except the loaded libraries, which ``planning.plan`` compares.

    ``environment`` is the result of ``environment()``.
    """
    return short_hash(
        {
            "suite": cell.suite,
            "problem": component(cell.problem),
            "probe": component(cell.probe),
            "seed": cell.seed,
            "meters": cell.meters,
            "precision": cell.precision,
            **({"training": cell.training.hyperparameters} if cell.training else {}),
            **({"surrogate": True} if cell.surrogate else {}),
            **({"weights": cell.weights} if cell.weights else {}),
            **held_elsewhere(cell),
            **run_identity(cell, environment),
        }
    )


def held_elsewhere(cell: Cell) -> dict[str, Any]:
    """The entries of other samples and of a drift; empty for a cell without them, whose id they leave as it was."""
    return {
        **({"population": cell.population} if cell.population else {}),
        **({"drift": cell.drift.hyperparameters} if cell.drift else {}),
    }


def run_identity(cell: Cell, environment: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that the cells of one run have in common."""
    return {
        "code": code_identity(measures=cell.training is None or bool(cell.training.measure_at)),
        "torch": environment["torch_version"],
        "device": environment["device_name"],
        "dtype": cell.dtype,
        "threads": cell.threads,
        "damping": cell.damping,
        "parameters": cell.parameters,
    }
