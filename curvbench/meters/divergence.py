"""The divergence of a probe's damped matrix C^ from the exact C = F + damping I: how well C^ serves in place of C.

KL(C | C^) = (tr C^^-1 C - P - log det C^^-1 C) / 2 is the Kullback-Leibler divergence between centered normal
distributions with these covariances, and half the LogDet divergence. It is a sum of (m - 1 - log m) / 2 over the
eigenvalues m of C^^-1 C, so that directions of small curvature count as much as those of large curvature. Every value
is per parameter.

For a C^ without entries between layers KL(C | C^) = KL(C | blocks of C) + KL(blocks of C | C^): the first part, which
is ``kl_off_block``, is the least that such a C^ can have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from curvbench.fisher import ExactFisher
from curvbench.instance.passes import full_precision
from curvbench.meters.error import BLOCKS, NETWORK, within_layers
from curvbench.operators import Operator
from curvbench.spec import Row, Status


class Quotient(NamedTuple):
    """The numbers of C^^-1 C of which the divergence is made: its trace, its log-determinant and its order P."""

    trace: float
    log_determinant: float
    size: int

    @property
    def kl(self) -> float:
        """KL(C | C^) / P in nats; only rounding takes it below 0."""
        return max(self.trace - self.size - self.log_determinant, 0.0) / 2 / self.size

    @property
    def kl_scaled(self) -> float:
        """The divergence from the best multiple of C^, which is tr(C^^-1 C) / P, over P."""
        return max(self.size * math.log(self.trace / self.size) - self.log_determinant, 0.0) / 2 / self.size


class Divergences(NamedTuple):
    """The quotients of the network and of each layer; no ``layers`` have the ``reason`` why there are none.

    ``off_block``: KL(C | blocks of C) / P.
    """

    network: Quotient
    layers: Mapping[str, Quotient]
    off_block: float
    reason: str = ""

    @property
    def blocks(self) -> Quotient:
        """The quotient of all layer blocks together."""
        traces, log_determinants, sizes = zip(*self.layers.values(), strict=True)
        return Quotient(sum(traces), sum(log_determinants), sum(sizes))


@full_precision()
def divergences(damped: Operator, fisher: ExactFisher, damping: float) -> Divergences:
    """The quotients of a damped matrix and of F + damping I in every scope.

    Raises:
        ValueError: the damped matrix is singular, its family has no inverse in closed form and it is too large to be
            formed, or the damping is not above zero.
    """
    whole = damped.inverse(0.0)
    exact = {la.name: _log_determinant(fisher.layer(la.name), damping) for la in fisher.layers}
    network = _log_determinant(fisher, damping)
    off_block = max(sum(exact.values()) - network, 0.0) / 2 / fisher.size
    is_layerwise = within_layers(whole, fisher)
    try:
        layers = {}
        for la in fisher.layers:
            start, stop = la.start, la.start + la.size
            inverse = whole.block(start, stop) if is_layerwise else damped.block(start, stop).inverse(0.0)
            layers[la.name] = _quotient(inverse, fisher.layer(la.name), damping, exact[la.name])
    except ValueError as reason:
        return Divergences(_quotient(whole, fisher, damping, network), {}, off_block, str(reason))
    if not is_layerwise:
        return Divergences(_quotient(whole, fisher, damping, network), layers, off_block)
    trace = sum(quotient.trace for quotient in layers.values())
    log_determinant = network + sum(quotient.log_determinant - exact[name] for name, quotient in layers.items())
    return Divergences(Quotient(trace, log_determinant, fisher.size), layers, off_block)


def _log_determinant(fisher: ExactFisher, damping: float) -> float:
    """The log-determinant of F + damping I."""
    return -fisher.inverse(damping).log_determinant()


def _quotient(inverse: Operator, fisher: ExactFisher, damping: float, log_determinant: float) -> Quotient:
    """The numbers of C^^-1 C for ``inverse`` C^^-1, from log det C."""
    trace = damping * inverse.trace() + fisher.inner(inverse)
    return Quotient(trace, log_determinant + inverse.log_determinant(), fisher.size)


def divergence_rows(damped: Operator | None, fisher: ExactFisher, damping: float, how: str = "") -> Iterator[Row]:
    """Every divergence in every scope; ``how`` is the text of ``how_damped``. One row with the reason if there is none.

    ``damped``: None means that the probe's step is not the inverse of one symmetric matrix, which has no rows.
    """
    if damped is None:
        return
    method = ", ".join(filter(None, [f"damping {damping:g}", how]))
    try:
        found = divergences(damped, fisher, damping)
    except ValueError as error:
        yield Row("error.kl", scope=NETWORK, status=Status.SKIPPED, reason=str(error), method=method)
        return
    scopes = {NETWORK: found.network, **({BLOCKS: found.blocks, **found.layers} if found.layers else {})}
    for scope, quotient in scopes.items():
        yield Row("error.kl", quotient.kl, scope, method=method)
        yield Row("error.kl_scaled", quotient.kl_scaled, scope, method=method)
    if found.reason:
        yield Row("error.kl", scope=BLOCKS, status=Status.UNSUPPORTED, reason=found.reason, method=method)
    yield Row("error.kl_off_block", found.off_block, NETWORK, method=method)
