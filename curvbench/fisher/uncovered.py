"""The exact Fisher's trace outside the covered layers, with which no probe is compared."""

from __future__ import annotations

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.fisher.exact import ExactFisher
from curvbench.instance import Instance
from curvbench.instance.likelihood import cotangents
from curvbench.instance.refusals import agree


def covered_trace(
    instance: Instance, fisher: ExactFisher, fisher_type: str = "type-2", mc_samples: int = 1, seed: int = 0
) -> float:
    """The covered layers' share of a Fisher's trace over all trainable parameters.

    ``fisher_type`` is the type of ``fisher``; for the other parameters labels are sampled again.
    """
    inside, outside = fisher.trace(), uncovered_trace(instance, fisher_type, mc_samples, seed)
    return inside / (inside + outside) if inside + outside > 0 else 1.0


def uncovered_trace(instance: Instance, fisher_type: str = "type-2", mc_samples: int = 1, seed: int = 0) -> float:
    """The trace of the Fisher's block of the trainable parameters that no covered layer holds.

    The trace is the mean over terms of squared gradients along the cotangents. Every sample passes alone, which costs a
    backward pass of the batch per cotangent, without the gradients of the covered layers' weights. If the model
    computes other numbers on one sample, every sample takes a backward pass over the whole batch. A complex parameter
    counts as its real and imaginary part.
    """
    if not instance.uncovered:
        return 0.0
    draws = fisher_type, mc_samples, seed
    squares = None if instance.coupled else _alone(instance, *draws)
    return (_together(instance, *draws) if squares is None else squares) / instance.terms


def _alone(instance: Instance, fisher_type: str, mc_samples: int, seed: int) -> float | None:
    """The sum of squared gradients if every sample passes alone.

    None means that samples are coupled, or that the model computes other numbers on a sample alone than in its batch:
    the sum of all samples' gradients along their first cotangents is another.
    """
    if instance.coupled:
        return None
    squares, firsts, sums = 0.0, [], torch.zeros((), device="cpu")
    for n in range(instance.samples):
        sample = _only(instance, n)
        try:
            outputs, leaves = sample.graph(instance.uncovered)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return None
        if outputs.shape[0] != 1:
            return None
        for count, cotangent in enumerate(sample.cotangents(outputs, fisher_type, mc_samples, seed + n)):
            gradient = _gradient(outputs, leaves, cotangent)
            squares += numerics.sum_squares(gradient)
            if count == 0:
                firsts.append(cotangent)
                sums = sums.to(gradient) + gradient
    together = _gradient(*instance.graph(instance.uncovered), torch.cat(firsts))
    return squares if agree(sums, together) else None


def _together(instance: Instance, fisher_type: str, mc_samples: int, seed: int) -> float:
    """The sum of squared gradients if every sample passes in its batch."""
    outputs, leaves = instance.graph(instance.uncovered)
    squares = 0.0
    for n in range(instance.samples):
        only = slice(n, n + 1)
        targets = instance.targets[only]
        draws = fisher_type, mc_samples, seed + n
        for cotangent in cotangents(instance.likelihood, outputs[only].detach(), targets, *draws):
            of_batch = torch.zeros_like(outputs)
            of_batch[only] = cotangent
            squares += numerics.sum_squares(_gradient(outputs, leaves, of_batch))
    return squares


def _only(instance: Instance, n: int) -> Instance:
    """The instance with one sample, whose rows need no owners here."""
    return instance.reordered(torch.tensor([n], device=instance.device))


def _gradient(outputs: Tensor, leaves: dict[str, Tensor], cotangent: Tensor) -> Tensor:
    """The gradients of all leaves along a cotangent, as one real vector."""
    if not outputs.requires_grad:  # the outputs depend on no leaf
        return outputs.new_zeros(1)
    gradients = torch.autograd.grad(
        outputs, list(leaves.values()), cotangent, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return torch.cat([(torch.view_as_real(g.resolve_conj()) if g.is_complex() else g).flatten() for g in gradients])
