"""Ginger, Table 1: accuracy and training loss by rank, against QNG and first-order methods.

``paper``: ResNet-18 and -50 on CIFAR-100; gamma is not reported. ``default``: a surrogate, narrow networks of these
depths on digits and four of the six ranks.
"""

from curvbench import Preset, Search, Suite, Training, probe, problem

RANKS = (1, 2, 4, 8, 16, 32)
FEW = (1, 4, 16, 32)


def _probes(ranks):
    return [
        probe("sgdm"),
        probe("adam", beta2=0.99),
        *(probe("qng", memory=rank) for rank in ranks),
        *(probe("ginger", rank=rank, damping=0.01) for rank in ranks),
    ]


SUITE = Suite(
    "Ginger, Table 1",
    {
        "default": Preset(
            [problem("resnet", depth=18, width=4)],
            _probes(FEW),
            seeds=(0, 1, 2),
            training=Training(epochs=4, lr=0.1),
            search=Search({"lr": (1e-4, 1e-3, 0.01, 0.1)}, seeds=(10,), epochs=2),
        ),
        "paper": Preset(
            [
                problem("resnet", depth=18, dataset="cifar100"),
                problem("resnet", depth=50, dataset="cifar100"),
            ],
            _probes(RANKS),
            seeds=(0, 1, 2),
            training=Training(epochs=200, lr=0.1, augment="crop-flip"),
            search=Search({"lr": (0.1, 0.5, 0.01, 0.05, 0.001, 0.005, 1e-4, 5e-4)}),
        ),
    },
    original="paper",
)
