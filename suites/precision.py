"""Which digits: methods with statistics in bfloat16, float16, float32 and float64, and factors in float32 and float64.

``quick``: a trained network of five layers; ``default``: a trained ResNet-20; ``tf32``: the ResNet on a CUDA device
(``--device cuda``). A smaller damping needs more digits: ``--damping 1e-7``.
"""

from curvbench import Preset, Suite, probe, problem

NAMES = ("kfac", "ekfac", "diag", "shampoo", "adam", "eva", "lngd", "fngd")
STATISTICS = ("bfloat16", "float16", "float32", "float64")
METERS = ("error", "direction", "health", "memory")

DIGITS = [{"statistics_dtype": dtype} for dtype in STATISTICS]  # with factors in float32, the dtype of the weights
IN_FLOAT64 = [{"statistics_dtype": dtype, "factor_dtype": "float64"} for dtype in STATISTICS]
RESNET = problem("resnet", samples=32, epochs=5)

SUITE = Suite(
    "Which digits",
    {
        "quick": Preset(
            [problem("mlp", samples=64, epochs=10)],
            [probe(name, **digits) for name in NAMES for digits in (*DIGITS, IN_FLOAT64[2])],
            meters=METERS,
        ),
        "default": Preset(
            [RESNET], [probe(name, **digits) for name in NAMES for digits in (*DIGITS, *IN_FLOAT64)], meters=METERS
        ),
        "tf32": Preset(
            [RESNET],
            [probe(name, statistics_dtype=dtype) for name in NAMES for dtype in ("tf32", "float32", "bfloat16")],
        ),
    },
)
