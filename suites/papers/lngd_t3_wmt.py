"""LNGD, Table 3: steps and time until Transformer-Big has BLEU 32 on WMT English-German.

``paper``: as published, in the user's folder of WMT; vocabulary and length are not reported. ``default``: a surrogate,
a tiny Transformer that completes digits, judged by the accuracy of its tokens, in which mu is searched for.
"""

from curvbench import Preset, Search, Suite, Training, probe, problem

PROBES = [probe("sgdm"), probe("adam"), probe("kfac", fisher_type="mc"), probe("lngd", layer_rate="corrected")]
POLYNOMIAL = {"schedule": "polynomial", "power": 4.0}
SPARSE = {**POLYNOMIAL, "stat_every": 500, "refresh_every": 500}
OFTEN = {"schedule": "polynomial", "stat_every": 5, "refresh_every": 5}

SUITE = Suite(
    "LNGD, Table 3",
    {
        "default": Preset(
            [problem("transformer")],
            PROBES,
            seeds=(0, 1, 2),
            training=Training(epochs=5, lr=0.1, batch=64, schedule="cosine-variant", target=0.54),
            tuned={"adam": {"schedule": "polynomial"}, "kfac": {**OFTEN, "ema": 0.9}, "lngd": OFTEN},
            search=Search(
                {
                    "lr": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
                    "damping": (0.03, 0.3, 1.0),
                    "mu": (1e-8, 1e-2),
                },
                seeds=(10,),
                epochs=3,
            ),
        ),
        "paper": Preset(
            [
                problem(
                    "transformer",
                    task="wmt14",
                    width=1024,
                    hidden=4096,
                    heads=16,
                    depth=6,
                    vocabulary=37_000,
                    length=128,
                )
            ],
            PROBES,
            seeds=range(5),
            training=Training(
                epochs=6,  # 100,000 steps of 256 sentences are 5.7 epochs of the 4.5 million
                lr=0.1,
                batch=256,
                weight_decay=0.004,
                schedule="cosine-variant",
                target=32.0,
                metric="test.bleu",
            ),
            tuned={"adam": POLYNOMIAL, "kfac": {**SPARSE, "ema": 0.95}, "lngd": SPARSE},
            search=Search(
                {
                    "lr": (1e-4, 1e-3, 1e-2, 0.1, 1.0),
                    "damping": (1e-6, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3),
                }
            ),
        ),
    },
    original="paper",
)
