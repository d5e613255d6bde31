"""Which digits: methods with statistics in bfloat16, float16, float32 and float64, factors in float32 and float64.

``quick``: a trained network of four layers with 2,500 parameters; ``default``: the trained ResNet-20, whose weights
are in float32; ``tf32``: the same on a CUDA device.
"""

from curvbench import Preset, Probe, Suite, probe, problem

NAMES = ("kfac", "ekfac", "diag", "shampoo", "adam", "eva", "lngd", "fngd", "cwngd")
STATISTICS = ("bfloat16", "float16", "float32", "float64")
FACTORS = ("float32", "float64")


def variants(name: str) -> list[Probe]:
    """A method in every pair of digits."""
    return [probe(name, statistics_dtype=s, factor_dtype=f) for s in STATISTICS for f in FACTORS]


METERS = ("error", "direction", "health", "memory")

SUITE = Suite(
    "Which digits",
    {
        "quick": Preset(
            [problem("mlp", samples=64, epochs=10)],
            [p for name in NAMES for p in variants(name)],
            meters=METERS,
        ),
        "default": Preset(
            [problem("resnet", samples=32, epochs=5)],
            [p for name in NAMES for p in variants(name)],
            meters=METERS,
        ),
    },
)
