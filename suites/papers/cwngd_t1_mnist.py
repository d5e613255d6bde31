"""CW-NGD, Table I: epochs until a small convolutional network fits MNIST.

``paper``: batch, rates and dampings as published, without the decay of the baselines' damping and epsilon; the
network's sizes stand in a picture alone, so that they are curvbench's. ``mnist``: the same for five epochs.
``default``: a surrogate on digits, in float64 for a sum over the batch is damped by 1e-4, with rates that are searched
for.
"""

from curvbench import Preset, Search, Suite, Training, probe, problem

PROBES = [probe("cwngd"), probe("adam", epsilon=0.183), probe("kfac", damping=0.289)]
FITTED = {"metric": "train.accuracy", "target": 1.0, "momentum": 0.0}
TUNED = {"cwngd": {"lr": 1.0}, "adam": {"lr": 2.24}, "kfac": {"lr": 0.23, "momentum": 0.98}}

SUITE = Suite(
    "CW-NGD, Table I",
    {
        "default": Preset(
            [problem("cnn")],
            [probe("cwngd"), probe("adam"), probe("kfac", damping=0.289)],
            seeds=(0, 1, 2),
            dtype="float64",
            training=Training(epochs=30, lr=1.0, batch=256, **FITTED),
            tuned={"kfac": {"momentum": 0.9}},
            search=Search({"lr": (0.01, 0.03, 0.1, 0.3, 1.0, 10.0, 100.0)}, seeds=(10,), epochs=6),
        ),
        "mnist": Preset(
            [problem("cnn", dataset="mnist", channels=16, hidden=64)],
            PROBES,
            seeds=(0, 1, 2),
            training=Training(epochs=5, lr=1.0, batch=1024, **FITTED),
            tuned=TUNED,
        ),
        "paper": Preset(
            [problem("cnn", dataset="mnist", channels=16, hidden=64)],
            PROBES,
            seeds=(0, 1, 2),
            training=Training(epochs=100, lr=1.0, batch=1024, **FITTED),
            tuned=TUNED,
        ),
    },
    original="paper",
)
