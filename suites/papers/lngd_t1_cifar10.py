"""LNGD, Tables 1 and 6: epochs and time until ResNet-18 has 91 % on CIFAR-10.

``paper``: as published; the grid of dampings is K-FAC's there, and no other setting is reported. ``steps``: the steps
of these trainings, clocked in turn with SGD's; K-FAC and its relatives draw their labels once, as public code does.
``default``: a surrogate, a narrow ResNet-8 on digits, in which mu is searched for. Probes cover the weights only, for
which the methods are published.
"""

from curvbench import Preset, Search, Suite, Training, probe, problem

PROBES = [
    *(probe(name) for name in ("sgdm", "adam", "kfac", "ekfac", "tkfac")),
    probe("ngplus", fisher_type="empirical", damping_rule="paper"),
    probe("lngd", layer_rate="corrected"),
]
SPARSE = {"stat_every": 100, "refresh_every": 100}
AVERAGED = {**SPARSE, "ema": 0.95}
OFTEN = {"stat_every": 5, "refresh_every": 5}

SUITE = Suite(
    "LNGD, Tables 1 and 6",
    {
        "default": Preset(
            [problem("resnet", depth=8, width=4)],
            PROBES,
            seeds=(0, 1, 2),
            training=Training(epochs=6, lr=0.1, schedule="cosine", target=0.92),
            tuned={
                "kfac": {**OFTEN, "ema": 0.9},
                "ekfac": OFTEN,
                "tkfac": {**OFTEN, "ema": 0.9},
                "ngplus": OFTEN,
                "lngd": OFTEN,
            },
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
            [problem("resnet", depth=18, dataset="cifar10")],
            PROBES,
            seeds=range(5),
            training=Training(
                epochs=200,
                lr=0.1,
                batch=256,
                weight_decay=0.004,
                schedule="step",
                at=(0.2, 0.4, 0.6, 0.8),
                augment="crop-flip",
                target=0.91,
            ),
            tuned={"kfac": AVERAGED, "ekfac": SPARSE, "tkfac": AVERAGED, "ngplus": SPARSE, "lngd": SPARSE},
            search=Search(
                {
                    "lr": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0),
                    "damping": (1e-6, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3),
                }
            ),
            parameters="weights",
        ),
        "steps": Preset(
            [problem("resnet", depth=18, dataset="cifar10")],
            [
                *(probe(name, fisher_type="mc") for name in ("kfac", "ekfac", "tkfac")),
                *PROBES[-2:],
                probe("lngd", layer_rate="printed"),
            ],
            seeds=(0, 1, 2),
            training=Training(epochs=1, lr=1e-3, batch=256, weight_decay=0.004, augment="crop-flip", paced=4),
            tuned={"kfac": AVERAGED, "ekfac": SPARSE, "tkfac": AVERAGED, "ngplus": SPARSE, "lngd": SPARSE},
            parameters="weights",
        ),
    },
    original=("paper", "steps"),
)
