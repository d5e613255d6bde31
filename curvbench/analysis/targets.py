"""The cost of reaching a target, for every training, from the rows of its epochs.

The target is any value of a metric per epoch, not only the target at which a suite stops.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd

from curvbench.analysis.frames import labels
from curvbench.analysis.summary import contenders
from curvbench.analysis.views import meaning
from curvbench.spec import Status

Cost = Literal["epochs", "seconds"]
COSTS: tuple[Cost, ...] = ("epochs", "seconds")
TRIAL = ["probe", "problem", "seed"]


def usual_target(frame: pd.DataFrame, metric: str) -> float:
    """A target that half of the trainings reach: the median of their best values; NaN without values."""
    rows = _epochs(frame, metric)
    rows = rows[np.isfinite(rows["value"])]
    best = rows.groupby([*TRIAL, "cell_id"], sort=False)["value"].agg("min" if _sign(metric) < 0 else "max")
    return float(best.quantile(0.5, interpolation="higher" if _sign(metric) > 0 else "lower"))


def trials(frame: pd.DataFrame, metric: str, target: float) -> pd.DataFrame:
    """One row per training: probe, problem, seed, epochs and seconds until the target; NaN if it was missed."""
    rows = _epochs(frame, metric)
    clock = _epochs(frame, "train.seconds").set_index(["cell_id", "epoch"])["value"]
    hits = rows[_sign(metric) * rows["value"] >= _sign(metric) * target].drop_duplicates("cell_id").set_index("cell_id")
    begun = rows.groupby("cell_id")["epoch"].min()
    trials = rows.drop_duplicates("cell_id").set_index("cell_id")[TRIAL]
    trials["epochs"] = (hits["epoch"] - begun).reindex(trials.index).astype("float64")
    trials["seconds"] = clock.reindex(pd.MultiIndex.from_frame(hits["epoch"].reset_index())).set_axis(hits.index)
    trials.loc[trials["epochs"] == 0, "seconds"] = 0.0  # reached before the first step
    return trials.reset_index(drop=True)


def to_target(table: pd.DataFrame) -> pd.DataFrame:
    """Per probe and problem of ``trials``: how many reached the target, median epochs and seconds with their ranges.

    In a median a miss is later than any hit; the median is NaN if more than half missed. Ranges are of hits alone.
    """
    groups, late = table.groupby(TRIAL[:2], sort=False), table.fillna({cost: np.inf for cost in COSTS})
    medians = late.groupby(TRIAL[:2], sort=False)[list(COSTS)].median()
    summary = pd.DataFrame({"reached": groups["epochs"].count(), "of": groups["seed"].count()})
    for cost in COSTS:
        summary[cost] = medians[cost].where(np.isfinite(medians[cost]))
        summary[[f"{cost} min", f"{cost} max"]] = groups[cost].agg(["min", "max"])
    summary = summary.reset_index()
    return summary.sort_values(["problem", "seconds"], kind="stable").reset_index(drop=True)


def profile(table: pd.DataFrame, cost: Cost) -> pd.DataFrame:
    """The steps of performance profiles of ``trials``: probe, ratio to the best of the same problem and seed, share.

    The share is of all trainings of the probe; a training that missed has no ratio. A problem and seed on which no
    probe reached the target is left out.
    """
    best = table.groupby(TRIAL[1:])[cost].transform("min")
    counted = table[best.notna()]
    ratio = (counted[cost] / best[best.notna()]).where(counted[cost] > best[best.notna()], 1.0)
    steps = counted.assign(ratio=ratio.where(counted[cost].notna())).sort_values("ratio", kind="stable")
    steps["share"] = steps.groupby("probe").cumcount() + 1
    steps["share"] /= steps["probe"].map(counted["probe"].value_counts())
    reached = steps[steps["ratio"].notna()]
    return reached[["probe", "ratio", "share"]].sort_values(["probe", "ratio", "share"]).reset_index(drop=True)


def _epochs(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The rows of a metric by epoch, with labels of ``summary.contenders``."""
    chosen = (frame["metric"] == metric) & (frame["status"] == Status.OK) & frame["epoch"].notna()
    rows = frame[chosen]
    epochs = pd.DataFrame(
        {"probe": contenders(frame)[chosen], "problem": labels(rows, "problem"), "seed": rows["seed"]}
    )
    epochs = epochs.assign(cell_id=rows["cell_id"], epoch=rows["epoch"].astype("int64"), value=rows["value"])
    return epochs.sort_values("epoch", kind="stable")


def _sign(metric: str) -> int:
    return 1 if meaning(metric).better == "higher" else -1
