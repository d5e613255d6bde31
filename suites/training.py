"""Training with the probes that are measured, on scikit-learn's digits: accuracy, loss and seconds of each.

``default``: a narrow ResNet-20; ``quick``: an MLP. Learning rates and dampings come from a coarse look at another seed,
no search: they let every method work and show none at its best. ``-t target=0.95`` asks how long each one takes.
Training amplifies rounding, so that another machine trains another network: numbers are medians of seeds with a range.
"""

from curvbench import Preset, Suite, Training, probe, problem

CLIPPED = {"lr": 0.3, "kl_clip": 1e-2}
SPARSE = {"stat_every": 5, "refresh_every": 5}
AVERAGED = {**CLIPPED, **SPARSE, "ema": 0.9}

SUITE = Suite(
    "Training on digits",
    {
        "quick": Preset(
            [problem("mlp", depth=2)],
            [
                probe("sgdm"),
                probe("adam"),
                probe("kfac", damping=0.3),
                probe("eva", damping=0.3),
                probe("shampoo"),
                probe("lngd"),
                probe("fngd", stage="shared"),
                probe("ginger", damping=0.1),
            ],
            seeds=(0, 1),
            training=Training(epochs=3, lr=0.1, batch=64, schedule="cosine"),
            tuned={
                "adam": {"lr": 0.03},
                "kfac": AVERAGED,
                "eva": CLIPPED,
                "lngd": {"lr": 0.01},
                "fngd": {"lr": 1.0},
                "ginger": CLIPPED,
            },
        ),
        "default": Preset(
            [problem("resnet", width=8)],
            [
                probe("sgdm"),
                probe("adam"),
                probe("kfac", damping=0.1),
                probe("ekfac", damping=0.1),
                probe("tkfac", damping=0.1),
                probe("eva", damping=0.3),
                probe("shampoo"),
                probe("lngd"),
                probe("fngd", stage="shared"),
                probe("ginger", damping=0.1),
                probe("qng"),
                probe("mbf", damping=0.1),
            ],
            seeds=(0, 1, 2),
            training=Training(epochs=3, lr=0.1, batch=64, schedule="cosine"),
            tuned={
                "adam": {"lr": 0.01},
                "kfac": AVERAGED,
                "ekfac": {**CLIPPED, **SPARSE},
                "tkfac": AVERAGED,
                "eva": CLIPPED,
                "shampoo": {"refresh_every": 5},
                "lngd": {"lr": 0.03, "kl_clip": 1e-2, **SPARSE},
                "fngd": {"lr": 1.0},
                "ginger": CLIPPED,
                "mbf": AVERAGED,
            },
        ),
    },
)
