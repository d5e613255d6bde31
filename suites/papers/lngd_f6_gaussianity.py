"""LNGD, Figure 6: how far the inputs of layers of ResNet-18 are from a Gaussian and from its positive part.

``paper``: CIFAR-10 at initialisation; the paper says neither whether its network is trained nor which two layers it
shows, and here are all. ``default``: a surrogate, a ResNet-20 on digits at initialisation.
"""

from curvbench import Preset, Suite, probe, problem

METERS = ("inputs",)

SUITE = Suite(
    "LNGD, Figure 6",
    {
        "default": Preset(
            [problem("resnet", samples=512)],
            [probe("lngd")],
            seeds=(0, 1, 2),
            meters=METERS,
            parameters="weights",
        ),
        "paper": Preset(
            [problem("resnet", depth=18, dataset="cifar10", samples=1024)],
            [probe("lngd")],
            seeds=(0, 1, 2),
            meters=METERS,
            parameters="weights",
        ),
    },
    original="paper",
)
