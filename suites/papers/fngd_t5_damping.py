"""FNGD, Table V: accuracy of FNGD and K-FAC over five dampings, which are not the same quantity.

``paper``: ResNet-18 on CIFAR-100; rates are not reported. ``default``: a surrogate, a narrow ResNet-8 on digits. Probes
cover the weights only, for which the methods are published.
"""

from curvbench import Preset, Search, Suite, Training, probe, problem

VALUES = (0.01, 0.008, 0.005, 0.003, 0.001)
PROBES = [probe("fngd", stage="shared", gram="raw", alpha=v) for v in VALUES] + [
    probe("kfac", damping=v) for v in VALUES
]
SPARSE = {"stat_every": 10, "refresh_every": 100}

SUITE = Suite(
    "FNGD, Table V",
    {
        "default": Preset(
            [problem("resnet", depth=8, width=4)],
            PROBES,
            seeds=(0, 1, 2),
            training=Training(epochs=5, lr=0.1, schedule="step"),
            tuned={"kfac": {"stat_every": 2, "refresh_every": 10}},
            search=Search({"lr": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)}, seeds=(10,), epochs=3),
            parameters="weights",
        ),
        "paper": Preset(
            [problem("resnet", depth=18, dataset="cifar100")],
            PROBES,
            seeds=(0, 1, 2),
            training=Training(epochs=100, lr=0.1, weight_decay=5e-4, schedule="step", augment="crop-flip"),
            tuned={"kfac": SPARSE},
            search=Search({"lr": (1e-3, 1e-2, 0.1, 1.0)}),
            parameters="weights",
        ),
    },
    original="paper",
)
