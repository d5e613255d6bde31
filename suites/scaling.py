"""How the cost of every probe grows with width, batch and rank: FLOPs and bytes, counted and published.

One size is swept while the others are small, so that the terms that grow fastest lead. Rank, memory or share of the
methods that have one is swept where it leads: many parameters, a large batch, or a convex loss, for L-BFGS keeps
only pairs along which the loss has curvature.
"""

from curvbench import Preset, Suite, every_probe, probe, problem

METERS = ("flops", "memory")
# One pair is there in every network; blocks of 128 rows would be as large as some of the layers; every update of PSGD
# and of INGD costs the same.
SMALL = {
    "cg": probe("cg", iterations=2),  # more would end at the rank of two samples' Fisher
    "eigen": probe("eigen", rank=4),
    "ingd": probe("ingd", updates=2),
    "lbfgs": probe("lbfgs", memory=1, updates=2),
    "psgd": probe("psgd", updates=2),
    "thor": probe("thor", split=16),
}
PROBES = [SMALL.get(p.name, p) for p in every_probe()]


def _chain(width, samples, layer="linear", depth=2):
    return problem("chain", width=width, samples=samples, layer=layer, depth=depth)


def _ranks(*values):
    wide, many, convex = _chain(128, 32), _chain(32, 128), _chain(64, 64, depth=0)
    return [
        *((wide, probe("ginger", rank=n, updates=max(values))) for n in values),
        *((wide, probe("qng", memory=n, updates=max(values))) for n in values),
        *((convex, probe("lbfgs", memory=n, updates=max(values))) for n in values),
        *((many, probe("hylo", rank=n / 2 / max(values))) for n in values),
        *((wide, probe("nystrom", rank=n)) for n in values),
        *((wide, probe("mfac", memory=n, updates=max(values))) for n in values),
        *((wide, probe("cg", iterations=n)) for n in values),
    ]


SUITE = Suite(
    "Growth of cost with width, batch and rank",
    {
        "quick": Preset([_chain(width, 2) for width in (32, 64, 128)], PROBES, dtype="float64", meters=METERS),
        "default": Preset(
            [
                *(_chain(width, 2) for width in (32, 64, 128, 256)),
                *(_chain(width, 2, "conv2d") for width in (8, 16, 32, 64)),
                *(_chain(8, samples) for samples in (32, 64, 128, 256)),
            ],
            PROBES,
            dtype="float64",
            pairs=_ranks(4, 8, 16, 32),
            meters=METERS,
        ),
    },
    summary="growth",
)
