"""ResNet-32, ResNet-50, VGG-11 and a Transformer, for 10, 17, 100 and 1,000 classes.

``default``: on scikit-learn's digits, all but ResNet-32 narrower than published; ``quick``: narrower still; ``full``:
the published sizes on CIFAR-10 and CIFAR-100, and a Transformer of half FNGD's width and depth on Multi30k;
``sampled``: 1,000 classes, against the Monte-Carlo Fisher and with sampled probes.
"""

from curvbench import Preset, Suite, probe, problem

PROBES = [probe("diag"), probe("kfac"), probe("ekfac"), probe("lngd"), probe("eva")]
SAMPLED = [*(probe(name, fisher_type="mc") for name in ("diag", "kfac", "ekfac")), probe("lngd"), probe("eva")]

QUICK = [
    problem("resnet", depth=32, width=4, samples=4),
    problem("resnet", depth=50, width=2, samples=4),
    problem("vgg", width=4, samples=4),
    problem("transformer", length=2, samples=4),
]
DEFAULT = [
    problem("resnet", depth=32, samples=16),
    problem("resnet", depth=50, width=8, samples=8),
    problem("vgg", width=16, samples=16),
    problem("vgg", width=16, samples=16, batchnorm=False),
    problem("transformer", width=32, hidden=64, heads=4, depth=2, length=4, samples=8),
    problem("resnet", outputs=100, width=8, samples=4),
]
# N such that the exact Fisher is planned with at most 10 GB: what a probe collects itself comes on top.
FULL = [
    problem("resnet", depth=32, dataset="cifar10", samples=128),
    problem("resnet", depth=50, dataset="cifar10", samples=32),
    problem("vgg", dataset="cifar10", samples=128),
    problem("vgg", dataset="cifar10", samples=128, batchnorm=False),
    problem("resnet", depth=18, dataset="cifar100", samples=16),
    problem("resnet", depth=50, dataset="cifar100", samples=4),
    problem("vgg", dataset="cifar100", samples=32),
    problem(
        "transformer", task="multi30k", width=256, hidden=1024, heads=8, depth=3, vocabulary=100, length=8, samples=4
    ),
]
# 1,000 German words are classes that occur; of the heads of the ResNets only 10 and 100 outputs are ever a label.
THOUSAND = [
    problem("resnet", depth=8, outputs=1000, mc_samples=16, samples=16),
    problem("resnet", depth=18, dataset="cifar100", outputs=1000, mc_samples=16, samples=32),
    problem(
        "transformer", task="multi30k", width=512, hidden=2048, heads=8, depth=6, length=16, mc_samples=16, samples=16
    ),
]

SUITE = Suite(
    "Residual, plain and attention networks, and up to 1,000 classes",
    {
        "quick": Preset(QUICK, [probe("diag"), probe("kfac"), probe("eva")]),
        "default": Preset(DEFAULT, PROBES),
        "full": Preset(FULL, PROBES),
        "sampled": Preset(THOUSAND, SAMPLED),
    },
)
