"""FNGD, Figure 9: the parts of a step beside those of a step of gradient descent, once the first epoch is over.

``steps``: steps of ResNet-32 on CIFAR-10 and of a Transformer on Multi30k, clocked in turn with SGD's and divided by
the profiler. ``default``: a surrogate, small ones on digits. Probes cover the weights only, for which the methods are
published.
"""

from curvbench import Preset, Suite, Training, probe, problem

PROBES = [probe("sgdm"), probe("fngd", stage="shared", gram="raw")]

SUITE = Suite(
    "FNGD, Figure 9",
    {
        "default": Preset(
            [problem("resnet", depth=32, width=4), problem("transformer")],
            PROBES,
            seeds=(0, 1, 2),
            training=Training(epochs=1, lr=1e-3, batch=64, paced=5),
            parameters="weights",
        ),
        "steps": Preset(
            [
                problem("resnet", depth=32, dataset="cifar10"),
                problem(
                    "transformer",
                    task="multi30k",
                    width=512,
                    hidden=2048,
                    heads=8,
                    depth=6,
                    vocabulary=10_000,
                    length=32,
                ),
            ],
            PROBES,
            seeds=(0, 1, 2),
            training=Training(epochs=1, lr=1e-3, batch=64, paced=10),
            parameters="weights",
        ),
    },
    original="steps",
)
