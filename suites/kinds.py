"""Every kind of use of a parameter, on small networks: embedded, tied, normalised, recurrent, transposed, attended.

``default``: a GPT whose embedding is its last layer, a ViT with a class token, a U-Net with transposed convolutions and
an LSTM; ``quick``: fewer loss terms, and the probes that differ most.
"""

from curvbench import Preset, Suite, probe, problem

BOUNDS = [probe("layer"), probe("kpsvd"), probe("identity")]
PROBES = [probe(name) for name in ("diag", "kfac", "ekfac", "tkfac", "eva", "shampoo", "lngd", "adam")]

SUITE = Suite(
    "Every kind of use of a parameter",
    {
        "quick": Preset(
            [
                problem("gpt", vocabulary=16, tokens=4, samples=4),
                problem("vit", samples=4),
                problem("unet", depth=1, samples=4),
                problem("lstm", vocabulary=16, tokens=4, samples=4),
            ],
            [probe("diag"), probe("kfac"), probe("eva")],
        ),
        "default": Preset(
            [
                problem("gpt", vocabulary=16),
                problem("vit"),
                problem("unet", samples=4),
                problem("lstm", vocabulary=16),
            ],
            [*BOUNDS, *PROBES],
        ),
    },
)
