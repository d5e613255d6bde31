"""How old statistics may be: quality and error k steps after the fit, and what a step costs at that interval.

One training, the same for all methods, begins at the snapshot; no method steps in it. Statistics are fitted at its step
``start`` and held at ``start`` + k, on the same samples: only the weights change. ``default``: an MLP on digits in
float64, from step 100 (two epochs) on; ``quick``: a smaller MLP from initialisation; ``full``: a ResNet-20, and ages up
to 1,000 steps.
"""

from curvbench import Drift, Preset, Suite, probe, problem

METERS = ("error", "direction", "flops", "staleness")
PROBES = [
    *(probe(name) for name in ("identity", "diag", "kfac", "ekfac", "tkfac", "eva", "shampoo", "lngd", "ginger")),
    probe("layer"),
    probe("full"),
]


def _preset(network, probes, drift, seeds=(0,), dtype="float64"):
    return Preset([network], probes, seeds, dtype, meters=METERS, drift=drift)


SUITE = Suite(
    "Quality, error and cost against the age of statistics",
    {
        "quick": _preset(
            problem("mlp", hidden=8, depth=1, samples=32), PROBES[:3], Drift((0, 1, 10), lr=0.05, batch=32)
        ),
        "default": _preset(problem("mlp"), PROBES, Drift((0, 1, 3, 10, 30, 100, 300), start=100, lr=0.05, batch=32)),
        "full": _preset(
            problem("resnet", samples=32),
            PROBES,
            Drift((0, 1, 10, 100, 1000), start=100, lr=0.05, batch=64),
            dtype="float32",
        ),
    },
    summary="staleness",
)
