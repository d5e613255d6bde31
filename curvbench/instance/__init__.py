"""A model, a batch and a loss, ready to be measured."""

from curvbench.instance.inputs import Inputs
from curvbench.instance.instance import Instance

__all__ = [
    "Inputs",
    "Instance",
]
