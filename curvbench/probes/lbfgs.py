"""L-BFGS (Nocedal 1980; compact form of Byrd, Nocedal, Schnabel 1994): secants of the Hessian, not of the Fisher.

At frozen parameters no two gradients differ, so every update is one step on the quadratic model of the batch's loss
there: a direction s from the pairs so far, its exact product y = H s, and, where the curvature along s is positive,
the exact minimum along s. Pairs with s^T y <= 1e-10 |s| |y| are not taken, so that B stays positive definite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.instance import Instance
from curvbench.operators import Shifted, Subspace
from curvbench.parts.ranges import at_least_one
from curvbench.parts.storage import appended
from curvbench.spec import About, Probe, StepRule

_LEAST_COSINE = 1e-10  # of s and y in a pair: B would lose positive definiteness to rounding below


class State(NamedTuple):
    """The pairs s and y, oldest first, each (n, P); the quadratic model's gradient (P,) and its length at the start."""

    steps: Tensor
    products: Tensor
    slope: Tensor
    start: Tensor


@dataclass(frozen=True)
class Lbfgs(Probe):
    """The BFGS matrix of the last ``memory`` Hessian products along its own steps.

    ``memory``: the largest number of pairs that are kept. ``updates``: the largest number of updates that ``fit``
    makes; they end earlier where the gradient of the quadratic model has fallen to the root of the machine precision.
    """

    memory: int = 10
    updates: int = 10

    rule = StepRule(restarts=True)

    about = About(
        represents="the BFGS matrix of the last memory pairs (s, H s), H the Hessian, begun with a multiple of I",
        damping="none: what no pair has seen is scaled by y^T y / s^T y of the newest pair",
        cost={"statistics": "P + 4 P memory", "invert": "0", "precondition": "4 P memory", "memory": "2 P memory"},
        source="Nocedal 1980; Byrd, Nocedal and Schnabel 1994; the statistics include the step that gives the pair",
        family="low rank",
        color="red",
        formulas=(
            r"\hat F \leftarrow \hat F - \frac{\hat F s s^\top \hat F}{s^\top \hat F s} + \frac{y y^\top}{s^\top y}",
            r"\hat F_0 = \frac{y_K^\top y_K}{s_K^\top y_K}\, I",
            r"y = H s",
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "memory", "updates")

    def unsupported(self, instance: Instance) -> str | None:
        try:
            instance.hessian_product(torch.zeros(instance.size, dtype=instance.dtype, device=instance.device))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            return f"the loss cannot be differentiated twice: {str(error).splitlines()[0]}"
        return None

    def init(self, instance: Instance) -> State:
        slope = instance.gradient()
        empty = slope.new_zeros(0, instance.size)
        return State(empty, empty, slope, torch.linalg.vector_norm(slope))

    def update(self, state: State, batch: Instance) -> State:
        remaining = torch.linalg.vector_norm(state.slope)
        if bool(remaining <= torch.finfo(remaining.dtype).eps ** 0.5 * state.start):
            return state
        direction = two_loop(state.steps, state.products, state.slope)
        step = -direction / torch.linalg.vector_norm(direction)
        product = batch.hessian_product(step)
        curvature, smallest = step @ product, _LEAST_COSINE * torch.linalg.vector_norm(product)
        if bool(curvature.abs() <= smallest):  # flat: the model has no stationary point along s
            return state._replace(slope=torch.zeros_like(state.slope))
        slope = state.slope - (step @ state.slope) / curvature * product
        # Along negative curvature the slope may grow; updates need its direction alone.
        slope = slope * (remaining / torch.linalg.vector_norm(slope)).clamp_max(1.0)
        if bool(curvature <= smallest):
            return state._replace(slope=slope)
        steps = appended(state.steps, step, self.memory)
        return State(steps, appended(state.products, product, self.memory), slope, state.start)

    def precondition(self, state: State, gradient: Tensor) -> Tensor:
        return two_loop(state.steps, state.products, gradient)

    def operator(self, state: State) -> Subspace:
        basis, triangle = torch.linalg.qr(torch.cat([state.steps, state.products]).T)
        coordinates, pairs = triangle.T.double(), len(state.steps)
        steps, products = coordinates[:pairs], coordinates[pairs:]
        rest = float(1 / _scale(steps, products)) if len(steps) else 1.0
        small = rest * torch.eye(basis.shape[1], dtype=torch.float64, device=basis.device)
        for s, y in zip(steps, products, strict=True):
            image = small @ s
            small = small - torch.outer(image, image) / (s @ image) + torch.outer(y, y) / (s @ y)
        values, rotation = numerics.eigh(small)
        return Subspace(basis @ rotation.to(basis.dtype), values.to(basis.dtype), rest)

    def damped(self, state: State) -> Shifted:
        return self.operator(state).damped(0.0)


def _scale(steps: Tensor, products: Tensor) -> Tensor:
    """s^T y / y^T y of the newest pair."""
    return (steps[-1] @ products[-1]) / (products[-1] @ products[-1])


def two_loop(steps: Tensor, products: Tensor, gradient: Tensor) -> Tensor:
    """The inverse BFGS matrix of the pairs, oldest first, applied to a vector (P,)."""
    result, weights = gradient, []
    curvatures = [s @ y for s, y in zip(steps, products, strict=True)]
    for s, y, curvature in zip(steps.flip(0), products.flip(0), reversed(curvatures), strict=True):
        weights.append(s @ result / curvature)
        result = result - weights[-1] * y
    if len(steps):
        result = _scale(steps, products) * result
    for s, y, curvature, weight in zip(steps, products, curvatures, reversed(weights), strict=True):
        result = result + (weight - y @ result / curvature) * s
    return result
