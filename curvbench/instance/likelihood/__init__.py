"""Likelihoods: the loss, its gradient at the outputs and the factor of its curvature there.

Outputs are (N, C) or (N, T, C), classes last. A loss term is one sample, or one token of a sequence; an ignored token
is no loss term. Every Fisher matrix is a mean over the loss terms, and a term's weight is a part of its columns.
"""

from __future__ import annotations

from torch import nn

from curvbench.instance.likelihood.base import IGNORED, Likelihood
from curvbench.instance.likelihood.columns import cotangents, gradient_coefficients
from curvbench.instance.likelihood.diagonal import Gaussian
from curvbench.instance.likelihood.function import FunctionLoss, TermLoss
from curvbench.instance.likelihood.modules import of_module
from curvbench.instance.likelihood.softmax import CrossEntropy

__all__ = [
    "IGNORED",
    "LIKELIHOODS",
    "Likelihood",
    "Loss",
    "TermLoss",
    "cotangents",
    "gradient_coefficients",
    "likelihood",
]

Loss = str | nn.Module | Likelihood | TermLoss

LIKELIHOODS: dict[str, Likelihood] = {"cross_entropy": CrossEntropy(), "gaussian": Gaussian()}


def likelihood(loss: Loss) -> Likelihood:
    """The likelihood of a loss: a name, a loss module of torch, a ``Likelihood``, or a function of one term.

    A function maps one term's outputs (C,) and its target to a number: see ``FunctionLoss``.

    Raises:
        ValueError: the name or the module is unknown, or the loss is of another type.
    """
    if isinstance(loss, Likelihood):
        return loss
    if isinstance(loss, nn.Module):
        return of_module(loss)
    if isinstance(loss, str):
        if loss not in LIKELIHOODS:
            raise ValueError(f"unknown loss {loss!r}: choose one of {', '.join(LIKELIHOODS)}")
        return LIKELIHOODS[loss]
    if callable(loss) and not isinstance(loss, type):
        return FunctionLoss(loss)
    raise ValueError(
        "a loss is a name, a loss module of torch, a Likelihood, or a function of one term's outputs and target, "
        f"got {loss!r}"
    )
