"""Peers on the same instance: K-FAC, EKFAC and the exact matrix, ours beside those of curvlinops and NNGeometry.

Needs `pip install -e '.[peers]'`; without it the peers' cells say so. ``default``: the MLP, where the exact matrices
can be formed; ``resnet``: a ResNet-20 on digits, of which the peers cover the weights only. The conventions stand in
docs/peers.md.
"""

from pathlib import Path

from curvbench import Preset, Suite, probe, problem
from curvbench.registry import parse_probe

FILE = Path(__file__).with_name("peers") / "probes.py"
FISHER_TYPES = ("type-2", "mc", "empirical")
KRONECKER = [
    *(probe(name, fisher_type=kind) for name in ("kfac", "ekfac") for kind in FISHER_TYPES),
    probe("kfac", kfac_approx="reduce"),
    probe("kfac", damping_rule="pi"),
    *(
        parse_probe(f"{FILE}:{name}[fisher_type={kind}]")
        for name in ("CurvlinopsKfac", "CurvlinopsEkfac", "NngeometryKfac", "NngeometryEkfac")
        for kind in FISHER_TYPES
    ),
    parse_probe(f"{FILE}:CurvlinopsKfac[kfac_approx=reduce]"),
    parse_probe(f"{FILE}:CurvlinopsKfac[damping_rule=pi]"),
    parse_probe(f"{FILE}:CurvlinopsKfac[bias=separate]"),
]
EXACT = [
    *(probe("full", fisher_type=kind) for kind in FISHER_TYPES),
    *(parse_probe(f"{FILE}:CurvlinopsGgn[fisher_type={kind}]") for kind in FISHER_TYPES),
]

SUITE = Suite(
    "Peers on the same instance",
    {
        "quick": Preset([problem("mlp", hidden=8, depth=1, samples=32)], [*KRONECKER, *EXACT], dtype="float64"),
        "default": Preset([problem("mlp")], [*KRONECKER, *EXACT], dtype="float64"),
        "resnet": Preset([problem("resnet")], KRONECKER, parameters="weights"),
    },
)
