"""FNGD, Figure 4: coefficients shared from the first epoch on, against natural gradients that are solved anew.

``paper``: ResNet-32 on CIFAR-10; rates are not reported. ``steps``: the steps of this training, clocked in turn with
SGD's. ``default``: a surrogate, a narrow ResNet-8 on digits. Probes cover the weights only, for which the methods are
published.
"""

from curvbench import Preset, Search, Suite, Training, probe, problem

PROBES = [probe("fngd", stage="shared", gram="raw"), probe("fngd", gram="raw")]

SUITE = Suite(
    "FNGD, Figure 4",
    {
        "default": Preset(
            [problem("resnet", depth=8, width=4)],
            PROBES,
            seeds=(0, 1, 2),
            training=Training(epochs=6, lr=0.1, schedule="step"),
            search=Search({"lr": (0.01, 0.03, 0.1, 0.3, 1.0)}, seeds=(10,), epochs=3),
            parameters="weights",
        ),
        "paper": Preset(
            [problem("resnet", depth=32, dataset="cifar10")],
            PROBES,
            seeds=(0, 1, 2),
            training=Training(epochs=100, lr=0.1, weight_decay=5e-4, schedule="step", augment="crop-flip"),
            search=Search({"lr": (1e-3, 1e-2, 0.1, 1.0)}),
            parameters="weights",
        ),
        "steps": Preset(
            [problem("resnet", depth=32, dataset="cifar10")],
            PROBES,
            seeds=(0, 1, 2),
            training=Training(epochs=1, lr=1e-3, augment="crop-flip", paced=10),
            parameters="weights",
        ),
    },
    original=("paper", "steps"),
)
