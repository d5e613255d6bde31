"""LNGD, Table 2: epochs and time until ResNet-50 has 75.9 % on ImageNet.

``paper``: as published, in the user's folder of ImageNet; the grid of dampings is K-FAC's, and the exponent of the
polynomial schedule, tuned there, is 4. ``default``: a surrogate, a narrow ResNet-20 on digits, in which mu is searched
for. Probes cover the weights only, for which the methods are published.
"""

from curvbench import Preset, Search, Suite, Training, probe, problem

PROBES = [probe("sgdm"), probe("adam"), probe("kfac"), probe("lngd", layer_rate="corrected")]
POLYNOMIAL = {"schedule": "polynomial", "power": 4.0}
SPARSE = {**POLYNOMIAL, "epochs": 50, "stat_every": 500, "refresh_every": 500}
OFTEN = {"schedule": "polynomial", "stat_every": 5, "refresh_every": 5}

SUITE = Suite(
    "LNGD, Table 2",
    {
        "default": Preset(
            [problem("resnet", depth=20, width=4)],
            PROBES,
            seeds=(0, 1, 2),
            training=Training(epochs=5, lr=0.1, schedule="cosine-variant", target=0.9),
            tuned={"adam": {"schedule": "polynomial"}, "kfac": {**OFTEN, "ema": 0.9}, "lngd": OFTEN},
            search=Search(
                {
                    "lr": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
                    "damping": (0.003, 0.03, 0.3),
                    "mu": (1e-8, 1e-2),
                },
                seeds=(10,),
                epochs=3,
            ),
            parameters="weights",
        ),
        "paper": Preset(
            [problem("resnet", depth=50, dataset="imagenet")],
            PROBES,
            seeds=range(5),
            training=Training(
                epochs=80,
                lr=0.1,
                batch=256,
                weight_decay=0.004,
                schedule="cosine-variant",
                warmup=5,
                augment="crop-flip",
                target=0.759,
            ),
            tuned={
                "adam": POLYNOMIAL,
                "kfac": {**SPARSE, "ema": 0.95},
                "lngd": {**SPARSE, "warmup": 0.0},
            },
            search=Search(
                {
                    "lr": (1e-4, 1e-3, 1e-2, 0.1, 1.0),
                    "damping": (1e-6, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3),
                }
            ),
            parameters="weights",
        ),
    },
    original="paper",
)
