"""NaturalGradient, and the state of a probe over the steps of a training."""

from curvbench.optim.optimizer import NaturalGradient

__all__ = [
    "NaturalGradient",
]
