"""LNGD, Figure 5: K-FAC's and LNGD's Fisher beside the exact one.

The paper names neither network nor data. ``paper``: those of its Figure 1. ``default``: a surrogate on digits. Probes
cover the weights only, for which the methods are published.
"""

from curvbench import Preset, Suite, probe, problem

PROBES = [probe("kfac"), probe("lngd"), probe("layer")]
METERS = ("error",)

SUITE = Suite(
    "LNGD, Figure 5",
    {
        "default": Preset(
            [problem("mlp", epochs=5)],
            PROBES,
            seeds=(0, 1, 2),
            meters=METERS,
            parameters="weights",
        ),
        "paper": Preset(
            [problem("mlp", dataset="mnist14", epochs=5)],
            PROBES,
            seeds=(0, 1, 2),
            meters=METERS,
            parameters="weights",
        ),
    },
    original="paper",
)
