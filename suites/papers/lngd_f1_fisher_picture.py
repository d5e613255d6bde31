"""LNGD, Figure 1: its Fisher and the exact one in the second layer of an MLP.

``paper``: MNIST of 14 x 14 pixels, trained, but by SGD: a snapshot is no method's. ``default``: a surrogate on digits.
Probes cover the weights only, for which the methods are published.
"""

from curvbench import Preset, Suite, probe, problem

PROBES = [probe("lngd"), probe("kfac"), probe("layer")]
METERS = ("error",)

SUITE = Suite(
    "LNGD, Figure 1",
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
