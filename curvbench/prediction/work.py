"""The work of a method: FLOPs of its phases and the numbers that it keeps, and the passes that its statistics take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from curvbench.prediction.passes import Passes
from curvbench.prediction.products import Case


class Work(NamedTuple):
    """FLOPs of one update, one refresh and one step; ``kept`` numbers in the dtype and ``wide`` ones in float64.

    ``scratch``: numbers that exist while statistics are made, beside the state.
    """

    statistics: float = 0.0
    invert: float = 0.0
    precondition: float = 0.0
    kept: float = 0.0
    wide: float = 0.0
    scratch: float = 0.0

    def plus(self, other: Work, times: float = 1.0) -> Work:
        """The sum with ``times`` as much work."""
        return Work(*(a + times * b for a, b in zip(self, other, strict=True)))


Rule = Callable[[Case], Work]
Reads = Callable[[Passes, int, Mapping[str, Any]], float]
"""FLOPs of the passes that statistics take beside the step's own gradient, from R and the hyperparameters."""


def nothing(passes: Passes, R: int, of: Mapping[str, Any]) -> float:
    """The step's own gradient serves."""
    return 0.0


def scores(passes: Passes, R: int, of: Mapping[str, Any]) -> float:
    """A forward pass, and a backward pass per score column of a sample."""
    return passes.forward + R * passes.inputs


def one_score(passes: Passes, R: int, of: Mapping[str, Any]) -> float:
    """A forward pass, and one backward pass to the outputs of the layers."""
    return passes.forward + passes.inputs


def local_maps(passes: Passes, R: int, of: Mapping[str, Any]) -> float:
    """A forward pass, and derivatives of what lies between layers: ``draws`` of them where outputs mix."""
    if R:
        return scores(passes, R, of)
    rate = passes.forward + of["terms"] * passes.inputs if of["layer_rate"] == "corrected" else 0.0
    return passes.forward + rate + (draws_of(of) if of["mixes"] else 3) * passes.between


def draws_of(of: Mapping[str, Any]) -> int:
    """Vectors that a local map of LNGD meets."""
    return int(of["mc_samples"] if of["fisher_type"] == "lg_mc" else of["draws"])


def another_gradient(passes: Passes, R: int, of: Mapping[str, Any]) -> float:
    """The gradient for other labels."""
    return passes.gradient - passes.update


def of_statistic(passes: Passes, R: int, of: Mapping[str, Any]) -> float:
    """The gradient for drawn labels; with the data's labels the step's own serves."""
    return another_gradient(passes, R, of) if of["statistic"] == "bg" else 0.0


def of_source(passes: Passes, R: int, of: Mapping[str, Any]) -> float:
    """The passes of score columns, or those of a mean gradient."""
    return scores(passes, R, of) if of["source"] == "columns" else of_statistic(passes, R, of)


def of_draws(passes: Passes, R: int, of: Mapping[str, Any]) -> float:
    """The gradient for drawn labels, in one of ``draw_every`` updates."""
    return another_gradient(passes, R, of) / of["draw_every"]


def products(passes: Passes, R: int, of: Mapping[str, Any]) -> float:
    """The products of the Fisher with ``draws`` vectors: a forward pass on dual numbers, and a backward pass."""
    one = 3 * passes.forward + passes.inputs + passes.parameters
    return of["draws"] * one


def hessian_or_fisher(passes: Passes, R: int, of: Mapping[str, Any]) -> float:
    """The product of the Hessian, or of the Fisher, with a vector."""
    return hessian(passes, R, of) if of["curvature"] == "hessian" else products(passes, R, {**of, "draws": 1})


def hessian(passes: Passes, R: int, of: Mapping[str, Any]) -> float:
    """The product of the Hessian with a vector: a gradient that is differentiated once more."""
    return 2 * passes.forward + 3 * passes.inputs + 3 * passes.parameters


def slopes_of(c: Case, most: int = 1) -> float:
    """Slopes of at most so many cotangents, and the inputs."""
    return c.stored_columns() * min(c.R, most) / max(c.R, 1)
