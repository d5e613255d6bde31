"""What the tests of probes share: their metrics, distances, and the blocks of the groups of a layer."""

from __future__ import annotations

from collections.abc import Iterator

import oracles
import torch
from cases import CASES, Truth, instance_of, truth, weights_of
from torch import Tensor

import curvbench as cb
from curvbench.meters.cost import Stepper, flop_rows
from curvbench.spec import METRICS, Probe

# of meters/exact.py, which measures no probe
OF_THE_EXACT_FISHER = {"time.floor", "time.floor.values", "flops.hutchinson", "machine.peak"}
OF_NO_TABLE = (  # of trainings, by request, of adapters
    *("train.", "pace.", "valid.", "test.", "damping.", "stale.", "linearity."),
)
OF_THE_NETWORK = ("gram.", "inputs.")  # by request too
BY_REQUEST = {"error.population", "error.unbiased", "error.floor", "direction.population", "error.condition"}
OF_DAMPED = {"error.damped"}  # only of probes whose matrix includes its damping
OF_ALL = {name for name in METRICS if not name.startswith((*OF_NO_TABLE, *OF_THE_NETWORK))}
OF_A_PROBE = OF_ALL - OF_THE_EXACT_FISHER - BY_REQUEST - OF_DAMPED


def near(value: Tensor, expected: Tensor, tolerance: float = 1e-10) -> bool:
    """Relative Frobenius distance below the tolerance; false for NaN, exact where the expected matrix is zero."""
    scale = max(float(expected.abs().max()), 1e-300)
    return bool(((value - expected) / scale).norm() <= tolerance * (expected / scale).norm())


def by_parameters(instance: cb.Instance, matrix: Tensor) -> Tensor:
    """A matrix (P, P) over the entries of all trained parameters, side by side; what is left out has zeros."""
    trained = [(name, p) for name, p in instance.model.named_parameters() if p.requires_grad]
    rows = []
    for unit in torch.eye(instance.size, dtype=matrix.dtype):
        named = instance.unpack(unit)
        rows.append(torch.cat([named.get(name, torch.zeros_like(p)).flatten() for name, p in trained]))
    places = torch.stack(rows)
    return places.T @ matrix @ places


def group_blocks(judge: Truth, dense: Tensor, kind: str = "type-2") -> list[tuple[oracles.Factors, Tensor]]:
    """For every group of every layer its raw material and its diagonal block of a dense matrix."""
    pairs = []
    for part, groups in zip(oracles.layer_slices(judge.model).values(), judge.factors(kind).values(), strict=True):
        size = (part.stop - part.start) // len(groups)
        blocks = oracles.diagonal_blocks(dense[part, part], [size] * len(groups))
        pairs += zip(groups, blocks, strict=True)
    return pairs


def cases_with_regular_factors(kind: str) -> Iterator[str]:
    """Cases in which no factor of K-FAC has an eigenvalue near another one: their eigenbasis is unique."""
    for name in CASES:
        parts = [part for groups in truth(name).factors(kind).values() for part in groups]
        factors = [factor for part in parts for factor in oracles.kfac_factors(part)]
        if all(_separated(torch.linalg.eigvalsh(factor)) for factor in factors):
            yield name


def _separated(eigenvalues: Tensor) -> bool:
    return len(eigenvalues) == 1 or float(eigenvalues.diff().min()) > 1e-6 * float(eigenvalues[-1])


def uncounted(probe: Probe, case: str) -> set[str]:
    """Phases in which a probe runs an operation without a FLOP formula."""
    rows = flop_rows(Stepper(probe, instance_of(case)))
    return {f"{row.scope}: {row.reason}" for row in rows if row.metric == "flops.uncounted_ops" and row.value}


def rescaled(name: str, factor: float) -> cb.Instance:
    """A Gaussian case whose residuals, and so its scores, are multiplied by ``factor``."""
    model, inputs, targets = CASES[name].build()
    outputs = model(inputs).detach()
    return weights_of(model, inputs, outputs + factor * (targets - outputs), loss="gaussian")
