"""Ginger, Tables 3 and 4: accuracy and training loss over alpha and rank.

``paper``: ResNet-18 on CIFAR-100, the rest as Table 1. ``default``: a surrogate, a narrow ResNet-18 on digits.
"""

from itertools import product

from curvbench import Preset, Search, Suite, Training, probe, problem

PROBES = [
    probe("ginger", rank=rank, decay=decay, damping=0.01) for decay, rank in product((0.9, 0.99, 0.999), (2, 4, 8))
]

SUITE = Suite(
    "Ginger, Tables 3 and 4",
    {
        "default": Preset(
            [problem("resnet", depth=18, width=4)],
            PROBES,
            seeds=(0, 1, 2),
            training=Training(epochs=4, lr=0.1),
            search=Search({"lr": (1e-4, 1e-3, 0.01, 0.1)}, seeds=(10,), epochs=2),
        ),
        "paper": Preset(
            [problem("resnet", depth=18, dataset="cifar100")],
            PROBES,
            seeds=(0, 1, 2),
            training=Training(epochs=200, lr=0.1, augment="crop-flip"),
            search=Search({"lr": (0.1, 0.5, 0.01, 0.05, 0.001, 0.005, 1e-4, 5e-4)}),
        ),
    },
    original="paper",
)
