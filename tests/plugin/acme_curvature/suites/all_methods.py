"""Acme's probe on Acme's problem."""

from curvbench import Preset, Suite

from ..probe import Scaled
from ..problem import Line

SUITE = Suite("Acme", {"default": Preset([Line()], [Scaled(), Scaled(scale=2.0)], meters=("error",))})
