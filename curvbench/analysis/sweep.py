"""Sweeps of the number of updates: how a method changes as it goes on learning."""

from __future__ import annotations

import pandas as pd

from curvbench.analysis.frames import labels, of_problem, problems, texts
from curvbench.registry import describe, probes
from curvbench.spec import METRICS, Status
from curvbench.spec.labels import arguments_of

AXIS = "probe.updates"
METRICS_SHOWN = ("error.relative", "error.scale_optimal", "direction.cosine", "direction.gradient")
ANY = "any"


def tidy(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows with a column ``probe.KEY`` per hyperparameter, and in ``curve`` the label without ``updates``.

    A column is numeric if all its values are numbers, and null for a probe without the hyperparameter. A hyperparameter
    that a row does not name has the default of the installed curvbench.
    """
    frame = frame.assign(probe=texts(frame, "probe"), probe_args=texts(frame, "probe_args"))
    pairs = frame[["probe", "probe_args"]].drop_duplicates().reset_index(drop=True)
    keys = list(zip(pairs["probe"], pairs["probe_args"], strict=True))
    columns = pd.DataFrame([_hyperparameters(*key) for key in keys], index=pairs.index).add_prefix("probe.")
    pairs["curve"] = [_curve(*key) for key in keys]
    wide = pd.concat([pairs, columns.apply(_as_numbers)], axis=1)
    return frame.merge(wide, on=["probe", "probe_args"], how="left", validate="many_to_one")


def table(frame: pd.DataFrame, problem: str, metric: str) -> pd.DataFrame:
    """Medians over seeds of a metric of the network: one row per curve, one column per number of updates.

    Probes that do not learn over steps have their value in the column ``any``. A missing value is NaN.
    """
    cells = tidy(of_problem(frame, problem))
    chosen = cells[(cells["metric"] == metric) & (cells["scope"] == "network") & (cells["status"] == Status.OK)]
    values = chosen["value"].groupby([chosen["curve"], _steps(chosen)]).median().unstack()
    order = [curve for curve in dict.fromkeys(cells["curve"]) if curve in values.index]
    return values.reindex(order).rename(columns={0: ANY})


def swept(frame: pd.DataFrame) -> list[str]:
    """The problems on which a probe was measured after different numbers of updates."""
    cells = tidy(frame)
    counts = _steps(cells).groupby([labels(cells, "problem"), cells["curve"]]).nunique()
    several = set(counts[counts > 1].index.get_level_values(0))
    return [problem for problem in problems(frame) if problem in several]


def last(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of every curve with the most updates."""
    cells = tidy(frame)
    steps = _steps(cells)
    most = steps.groupby([labels(cells, "problem"), cells["curve"]]).transform("max")
    return frame[(steps == most).to_numpy()]


def title(problem: str, metric: str) -> str:
    """The title of the table of a metric."""
    return f"{problem}, {metric} of the network against updates: {METRICS[metric].text}"


def _steps(cells: pd.DataFrame) -> pd.Series:
    """Updates per row, 0 for a probe without this hyperparameter."""
    steps = cells[AXIS] if AXIS in cells else pd.Series(0, cells.index)
    return steps.fillna(0).astype(int)


def _hyperparameters(probe: str, text: str) -> dict[str, str]:
    components = probes()
    defaults = describe(probe, components[probe])["hyperparameters"] if probe in components else {}
    return {key: str(value) for key, value in defaults.items() if value is not None} | arguments_of(text)


def _as_numbers(column: pd.Series) -> pd.Series:
    numbers = pd.to_numeric(column, errors="coerce")
    return numbers if numbers.notna().equals(column.notna()) else column


def _curve(probe: str, text: str) -> str:
    rest = ",".join(f"{key}={value}" for key, value in arguments_of(text).items() if f"probe.{key}" != AXIS)
    return f"{probe}[{rest}]" if rest else probe
