"""FNGD, Table I: how statistics, inverse, precondition and memory grow with the width D of a layer and the batch M.

The table names no sizes, so that any are the original. FNGD's row is that of its later epochs. Probes cover the weights
only, for which the methods are published.
"""

from curvbench import Preset, Suite, probe, problem

SIZES = [(64, 32), (128, 32), (256, 32), (512, 32), (32, 64), (32, 128), (32, 256)]
TABLE = Preset(
    [problem("chain", width=width, samples=samples, depth=1) for width, samples in SIZES],
    [probe("kfac"), probe("eva"), probe("shampoo", updates=2), probe("fngd", stage="shared")],
    dtype="float64",
    meters=("flops", "memory"),
    parameters="weights",
)

SUITE = Suite("FNGD, Table I", {"default": TABLE, "paper": TABLE}, summary="growth", original="paper")
