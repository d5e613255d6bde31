"""The exact Fisher's trace outside the covered layers: what no probe is compared with, as a share of the whole."""

from __future__ import annotations

import torch

from curvbench.fisher.exact import ExactFisher
from curvbench.instance import Instance


def covered_trace(
    instance: Instance, fisher: ExactFisher, fisher_type: str = "type-2", mc_samples: int = 1, seed: int = 0
) -> float:
    """The share of a Fisher's trace, over all trainable parameters, that the covered layers have.

    The type is that of ``fisher``; sampled labels are drawn anew for the other parameters.
    """
    inside, outside = fisher.trace(), uncovered_trace(instance, fisher_type, mc_samples, seed)
    return inside / (inside + outside) if inside + outside > 0 else 1.0


def uncovered_trace(instance: Instance, fisher_type: str = "type-2", mc_samples: int = 1, seed: int = 0) -> float:
    """The trace of the Fisher's block of the trainable parameters that no covered layer holds.

    The mean over terms of squared gradients along the cotangents, one sample at a time: a backward pass of the batch
    per cotangent, without the gradients of the covered layers' weights.
    """
    names = instance.uncovered
    total = torch.zeros((), dtype=torch.float64, device=instance.device)
    for n in range(instance.samples if names else 0):
        sample = instance.part(slice(n, n + 1))
        outputs, leaves = sample.graph(names)
        if not outputs.requires_grad:  # none of them is used
            return 0.0
        for cotangent in sample.cotangents(outputs, fisher_type, mc_samples, seed + n):
            found = torch.autograd.grad(
                outputs, list(leaves.values()), cotangent, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            total += torch.cat([gradient.flatten() for gradient in found]).double().square().sum()
    return float(total) / instance.terms
