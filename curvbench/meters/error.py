"""Errors of a curvature operator against the exact Fisher: for the network, its layer blocks and each layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple

import torch

from curvbench import numerics
from curvbench.fisher import ExactFisher
from curvbench.instance.passes import full_precision
from curvbench.meters import eigenspaces
from curvbench.operators import BlockDiagonal, Operator
from curvbench.spec import Row, Status
from curvbench.words import refuse_type

SPECTRUM = 10  # largest eigenvalues that are compared
ROUNDING = 1e-8  # of |F|^2: a smaller |F^ - F|^2 is a difference of squares that has lost its digits
NETWORK, BLOCKS = "network", "layer blocks"


@dataclass(frozen=True)
class Products:
    """The five numbers that decide every error: |F|^2, <F, F^>, |F^|^2, tr F and tr F^.

    Raises:
        ValueError: a number is not finite; the text names the first such number, in the order of ``_MEANINGS``.
    """

    fisher: float
    mixed: float
    operator: float
    fisher_trace: float
    operator_trace: float

    def __post_init__(self) -> None:
        for name in _MEANINGS:
            _refuse_not_finite(name, getattr(self, name))

    @property
    def error(self) -> float:
        """|F^ - F|^2; only rounding takes it below 0."""
        return max(self.fisher - 2 * self.mixed + self.operator, 0.0)

    def __add__(self, other: Products) -> Products:
        return Products(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def against_damped(self, damping: float, size: int) -> Products:
        """The products of F^ with F + damping I in place of F, both of order ``size``."""
        trace = self.fisher_trace + damping * size
        return replace(
            self,
            fisher=self.fisher + damping * (self.fisher_trace + trace),
            mixed=self.mixed + damping * self.operator_trace,
            fisher_trace=trace,
        )


_MEANINGS = {
    "operator_trace": "the trace of the operator",
    "operator": "the squared norm of the operator",
    "fisher": "the squared norm of the exact Fisher",
    "fisher_trace": "the trace of the exact Fisher",
    "mixed": "the inner product of the operator with the exact Fisher",
}


def _refuse_not_finite(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"{_MEANINGS[name]} is {'NaN' if math.isnan(value) else 'infinite'}")


def refuse_not_finite(operator: Operator) -> None:
    """Raise ValueError for an operator that is NaN or infinite, with the text of ``Products``."""
    norm = operator.frobenius_norm()
    _refuse_not_finite("operator_trace", operator.trace())
    _refuse_not_finite("operator", norm * norm)


def products(operator: Operator, fisher: ExactFisher, mixed: float | None = None) -> Products:
    """The products of an operator and an exact Fisher of the same size.

    ``mixed`` is <F, F^>; None means that it is computed.

    Raises:
        ValueError: a product is not finite, or sizes differ.
    """
    f, o = fisher.frobenius_norm(), operator.frobenius_norm()
    mixed = fisher.inner(operator) if mixed is None else mixed
    return Products(f * f, mixed, o * o, fisher.trace(), operator.trace())


def from_products(p: Products) -> dict[str, float]:
    """Relative and scale-optimal error, cosine and trace ratio; NaN means that the exact Fisher is zero."""
    if p.fisher == 0:
        return dict.fromkeys(("relative", "scale_optimal", "cosine", "trace_ratio"), float("nan"))
    cosine = p.mixed / p.fisher**0.5 / p.operator**0.5 if p.operator > 0 else 0.0  # a product could underflow
    return {
        "relative": (p.error / p.fisher) ** 0.5,
        "scale_optimal": max(1 - cosine**2, 0.0) ** 0.5,
        "cosine": cosine,
        "trace_ratio": p.operator_trace / p.fisher_trace,
    }


@full_precision()
def errors(operator: Operator, fisher: ExactFisher) -> dict[str, float]:
    """The errors of an operator against the exact Fisher of the same parameters.

    Returns:
        ``relative`` = |F^ - F| / |F|, ``scale_optimal`` = sqrt(1 - cosine^2), ``cosine``, ``trace_ratio``; NaN means
        that the exact Fisher is zero. ``coverage``: the share of the model's trainable parameters that both matrices
        cover, outside of which nothing is compared; NaN means that it is unknown.

    Raises:
        ValueError: sizes differ, or the operator is not finite.
    """
    if isinstance(operator, type) or not hasattr(operator, "frobenius_norm"):  # any object with the methods will do
        refuse_type("operator", operator, Operator, "give curvbench.fit(probe, instance)")
    refuse_type("fisher", fisher, ExactFisher, "give errors(operator, curvbench.exact_fisher(instance))")
    return {**from_products(products(operator, fisher)), "coverage": fisher.coverage}


def diagonal_error(operator: Operator, fisher: ExactFisher) -> float:
    """The relative error of the diagonal; NaN means that the exact diagonal is zero."""
    exact = fisher.diagonal().double()
    norm = numerics.sum_squares(exact) ** 0.5
    return numerics.sum_squares(operator.diagonal().double() - exact) ** 0.5 / norm if norm else float("nan")


def spectral_error(operator: Operator, fisher: ExactFisher, k: int = SPECTRUM) -> float:
    """The relative error of the vector of the k largest eigenvalues; NaN means that the exact ones are zero."""
    exact = fisher.eigenvalues(k)
    norm = float(torch.linalg.vector_norm(exact))
    return float(torch.linalg.vector_norm(operator.eigenvalues(k) - exact)) / norm if norm else float("nan")


def off_block_share(fisher: ExactFisher) -> float:
    """The share of |F|^2 outside the layer blocks; NaN means that F is zero."""
    blocks = sum(fisher.layer(layer.name).frobenius_norm() ** 2 for layer in fisher.layers)
    norm = fisher.frobenius_norm() ** 2
    return max(1 - blocks / norm, 0.0) if norm else float("nan")


def error_rows(operator: Operator, fisher: ExactFisher, included: float | None = None) -> Iterator[Row]:
    """Every error metric in every scope; unsupported for layer blocks if the operator has no blocks of layers.

    ``included``: the damping for which the operator estimates F + damping I, whose error is ``error.damped``; None
    means that the operator estimates F, so that there are no such rows. An operator that is not finite has one row, an
    error whose reason names the number that is not finite.
    """
    try:
        yield from list(_error_rows(operator, fisher, included))
    except ValueError as reason:
        yield Row("error.relative", scope=NETWORK, status=Status.ERROR, reason=str(reason))


class Compared(NamedTuple):
    """The products of the network and of each layer's block; no ``layers`` have the ``reason`` why there are none."""

    network: Products
    layers: Mapping[str, Products]
    reason: str = ""

    @property
    def blocks(self) -> Products:
        """The products of all layer blocks together."""
        return _summed(self.layers)


