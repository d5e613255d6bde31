"""A 64-20-20-20-20-10 network on scikit-learn's digits, in float64: every probe, seconds per cell."""

from curvbench import Preset, Suite, every_probe, probe, problem

PROBES = [
    *every_probe(),
    probe("kfac", fisher_type="mc"),
    probe("kfac", fisher_type="empirical"),
    probe("kfac", fisher_type="forward-only"),
    probe("kfac", damping_rule="factored"),
    probe("kfac", damping_rule="pi"),
]

SUITE = Suite(
    "An MLP on digits, at initialisation and trained",
    {
        "quick": Preset([problem("mlp", samples=64)], every_probe(), dtype="float64"),
        "default": Preset([problem("mlp"), problem("mlp", epochs=10)], PROBES, dtype="float64"),
    },
)
