"""A sentence on clocks: whose seconds say little."""

from __future__ import annotations

import pandas as pd

from curvbench.analysis.frames import labels
from curvbench.analysis.noise import NOISY, are_noisy
from curvbench.analysis.verdict.words import few


def noisy_clocks(rows: pd.DataFrame) -> str | None:
    """Whose clock was noisy, as far as the rows know it from ``noise.with_spread``."""
    timed = rows[(rows["metric"] == "time.ratio") & (rows["scope"] == "step")]
    names = list(labels(timed[are_noisy(timed) > 0], "probe").unique())
    if not names:
        return None
    among = labels(timed, "probe").nunique()
    return (
        f"The clock was noisy for {len(names)} of {among} methods, so that their seconds may differ by {NOISY:.0%} and "
        f"more by chance: {few(names)}."
    )
