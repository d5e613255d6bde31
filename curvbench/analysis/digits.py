"""Tables of methods with statistics in several dtypes."""

from __future__ import annotations

import pandas as pd

from curvbench.analysis.frames import labels, of_problem
from curvbench.analysis.views import Quantity, values
from curvbench.spec.labels import arguments_of, split_label

AXIS = "statistics_dtype"
ORDER = ("float16", "bfloat16", "tf32", "float32", "float64")
QUANTITIES = (
    Quantity("direction.gap_closed", "network"),
    Quantity("error.relative", "layer blocks"),
    Quantity("health.residual", "network"),
    Quantity("memory.peak", "step"),
)


def against_dtype(frame: pd.DataFrame, problem: str, quantity: Quantity) -> pd.DataFrame:
    """A quantity against the dtype of the statistics: probe, ``AXIS``, median, min and max; probes without one not.

    ``probe`` leaves the dtype out, so that cells that differ only in it are one line.
    """
    table = values(of_problem(frame, problem), quantity).dropna()
    parts = [_parted(label) for label in table.index]
    table = table.assign(probe=[probe for probe, _ in parts], place=[ORDER.index(d) if d else -1 for _, d in parts])
    table = table[table["place"] >= 0].sort_values(["probe", "place"], kind="stable")
    table[AXIS] = [ORDER[place] for place in table["place"]]
    return table[["probe", AXIS, "median", "min", "max"]].reset_index(drop=True)


def is_measured(frame: pd.DataFrame) -> bool:
    """Whether any method was measured in two dtypes or more."""
    parts = {_parted(label) for label in labels(frame, "probe").unique()}
    probes = [probe for probe, dtype in parts if dtype]
    return len(probes) > len(set(probes))


def _parted(label: str) -> tuple[str, str]:
    """A label without the dtype of the statistics, and that dtype."""
    name, text = split_label(label)
    arguments = arguments_of(text)
    dtype = arguments.pop(AXIS, "")
    rest = ",".join(f"{key}={value}" for key, value in arguments.items())
    return (f"{name}[{rest}]" if rest else name), dtype if dtype in ORDER else ""
