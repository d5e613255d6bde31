"""Residual networks on images, every probe.

``default``: ResNet-20 on scikit-learn's digits, at initialisation and trained; ``quick``: a narrow ResNet-8;
``full``: ResNet-18 with 11.2 million parameters on CIFAR-10.
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

SUITE = Suite(
    "Residual networks",
    {
        "quick": Preset([problem("resnet", depth=8, width=8, samples=16)], every_probe()),
        "default": Preset(
            [problem("resnet", samples=32), problem("resnet", samples=32, epochs=5)], [*every_probe(), *VARIANTS]
        ),
        "full": Preset([problem("resnet", depth=18, dataset="cifar10")], [*every_probe(), *VARIANTS]),
    },
)
