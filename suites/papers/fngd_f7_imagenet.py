"""FNGD, Figure 7: time until ResNet-50 has 75 % on ImageNet.

``paper``: in the user's folder of ImageNet; rates and dampings are not reported and searched for. ``default``: a
surrogate, a narrow ResNet-20 on digits. Probes cover the weights only, for which the methods are published.
"""

from curvbench import Preset, Search, Suite, Training, probe, problem

PROBES = [probe("sgdm"), probe("kfac"), probe("eva"), probe("fngd", stage="shared", gram="raw")]
SPARSE = {"epochs": 55, "stat_every": 10, "refresh_every": 100}

SUITE = Suite(
    "FNGD, Figure 7",
    {
        "default": Preset(
            [problem("resnet", depth=20, width=4)],
            PROBES,
            seeds=(0, 1, 2),
            training=Training(epochs=6, lr=0.1, schedule="step", target=0.9),
            tuned={"kfac": {"stat_every": 2, "refresh_every": 10}},
            search=Search({"lr": (0.01, 0.03, 0.1, 0.3, 1.0), "damping": (0.03, 0.3)}, seeds=(10,), epochs=3),
            parameters="weights",
        ),
        "paper": Preset(
            [problem("resnet", depth=50, dataset="imagenet")],
            PROBES,
            seeds=(0, 1, 2),
            training=Training(
                epochs=90, lr=0.1, weight_decay=5e-5, schedule="cosine", warmup=5, augment="crop-flip", target=0.75
            ),
            tuned={"kfac": SPARSE, "eva": {"epochs": 55}, "fngd": {"epochs": 55}},
            search=Search(
                {"lr": (1e-3, 1e-2, 0.1, 1.0), "damping": (0.03, 0.3), "alpha": (0.001, 0.003, 0.005, 0.008, 0.01)}
            ),
            parameters="weights",
        ),
    },
    original="paper",
)
