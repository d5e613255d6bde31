"""A function of one term's outputs and target as a loss: its curvature by automatic differentiation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap

from curvbench.instance.likelihood.base import Likelihood

TermLoss = Callable[[Tensor, Tensor], Tensor]


class FunctionLoss(Likelihood):
    """The mean over terms of a function that maps one term's outputs (C,) and its target to a number.

    The target is an integer tensor without dimensions, or the term's real numbers (K,). The function is made of torch
    operations, as ``torch.func.vmap`` needs it, and is convex in the outputs.
    """

    def __init__(self, function: TermLoss) -> None:
        self.name: str = getattr(function, "__name__", type(function).__name__)
        self.function = function

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        losses = self._of_terms(self._number, outputs, targets)
        return losses[self.valid(targets)].mean()

    def residual(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._of_terms(grad(self._number), outputs, targets)

    def factor(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The eigenvectors of each term's Hessian, times the roots of their eigenvalues.

        Raises:
            ValueError: an eigenvalue is negative by more than rounding.
        """
        hessians = self._of_terms(jacrev(grad(self._number)), outputs, targets)
        values, vectors = torch.linalg.eigh(hessians)
        self._refuse_negative(values[self.valid(targets)])
        return (vectors * values.clamp_min(0).sqrt()[..., None, :]).movedim(-1, 0)

    def _number(self, outputs: Tensor, target: Tensor) -> Tensor:
        value = self.function(outputs, target)
        if not isinstance(value, Tensor) or value.numel() != 1:
            came = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"the loss {self.name} must map one term to a number, got {came}: sum it")
        return value.reshape(())

    def _of_terms(self, function: TermLoss, outputs: Tensor, targets: Tensor) -> Tensor:
        """The values of a function of one term, (N, ..., *its shape); those of ignored terms are arbitrary."""
        terms = outputs.shape[:-1]
        inside = targets if targets.is_floating_point() else targets.masked_fill(~self.valid(targets), 0)
        flat = inside.flatten(0, len(terms) - 1)
        try:
            values = vmap(function, randomness="error")(outputs.flatten(0, -2), flat)
        except (RuntimeError, IndexError, TypeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise ValueError(
                f"the loss {self.name} cannot be differentiated term by term: {str(error).strip().splitlines()[0]}"
            ) from error
        return values.unflatten(0, terms)

    def _refuse_negative(self, values: Tensor) -> None:
        if not values.numel():  # every term of a part of the batch is ignored
            return
        # Probabilities of about 1 round by eps even where all curvature is less.
        least, largest = float(values.min()), max(float(values.abs().max()), 1.0)
        if not least >= -10 * values.shape[-1] * torch.finfo(values.dtype).eps * largest:
            raise ValueError(
                f"the loss {self.name} is not convex in the outputs (eigenvalue {least:.3g} of a term's Hessian): give "
                "a Likelihood with a factor of its own"
            )
