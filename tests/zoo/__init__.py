"""A zoo of small models: one table of cases, and an oracle that judges them."""

from zoo.case import Case, Problem
from zoo.hub import CASES as HUB
from zoo.layers import CASES as LAYERS
from zoo.programs import CASES as PROGRAMS
from zoo.sequences import CASES as SEQUENCES
from zoo.traps import CASES as TRAPS
from zoo.weights import CASES as WEIGHTS

SMALL = (*LAYERS, *SEQUENCES, *WEIGHTS, *PROGRAMS, *TRAPS)
LARGE = HUB


__all__ = ["LARGE", "SMALL", "Case", "Problem"]
