"""Every probe on small networks in float64, one thread: numbers that repeat exactly, to hold against a baseline.

``default`` has no clock, so that a run is the same to the bit; ``times`` has one, for two revisions measured in turn.
Weights only, as the baselines were measured.
"""

from curvbench import Preset, Suite, every_probe, probe, problem

# In its default form the first basis of klshampoo's null space is what the rounding of a processor makes.
PROBES = [probe("klshampoo", statistic="columns") if p.name == "klshampoo" else p for p in every_probe()]
VARIANTS = [
    probe("kfac", kfac_approx="reduce"),
    probe("kfac", fisher_type="mc"),
    probe("kfac", fisher_type="empirical"),
    probe("kfac", fisher_type="forward-only"),
    probe("kfac", damping_rule="pi"),
]
NETWORKS = ("conv2d", "conv1d-groups", "sequence")
MLP = problem("mlp", hidden=8, depth=2, samples=32)

SUITE = Suite(
    "What every probe costs and errs, to be held against a baseline",
    {
        "default": Preset(
            [MLP, *(problem("layers", network=network) for network in NETWORKS)],
            [*PROBES, *VARIANTS],
            dtype="float64",
            meters=("flops", "memory", "error", "direction", "health"),
            parameters="weights",
        ),
        "times": Preset(
            [problem("mlp", hidden=64)], every_probe(), dtype="float64", meters=("clock",), parameters="weights"
        ),
    },
)
