"""Errors and directions on the MLP against label draws, rank, memory and epochs of training; float64, one minute."""

from curvbench import Preset, Suite, probe, problem

PROBES = [
    *(probe("kfac", fisher_type="mc", mc_samples=draws) for draws in (1, 4, 16, 64, 256)),
    *(probe("ekfac", fisher_type="mc", mc_samples=draws) for draws in (1, 16, 256)),
    *(probe("ginger", rank=rank) for rank in (2, 4, 8, 16, 32)),
    *(probe("qng", memory=memory) for memory in (4, 16, 64)),
    *(probe("hylo", rank=share) for share in (0.05, 0.1, 0.2, 0.4)),
]

SUITE = Suite(
    "Hyperparameters, one at a time",
    {
        "default": Preset([problem("mlp", epochs=epochs) for epochs in (0, 3, 10)], PROBES, dtype="float64"),
        "quick": Preset([problem("mlp")], PROBES[:5], dtype="float64"),
    },
)
