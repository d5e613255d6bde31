"""FNGD, Table IV: what sharing, the damping rule and the accelerated backward pass each bring.

``paper``: ResNet-32 on CIFAR-10 (its caption says ResNet-110) and ResNet-18 on CIFAR-100; rates are not reported.
``steps``: the steps of these trainings, clocked in turn with SGD's. ``default``: a surrogate, narrow networks of the
same depth on digits. Probes cover the weights only, for which the methods are published.
"""

from curvbench import Preset, Search, Suite, Training, probe, problem

PROBES = [
    probe("fngd", stage="shared", gram="raw"),
    probe("fngd", gram="raw"),
    probe("fngd", stage="shared", damping_rule="constant", constant=0.3),
    probe("fngd", stage="shared", gram="raw", accelerated=False),
]

SUITE = Suite(
    "FNGD, Table IV",
    {
        "default": Preset(
            [problem("resnet", depth=32, width=4), problem("resnet", depth=18, width=4)],
            PROBES,
            seeds=(0, 1, 2),
            training=Training(epochs=3, lr=0.1, schedule="step"),
            search=Search({"lr": (0.03, 0.1, 0.3, 1.0)}, seeds=(10,), epochs=2),
            parameters="weights",
        ),
        "paper": Preset(
            [problem("resnet", depth=32, dataset="cifar10"), problem("resnet", depth=18, dataset="cifar100")],
            PROBES,
            seeds=(0, 1, 2),
            training=Training(epochs=100, lr=0.1, weight_decay=5e-4, schedule="step", augment="crop-flip"),
            search=Search({"lr": (1e-3, 1e-2, 0.1, 1.0)}),
            parameters="weights",
        ),
        "steps": Preset(
            [problem("resnet", depth=32, dataset="cifar10"), problem("resnet", depth=18, dataset="cifar100")],
            [PROBES[0], PROBES[1], PROBES[3]],
            seeds=(0, 1, 2),
            training=Training(epochs=1, lr=1e-3, augment="crop-flip", paced=4),
            parameters="weights",
        ),
    },
    original=("paper", "steps"),
)
