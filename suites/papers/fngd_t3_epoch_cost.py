"""FNGD, Table III: time per epoch over that of SGD, the first epoch apart.

``steps``: VGG-11 and ResNet-32 on CIFAR-10, ResNet-18 and -34 on CIFAR-100, batch 128: the steps of these trainings,
clocked in turn with SGD's. K-FAC draws its labels once, as public code does; with ten classes the type-2 Fisher, a
backward pass per class but one, is a row beside it.
``default``: a surrogate, narrow networks on digits; so small, what is clocked is mostly the cost of calls. Probes cover
the weights only, for which the methods are published.
"""

from curvbench import Preset, Suite, Training, probe, problem

PROBES = [
    probe("sgdm"),
    probe("kfac", damping=0.3, fisher_type="mc"),
    probe("shampoo"),
    probe("eva"),
    probe("fngd", stage="shared", gram="raw"),
]
TYPE_2 = probe("kfac")  # damping does not change what a step costs
SPARSE = {"stat_every": 10, "refresh_every": 100}
SMALL = [problem("vgg", dataset="cifar10"), problem("resnet", depth=32, dataset="cifar10")]
LARGE = [problem("resnet", depth=18, dataset="cifar100"), problem("resnet", depth=34, dataset="cifar100")]
TUNED = {"kfac": SPARSE, "shampoo": SPARSE}

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
            training=Training(epochs=1, lr=1e-3, paced=3),
            tuned=TUNED,
            parameters="weights",
        ),
        "steps": Preset(
            SMALL + LARGE,
            PROBES,
            seeds=(0, 1, 2),
            pairs=[(problem, TYPE_2) for problem in SMALL],
            training=Training(epochs=1, lr=1e-3, augment="crop-flip", paced=4),
            tuned=TUNED,
            parameters="weights",
        ),
    },
    original="steps",
)
