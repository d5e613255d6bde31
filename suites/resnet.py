"""Residual networks on images.

``default``: the methods that people compare, on ResNet-20 and scikit-learn's digits, at initialisation and trained;
``quick``: the same methods on a narrow ResNet-8; ``all``: every probe on the two networks; ``full``: every probe on
ResNet-18 with 11.2 million parameters and CIFAR-10.
"""

from curvbench import Preset, Suite, every_probe, probe, problem

VARIANTS = [
    probe("kfac", kfac_approx="reduce"),
    probe("kfac", fisher_type="mc"),
    probe("kfac", fisher_type="empirical"),
    probe("kfac", fisher_type="forward-only"),
    probe("kfac", damping_rule="factored"),
    probe("kfac", damping_rule="pi"),
]
COMPARED = [
    *(probe(name) for name in ("sgdm", "adam", "muon", "soap", "shampoo", "klshampoo", "diag", "kfac", "ekfac", "eva")),
    probe("kfac", fisher_type="mc"),
    probe("kfac", fisher_type="empirical"),
    *(probe(name) for name in ("cwngd", "fngd", "ginger", "lngd", "kpsvd", "layer", "full")),
]
NETWORKS = [problem("resnet", samples=32), problem("resnet", samples=32, epochs=5)]

SUITE = Suite(
    "Residual networks",
    {
        "quick": Preset([problem("resnet", depth=8, width=8, samples=16)], COMPARED),
        "default": Preset(NETWORKS, COMPARED),
        "all": Preset(NETWORKS, [*every_probe(), *VARIANTS]),
        "full": Preset([problem("resnet", depth=18, dataset="cifar10")], [*every_probe(), *VARIANTS]),
    },
)
