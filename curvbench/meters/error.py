"""How far a curvature operator is from the exact Fisher: for the network, its layer blocks and each layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from curvbench import numerics
from curvbench.fisher import ExactFisher
from curvbench.operators import BlockDiagonal, Operator
from curvbench.passes import full_precision
from curvbench.spec import Row, Status

SPECTRUM = 10
BLOCKS = "layer blocks"


@dataclass(frozen=True)
class Products:
    """The five numbers behind every error: |F|^2, <F, F^>, |F^|^2, tr F and tr F^."""

    fisher: float
    mixed: float
    operator: float
    fisher_trace: float
    operator_trace: float

    def __add__(self, other: Products) -> Products:
        return Products(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


def products(operator: Operator, fisher: ExactFisher, mixed: float | None = None) -> Products:
    """The products of an operator and an exact Fisher of the same size; ``mixed`` where it is known already."""
    return Products(
        fisher.frobenius_norm() ** 2,
        fisher.inner(operator) if mixed is None else mixed,
        operator.frobenius_norm() ** 2,
        fisher.trace(),
        operator.trace(),
    )


def from_products(p: Products) -> dict[str, float]:
    """Relative and scale-optimal error, cosine and trace ratio; NaN where the exact Fisher is zero."""
    if p.fisher == 0:
        return dict.fromkeys(("relative", "scale_optimal", "cosine", "trace_ratio"), float("nan"))
    cosine = p.mixed / (p.fisher * p.operator) ** 0.5 if p.operator > 0 else 0.0
    return {
        "relative": (max(p.fisher - 2 * p.mixed + p.operator, 0.0) / p.fisher) ** 0.5,
        "scale_optimal": max(1 - cosine**2, 0.0) ** 0.5,
        "cosine": cosine,
        "trace_ratio": p.operator_trace / p.fisher_trace,
    }


@full_precision()
def errors(operator: Operator, fisher: ExactFisher) -> dict[str, float]:
    """The errors of an operator against the exact Fisher of the same parameters.

    Returns:
        ``relative`` = |F^ - F| / |F|, ``scale_optimal`` = sqrt(1 - cosine^2), ``cosine``, ``trace_ratio``; NaN where
        the exact Fisher is zero.

    Raises:
        ValueError: sizes differ.
    """
    return from_products(products(operator, fisher))


def diagonal_error(operator: Operator, fisher: ExactFisher) -> float:
    """Relative error of the diagonal."""
    exact = fisher.diagonal().double()
    norm = numerics.sum_squares(exact) ** 0.5
    return numerics.sum_squares(operator.diagonal().double() - exact) ** 0.5 / norm if norm else float("nan")


def spectral_error(operator: Operator, fisher: ExactFisher, k: int = SPECTRUM) -> float:
    """Relative error of the k largest eigenvalues, as a vector."""
    exact = fisher.eigenvalues(k)
    norm = float(torch.linalg.vector_norm(exact))
    return float(torch.linalg.vector_norm(operator.eigenvalues(k) - exact)) / norm if norm else float("nan")


def off_block_share(fisher: ExactFisher) -> float:
    """The share of |F|^2 that lies outside the layer blocks."""
    blocks = sum(fisher.layer(layer.name).frobenius_norm() ** 2 for layer in fisher.layers)
    norm = fisher.frobenius_norm() ** 2
    return max(1 - blocks / norm, 0.0) if norm else float("nan")


def error_rows(operator: Operator, fisher: ExactFisher) -> Iterator[Row]:
    """Every error metric in every scope. A layer that the operator has no block for is unsupported there."""
    try:
        blocks = {la.name: operator.block(la.start, la.start + la.size) for la in fisher.layers}
    except ValueError as reason:
        yield from _rows(errors(operator, fisher), "network")
        yield Row("error.relative", scope=BLOCKS, status=Status.UNSUPPORTED, reason=str(reason))
    else:
        per_layer = {name: products(block, fisher.layer(name)) for name, block in blocks.items()}
        total = sum(per_layer.values(), Products(0, 0, 0, 0, 0))
        known = total.mixed if isinstance(operator, BlockDiagonal) else None
        yield from _rows(from_products(products(operator, fisher, known)), "network")
        yield from _rows(from_products(total), BLOCKS)
        for name, found in per_layer.items():
            yield from _rows(from_products(found), name)
            yield from _rows({"diagonal": diagonal_error(blocks[name], fisher.layer(name))}, name)
    yield from _rows(
        {"diagonal": diagonal_error(operator, fisher), "spectral": spectral_error(operator, fisher)}, "network"
    )
    yield from _rows({"off_block": off_block_share(fisher)}, "network")


def _rows(values: Mapping[str, float], scope: str) -> Iterator[Row]:
    for name, value in values.items():
        if value == value:
            yield Row(f"error.{name}", value, scope)
        else:
            reason = "the Fisher is zero in this scope: nothing to compare with"
            yield Row(f"error.{name}", scope=scope, status=Status.SKIPPED, reason=reason)
