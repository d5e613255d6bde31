"""How a model is trained: the loop, snapshots, and parts of a data set."""

from curvbench.training.drift import drifted
from curvbench.training.loop import (
    EVALUATION_TERMS,
    Course,
    Epoch,
    Forward,
    Progress,
    evaluate,
    hits,
    refuse_targets,
    seeded,
    train,
)
from curvbench.training.parts import StoredInputs, held_out, placed, reduced
from curvbench.training.snapshots import CALIBRATION_BATCHES, batch, other_batch, snapshot

__all__ = [
    "CALIBRATION_BATCHES",
    "EVALUATION_TERMS",
    "Course",
    "Epoch",
    "Forward",
    "Progress",
    "StoredInputs",
    "batch",
    "drifted",
    "evaluate",
    "held_out",
    "hits",
    "other_batch",
    "placed",
    "reduced",
    "refuse_targets",
    "seeded",
    "snapshot",
    "train",
]
