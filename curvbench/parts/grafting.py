"""Grafting (Agarwal et al. 2020): the direction of one method with the length of another one's step."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Graft = Literal["none", "sgd", "adagrad", "rmsprop", "adam"]
EPSILON = 1e-8  # beside the root of the grafted method's squares


def refuse_graft(graft: Graft, decay: float) -> None:
    """Raise ValueError if a method that averages squares is given no weight of old ones below 1."""
    if graft in ("rmsprop", "adam") and decay == 1:
        raise ValueError(f"graft={graft} averages squares with decay: give a decay below 1")


def next_squares(graft: Graft, old: Tensor | None, gradient: Tensor, decay: float) -> Tensor | None:
    """The grafted method's average of squares (P,) after one more gradient; None if it has none.

    ``old``: None before the first gradient. AdaGrad sums; the others average with ``decay`` as the old weight.
    """
    if graft in ("none", "sgd"):
        return None
    squares, before = gradient.square(), torch.zeros_like(gradient) if old is None else old
    return before + squares if graft == "adagrad" else torch.lerp(squares, before, decay)


def grafted(graft: Graft, gradient: Tensor, squares: Tensor | None, decay: float, taken: int) -> Tensor:
    """The grafted method's step for a gradient (P,), or for its average, after ``taken`` gradients."""
    if squares is None:
        return gradient
    correction = 1 - decay**taken if graft == "adam" else 1.0
    return gradient / ((squares / correction).sqrt() + EPSILON)


def with_length(step: Tensor, like: Tensor) -> Tensor:
    """Matrices (G, M, D) with the Frobenius norms of others, group by group; zero stays zero."""
    norms, wanted = (torch.linalg.vector_norm(V, dim=(1, 2), keepdim=True) for V in (step, like))
    return step * torch.where(norms > 0, wanted / norms, 0.0)
