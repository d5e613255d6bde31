"""How many samples statistics need: error and quality on other samples against the size of the measured batch.

Statistics of a batch A of N samples are held against the exact Fisher of a disjoint batch B: an error on A alone would
praise a method for fitting A's noise. ``default``: N from 8 to 128 and a B of 256, on an MLP on digits after two
epochs, in float64; ``quick``: a smaller MLP at initialisation; ``full``: more methods, three seeds, N up to 256 and a B
of 512, at initialisation and after two and ten epochs. The type-2 Fisher takes all labels, ``mc`` draws one label per
sample, ``empirical`` takes the label of the data.
"""

from curvbench import Preset, Suite, probe, problem

TYPES = ("type-2", "mc", "empirical")
METERS = ("error", "direction", "population")
PROBES = [
    probe("identity"),
    *(probe(name, fisher_type=kind) for name in ("diag", "kfac", "ekfac") for kind in TYPES),
    *(probe(name, fisher_type=kind) for name in ("layer", "full") for kind in ("type-2", "empirical")),
]
MORE = [*PROBES, *(probe(name) for name in ("tkfac", "eva", "shampoo", "lngd", "ginger"))]
SIZES = (8, 16, 32, 64, 128)


def _preset(sizes, probes, population, epochs, seeds=(0,), **network):
    problems = [problem("mlp", samples=n, epochs=count, **network) for count in epochs for n in sizes]
    return Preset(problems, probes, seeds, "float64", meters=METERS, population=population)


SUITE = Suite(
    "Error and quality on other samples against the number of samples",
    {
        "quick": _preset((8, 32), PROBES[:7], 64, (0,), hidden=8, depth=1),
        "default": _preset(SIZES, PROBES, 256, (2,)),
        "full": _preset((*SIZES, 256), MORE, 512, (0, 2, 10), (0, 1, 2)),
    },
    summary="samples",
)
