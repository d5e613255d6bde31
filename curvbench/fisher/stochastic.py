"""The batch gradient as a statistic: one vector per update, one backward pass each.

If the labels are drawn from the model, the mean of its outer product is the type-2 Fisher, because the scores of
different samples are independent and have mean zero. With data labels the cross terms remain.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from curvbench.instance import Instance

Statistic = Literal["bg", "bg_data"]

_STRIDE = 2**20  # updates per seed: seeds share no draws as long as no training takes more updates


def batch_gradient(instance: Instance, statistic: Statistic = "bg", seed: int = 0, update: int = 0) -> Tensor:
    """The sum of the gradients of all B loss terms over sqrt(B), (P,); in the sign of the loss.

    Args:
        instance: the model, batch and loss.
        statistic: ``bg`` draws labels from the model, ``bg_data`` takes the labels of the data.
        seed: seed of the draws.
        update: number of the draw; every draw has its own labels.
    """
    if statistic == "bg_data":
        return instance.gradient() * instance.terms**0.5
    return _sampled(instance, draw_seed(seed, update)) / instance.terms**0.5


def draw_seed(seed: int, update: int) -> int:
    """The seed of a generator for the draws of one update."""
    return (seed * _STRIDE + update) % 2**63


def mean_gradient(instance: Instance, statistic: Statistic = "bg", seed: int = 0, update: int = 0) -> Tensor:
    """The gradient of the mean loss, (P,), of the labels that ``batch_gradient`` describes."""
    return batch_gradient(instance, statistic, seed, update) / instance.terms**0.5


def _sampled(instance: Instance, seed: int) -> Tensor:
    def objective(outputs: Tensor) -> Tensor:
        (cotangent,) = instance.cotangents(outputs, "mc", 1, seed)
        return (outputs * cotangent).sum()

    return instance.pack(instance.gradients(objective))
