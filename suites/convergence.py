"""Methods that learn over steps, at frozen parameters, as a function of the number of updates T.

An update sees ``batch_size`` of the 128 samples, drawn anew in random order, as a step of training would: T counts
batches. Ginger and QNG draw labels as well. What they come to, and beside which bound they stand (rank 16 and decay
0.99 where none is named):

- Ginger follows the running average G_T of the outer products of batch gradients, whose mean is the exact Fisher once
  it is corrected for its start at zero (``bc``). It keeps the noise of about (1 + decay) / (1 - decay) gradients, and
  leaves out what its rank cannot hold, at least the error of ``eigen`` at that rank. With rank >= T it is G_T itself.
- QNG adds up the last ``memory`` gradients without decay, above a floor decay^n I that alone is many times the Fisher
  of a trained network: ``floor=False`` compares what it has learned. Its step always has the floor.
- Adam squares and Shampoo multiplies gradients with the labels of the data, and Shampoo's sums grow with T: only the
  scale-optimal error and the direction mean something. Adam's least error is that of ``diag``. Shown the whole batch,
  as without ``batch_size``, Adam sees one gradient all the time, and its corrected moment does not depend on T.
- L-BFGS approximates the Hessian of the whole batch, not the Fisher, along steps of its own. It takes no pair where
  the curvature is negative, and one where it is nearly zero can make its matrix many times too large.
- FNGD has exact coefficients in its first epoch, ``batches`` updates, and shares their averages from then on: its step
  becomes that of gradient descent with a rate per layer (``direction.gradient``). An update is one order of the batch.

``curvbench.analysis.sweep.tidy`` gives the rows with rank, decay and updates as columns.
"""

from collections.abc import Sequence
from typing import Any

from curvbench import Preset, Probe, Suite, probe, problem

STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500)
FEWER = (1, 5, 20, 100, 500)
STREAM = {"batch_size": 32}
CORRECTED = {"bc": True, **STREAM}
LEARNED = {"floor": False, **STREAM}


def curve(name: str, steps: Sequence[int], **hyperparameters: Any) -> list[Probe]:
    """One probe per number of updates."""
    return [probe(name, updates=count, **hyperparameters) for count in steps]


def fngd(steps: Sequence[int], samples: int) -> list[Probe]:
    """Ten updates of exact coefficients, then shared ones; the batch in another order each time."""
    return curve("fngd", steps, stage="shared", batches=10, batch_size=samples)


PROBES = [
    *(probe("eigen", rank=rank) for rank in (1, 4, 16)),
    *(probe(name) for name in ("layer", "kpsvd", "diag", "identity")),
    *(p for rank in (1, 4, 16) for p in curve("ginger", STEPS, rank=rank, **CORRECTED)),
    *curve("ginger", (1, 5, 20, 100), rank=100, **CORRECTED),
    *(p for decay in (0.9, 0.999) for p in curve("ginger", FEWER, decay=decay, **CORRECTED)),
    *curve("ginger", FEWER, **STREAM),
    *(p for form in ("fix_a", "fix_b", "printed") for p in curve("ginger", FEWER, update_form=form, **CORRECTED)),
    *(p for memory in (1, 4, 16) for p in curve("qng", STEPS, memory=memory, **LEARNED)),
    *curve("qng", FEWER, **STREAM),
    *curve("qng", FEWER, recursion="sum", **LEARNED),
    *curve("adam", FEWER, **STREAM),
    *curve("shampoo", FEWER, **STREAM),
    *curve("lbfgs", (1, 2, 5, 10, 20, 50), memory=50),
    *fngd((1, 2, 5, 10, 20, 50), samples=128),
]
QUICK = [
    *(probe("eigen", rank=rank) for rank in (4, 16)),
    *(p for rank in (4, 16) for p in curve("ginger", (1, 10, 100), rank=rank, **CORRECTED)),
    *(p for memory in (4, 16) for p in curve("qng", (1, 10, 100), memory=memory, **LEARNED)),
    *curve("adam", (1, 10, 100), **STREAM),
    *fngd((10, 20), samples=64),
]

SUITE = Suite(
    "Methods that learn over steps: error against updates, rank and decay",
    {
        "quick": Preset([problem("mlp", samples=64, epochs=2)], QUICK, dtype="float64"),
        "default": Preset([problem("mlp", epochs=10)], PROBES, dtype="float64"),
    },
)
