"""Every probe on every kind of layer, on tiny networks in float64: what is measured exactly, and what is refused."""

from typing import get_args

from curvbench import Preset, Suite, every_probe, probe, problem
from curvbench.problems.layers import Network

PROBLEMS = [problem("layers", network=network) for network in get_args(Network)]

SUITE = Suite(
    "Coverage",
    {
        "default": Preset(PROBLEMS, [*every_probe(), probe("lngd", phi="elementwise")], dtype="float64"),
        "quick": Preset(PROBLEMS, [probe("kfac"), probe("full"), probe("ginger")], dtype="float64"),
    },
)
