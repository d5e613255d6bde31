"""CW-NGD, Table I: epochs until a small convolutional network fits MNIST.

``paper``: batch, rates, momenta and dampings as published, with the baselines' decays, which are of a step; the
network's sizes stand in a picture alone. Four channels and 16 hidden units train for 50 of the paper's 100 epochs, and
``wide``, 16 channels and 64 units, for the two epochs that have claims of their own. ``default``: a surrogate on
digits, ``small``: another on a tenth of the images in about as many batches, with rates to start from that are searched
for, and for K-FAC a momentum of 0.9: 0.98 averages over more steps than a trial has. All in float64: CW-NGD's damping
of 1e-4 is below the rounding of a sum over the batch in float32. Probes cover the weights only, for which the methods
are published.
"""

from curvbench import Decay, Preset, Search, Suite, Training, probe, problem

PROBES = [probe("cwngd"), probe("adam", beta1=0.97, epsilon=0.183), probe("kfac", damping=0.289)]
ADAM = {"decay": (Decay("lr", 0.9994, 1e-4), Decay("epsilon", 0.9998, 1e-8))}
KFAC = {"decay": (Decay("lr", 0.9989, 1e-4), Decay("damping", 0.9997, 1e-6)), "momentum": 0.9}
PUBLISHED = {"adam": {**ADAM, "lr": 2.24}, "kfac": {**KFAC, "lr": 0.23, "momentum": 0.98}}

SUITE = Suite(
    "CW-NGD, Table I",
    {
        "default": Preset(
            [problem("cnn", channels=4, hidden=16)],
            PROBES,
            seeds=(0, 1, 2),
            dtype="float64",
            training=Training(epochs=30, lr=1.0, batch=256, momentum=0.0),
            tuned={"adam": ADAM, "kfac": KFAC},
            search=Search({"lr": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)}, seeds=(10,), epochs=6),
            parameters="weights",
        ),
        "small": Preset(
            [problem("cnn", dataset="mnist", channels=4, hidden=16)],
            PROBES,
            seeds=(0, 1, 2),
            dtype="float64",
            training=Training(epochs=5, lr=1.0, batch=128, share=0.1, momentum=0.0),
            tuned={"adam": ADAM, "kfac": KFAC},
            search=Search({"lr": (0.003, 0.01, 0.03, 0.1, 1.0, 3.0, 10.0, 30.0)}, seeds=(10,), epochs=1),
            parameters="weights",
        ),
        "paper": Preset(
            [problem("cnn", dataset="mnist", channels=4, hidden=16)],
            PROBES,
            seeds=(0, 1, 2),
            dtype="float64",
            training=Training(epochs=50, lr=1.0, batch=1024, momentum=0.0),
            tuned=PUBLISHED,
            parameters="weights",
        ),
        "wide": Preset(
            [problem("cnn", dataset="mnist", channels=16, hidden=64)],
            PROBES,
            seeds=(0, 1, 2),
            dtype="float64",
            training=Training(epochs=2, lr=1.0, batch=1024, momentum=0.0),
            tuned=PUBLISHED,
            parameters="weights",
        ),
    },
    original=("paper", "wide"),
)
