"""A model, a batch and a loss, ready to be measured."""

from curvbench.instance.inputs import Inputs
from curvbench.instance.instance import Instance
from curvbench.instance.likelihood import Likelihood

__all__ = [
    "Inputs",
    "Instance",
    "Likelihood",
]
