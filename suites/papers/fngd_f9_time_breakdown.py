"""FNGD, Figure 9: what a step takes, in its phases, over a plain gradient step.

``paper``: ResNet-32 on CIFAR-10 and a Transformer on Multi30k. ``default``: a surrogate, small ones on digits.
"""

from curvbench import Preset, Suite, probe, problem

PROBES = [probe("fngd", stage="shared"), probe("fngd"), probe("sgdm"), probe("adam")]
METERS = ("clock", "flops")

SUITE = Suite(
    "FNGD, Figure 9",
    {
        "default": Preset(
            [problem("resnet", depth=32, width=4, samples=64), problem("transformer", samples=64)],
            PROBES,
            meters=METERS,
        ),
        "paper": Preset(
            [
                problem("resnet", depth=32, dataset="cifar10", samples=128),
                problem(
                    "transformer",
                    task="multi30k",
                    width=512,
                    hidden=2048,
                    heads=8,
                    depth=6,
                    vocabulary=10_000,
                    length=32,
                    samples=64,
                ),
            ],
            PROBES,
            meters=METERS,
        ),
    },
    original="paper",
)