def compared(operator: Operator, fisher: ExactFisher) -> Compared:
    """The products in every scope; raises ValueError if one is not finite, or sizes differ."""
    try:
        blocks = {la.name: operator.block(la.start, la.start + la.size) for la in fisher.layers}
    except ValueError as reason:
        return Compared(products(operator, fisher), {}, str(reason))
    layers = {name: products(block, fisher.layer(name)) for name, block in blocks.items()}
    mixed = _summed(layers).mixed if within_layers(operator, fisher) else None
    return Compared(products(operator, fisher, mixed), layers)


def _summed(layers: Mapping[str, Products]) -> Products:
    return sum(layers.values(), Products(0, 0, 0, 0, 0))


def _error_rows(operator: Operator, fisher: ExactFisher, included: float | None) -> Iterator[Row]:
    in_scopes = compared(operator, fisher)
    yield from _rows(from_products(in_scopes.network), NETWORK)
    if in_scopes.reason:
        yield Row("error.relative", scope=BLOCKS, status=Status.UNSUPPORTED, reason=in_scopes.reason)
    else:
        yield from _rows(from_products(in_scopes.blocks), BLOCKS)
    shares = error_shares(in_scopes.layers) if in_scopes.layers else {}
    for layer in fisher.layers if in_scopes.layers else ():
        block = operator.block(layer.start, layer.start + layer.size)
        yield from _rows(from_products(in_scopes.layers[layer.name]), layer.name)
        yield from _shares(shares, layer.name)
        yield from _rows({"diagonal": diagonal_error(block, fisher.layer(layer.name))}, layer.name)
    yield from _rows(
        {"diagonal": diagonal_error(operator, fisher), "spectral": spectral_error(operator, fisher)}, "network"
    )
    yield from _rows({"off_block": off_block_share(fisher)}, NETWORK)
    if in_scopes.network.error > ROUNDING * in_scopes.network.fisher > 0:
        yield from _rows(eigenspaces.shares(operator, fisher, in_scopes.network.error), NETWORK)
    if included is not None:
        yield from _damped_rows(in_scopes, fisher, included)


def _damped_rows(in_scopes: Compared, fisher: ExactFisher, damping: float) -> Iterator[Row]:
    """The relative errors against F + damping I, whose products follow from those of F."""
    scopes = [(NETWORK, in_scopes.network, fisher.size)]
    if in_scopes.layers:
        scopes.append((BLOCKS, in_scopes.blocks, fisher.size))
        scopes += [(layer.name, in_scopes.layers[layer.name], layer.size) for layer in fisher.layers]
    for scope, of_scope, size in scopes:
        value = from_products(of_scope.against_damped(damping, size))["relative"]
        yield Row("error.damped", value, scope, method=f"damping {damping:g}")


def error_shares(per_layer: Mapping[str, Products]) -> dict[str, float]:
    """The share of every layer in |F^ - F|^2 over the layer blocks; empty if F^ is exact but for rounding."""
    squares = {name: p.error for name, p in per_layer.items()}
    total, whole = sum(squares.values()), sum(p.fisher for p in per_layer.values())
    return {name: square / total for name, square in squares.items()} if total > ROUNDING * whole else {}


def _shares(shares: Mapping[str, float], scope: str) -> Iterator[Row]:
    if scope in shares:
        yield Row("error.share", shares[scope], scope)


def within_layers(operator: Operator, fisher: ExactFisher) -> bool:
    """Whether every block of a block-diagonal operator lies in one layer, so that entries between layers are zero."""
    if not isinstance(operator, BlockDiagonal):
        return False
    return set(accumulate(layer.size for layer in fisher.layers)).issubset(accumulate(b.size for b in operator.blocks))


def _rows(values: Mapping[str, float], scope: str) -> Iterator[Row]:
    for name, value in values.items():
        if value == value:
            yield Row(f"error.{name}", value, scope)
        else:
            reason = "the Fisher is zero in this scope: nothing to compare with"
            yield Row(f"error.{name}", scope=scope, status=Status.SKIPPED, reason=reason)
