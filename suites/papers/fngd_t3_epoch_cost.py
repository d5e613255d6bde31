"""FNGD, Table III: time per epoch over that of SGD, the first epoch apart.

``paper``: VGG-11 and ResNet-32 on CIFAR-10, ResNet-18 and -34 on CIFAR-100, three epochs. ``default``: a surrogate,
narrow networks on digits; so small, what is measured is mostly the cost of calls. Probes cover the weights only, for
which the methods are published.
"""

from curvbench import Preset, Suite, Training, probe, problem

PROBES = [
    probe("sgdm"),
    probe("kfac", damping=0.3),
    probe("shampoo"),
    probe("eva"),
    probe("fngd", stage="shared", gram="raw"),
]
SPARSE = {"stat_every": 10, "refresh_every": 100}

SUITE = Suite(
    "FNGD, Table III",
    {
        "default": Preset(
            [
                problem("vgg", width=8),
                problem("resnet", depth=32, width=4),
                problem("resnet", depth=18, width=4),
                problem("resnet", depth=34, width=4),
            ],
            PROBES,
            seeds=(0, 1, 2),
            training=Training(epochs=3, lr=1e-3),
            tuned={"kfac": SPARSE, "shampoo": SPARSE},
            parameters="weights",
        ),
        "paper": Preset(
            [
                problem("vgg", dataset="cifar10"),
                problem("resnet", depth=32, dataset="cifar10"),
                problem("resnet", depth=18, dataset="cifar100"),
                problem("resnet", depth=34, dataset="cifar100"),
            ],
            PROBES,
            seeds=(0, 1, 2),
            training=Training(epochs=3, lr=1e-3, augment="crop-flip"),
            tuned={"kfac": SPARSE, "shampoo": SPARSE},
            parameters="weights",
        ),
    },
    original="paper",
)
