"""FNGD, Figure 3: the normalised U'U of adjacent and of distant layers of ResNet-32.

``paper``: CIFAR-10, a batch of 128, after one epoch of SGD; the paper says neither which four layers it shows nor when,
and here are all pairs. ``default``: a surrogate, a narrow ResNet-32 on digits at initialisation. The layers are those
with weights, for which the method is published.
"""

from curvbench import Preset, Suite, probe, problem

METERS = ("likeness",)

SUITE = Suite(
    "FNGD, Figure 3",
    {
        "default": Preset(
            [problem("resnet", depth=32, width=4)],
            [probe("fngd")],
            seeds=(0, 1, 2),
            meters=METERS,
            parameters="weights",
        ),
        "paper": Preset(
            [problem("resnet", depth=32, dataset="cifar10", samples=128, epochs=1)],
            [probe("fngd")],
            seeds=(0, 1, 2),
            meters=METERS,
            parameters="weights",
        ),
    },
    original="paper",
)
