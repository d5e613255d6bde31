"""A probe of one's own, and a suite that holds it against others. Change both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import curvbench as cb
from curvbench.fisher import collect
from curvbench.operators import Diagonal, Operator


@dataclass(frozen=True)
class LayerMean(cb.FisherProbe):
    """One number per layer: the mean of the Fisher's diagonal. Fields added here are hyperparameters."""

    def update(self, state: Any, batch: cb.Instance) -> Diagonal:
        """Statistics of a batch: the column ``statistics`` of the cost tables."""
        columns = collect(batch, self.fisher_type, self.mc_samples, self.seed)
        means = [(c.squares().mean() / batch.terms).expand(c.layer.size) for c in columns]
        return Diagonal(torch.cat(means).to(batch.dtype))

    def precondition(self, state: Diagonal, gradient: Tensor) -> Tensor:
        """The damped inverse times a gradient: paid at every step."""
        return state.solve(gradient, self.damping)

    def operator(self, state: Diagonal) -> Operator:
        """The represented matrix, undamped."""
        return state


SUITE = cb.Suite(
    "My probe against others on the digits MLP",
    {
        "default": cb.Preset(
            problems=[cb.problem("mlp", samples=64)],
            probes=[LayerMean(), LayerMean("empirical"), cb.probe("diag"), cb.probe("kfac"), cb.probe("identity")],
        )
    },
)
