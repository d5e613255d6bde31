"""FNGD, Table II: time until ResNet-32 has 92.5 % on CIFAR-10.

``paper``: as published; rates and dampings are not reported and searched for, FNGD's alpha among those of Table V; nor
is the weight decay. ``default``: a surrogate, a narrow ResNet-8 on digits. ``small``: another, a ResNet-20 of a quarter
of the width on a tenth of CIFAR-10. Probes cover the weights only, for which the methods are published.
"""

from curvbench import Preset, Search, Suite, Training, probe, problem

PROBES = [probe("sgdm"), probe("kfac"), probe("shampoo"), probe("eva"), probe("fngd", stage="shared", gram="raw")]
SPARSE = {"epochs": 100, "stat_every": 10, "refresh_every": 100}

SUITE = Suite(
    "FNGD, Table II",
    {
        "default": Preset(
            [problem("resnet", depth=8, width=4)],
            PROBES,
            seeds=(0, 1, 2),
            training=Training(epochs=8, lr=0.1, schedule="step", target=0.92),
            tuned={"kfac": {"stat_every": 2, "refresh_every": 10}, "shampoo": {"stat_every": 2, "refresh_every": 10}},
            search=Search(
                {
                    "lr": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
                    "damping": (0.03, 0.3, 1.0),
                    "alpha": (0.001, 0.005, 0.01),
                },
                seeds=(10,),
                epochs=4,
            ),
            parameters="weights",
        ),
        "small": Preset(
            [problem("resnet", depth=20, width=4, dataset="cifar10")],
            PROBES,
            seeds=(0, 1, 2),
            training=Training(epochs=4, lr=0.1, schedule="step", share=0.1, target=0.3),
            tuned={"kfac": {"stat_every": 2, "refresh_every": 10}, "shampoo": {"stat_every": 2, "refresh_every": 10}},
            search=Search({"lr": (0.01, 0.03, 0.1, 0.3), "alpha": (0.001, 0.01)}, seeds=(10,), epochs=1),
            parameters="weights",
        ),
        "paper": Preset(
            [problem("resnet", depth=32, dataset="cifar10")],
            PROBES,
            seeds=(0, 1, 2),
            training=Training(
                epochs=200, lr=0.1, weight_decay=5e-4, schedule="step", augment="crop-flip", target=0.925
            ),
            tuned={"kfac": SPARSE, "shampoo": SPARSE, "eva": {"epochs": 100}, "fngd": {"epochs": 100}},
            search=Search(
                {
                    "lr": (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3),
                    "damping": (0.03, 0.3),
                    "alpha": (0.001, 0.003, 0.005, 0.008, 0.01),
                }
            ),
            parameters="weights",
        ),
    },
    original="paper",
)
