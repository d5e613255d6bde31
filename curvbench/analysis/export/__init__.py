"""Runs in the formats of other tools."""

from __future__ import annotations

from curvbench.analysis.views import WHOLES, Quantity
from curvbench.spec import PHASES

# The quantities that are followed over revisions: the cost of a whole step, and the errors of the network.
TRACKED = tuple(
    Quantity(metric, scope)
    for metrics, scopes in (
        (("flops.counted", "memory.peak", "memory.state", "time.ratio"), PHASES[-1:]),
        (("error.relative", "error.scale_optimal"), WHOLES),
        (("direction.cosine", "direction.quality"), WHOLES[:1]),
    )
    for metric in metrics
    for scope in scopes
)
