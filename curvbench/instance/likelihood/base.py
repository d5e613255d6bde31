"""The contract of a likelihood: two methods that every one has, and those that a Fisher type may need beside them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from curvbench.instance.likelihood.hessians import Hessians

IGNORED = -100


class Likelihood(ABC):
    """A loss as a mean over terms: its value, and a factor of its curvature at the outputs.

    A subclass needs ``factor`` and ``loss``; everything else has a default.

    Outputs are (N, C) or (N, T, C), classes last; a term is one sample, or one token of a sequence. Targets are
    integers, one per term, or real numbers with one dimension more than the terms have. A term's weight is a part of
    its loss: the loss is (1/terms) sum_i l_i over the valid terms, cotangents of ``factor`` and ``sample`` carry the
    square root of the weight, and ``residual`` carries the weight itself. Whatever is given for a term that is not
    valid counts as zero, but it must be finite.

    Attributes:
        name: a short text for labels and results; the name of the class if it sets none.
        unit: what the loss is a mean or a sum over.
        is_fisher: whether a term's loss is the negative logarithm of a density of its target. The type-2 matrix is then
            the Fisher matrix of that density, in multiples that ``unit`` tells; otherwise it is the curvature of the
            loss alone, the generalized Gauss-Newton matrix.
        classes_first: whether dimension 1 of outputs as they come holds the classes where dimension 1 and the last one
            both fit.
        reads: the names of the tensors that the model returns for it.
        targets_like_outputs: whether real targets must have the shape of the outputs.
    """

    name: str = ""
    unit: str = "mean over terms"
    is_fisher: bool = False
    classes_first: bool = False
    reads: tuple[str, ...] = ("outputs",)
    targets_like_outputs: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in vars(cls):
            cls.name = cls.__name__

    @abstractmethod
    def factor(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cotangents s_r with sum_r s_r s_r^T = Hessian of a term's loss at its outputs, (R, N, ..., C)."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss over the valid terms, a scalar."""

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise ValueError if outputs and targets do not fit this likelihood."""
        valid = self.valid(targets)
        if valid.shape != outputs.shape[:-1]:
            raise ValueError(
                f"{self.name} needs a target for each of the terms {tuple(outputs.shape[:-1])} of outputs "
                f"{tuple(outputs.shape)}, got {targets.dtype} of shape {tuple(targets.shape)}"
            )
        if not bool(valid.any()):
            raise ValueError(f"no loss term is left: every target of {self.name} is ignored")

    def valid(self, targets: Tensor) -> Tensor:
        """Which loss terms count, bool (N,) or (N, T): all but integer targets of -100."""
        if targets.is_floating_point():
            return torch.ones(targets.shape[:-1], dtype=torch.bool, device=targets.device)
        return targets != IGNORED

    def rank(self, classes: int) -> int:
        """The number R of cotangents in ``factor`` for a term with ``classes`` outputs; C by default."""
        return classes

    def factor_parts(self, outputs: Tensor, targets: Tensor) -> Iterator[Tensor]:
        """The R cotangents of ``factor`` some at a time, (R', N, ..., C) each.

        All together would need R times the memory of the outputs.

        Raises:
            ValueError: ``factor`` gives another shape than ``rank`` says.
        """
        factor = self.factor(outputs, targets)
        expected = (self.rank(outputs.shape[-1]), *outputs.shape)
        if factor.shape != expected:
            raise ValueError(
                f"the factor of {self.name} must have shape {expected}, (R, N, ..., C), got {tuple(factor.shape)}: "
                "correct factor, or define rank"
            )
        yield factor

    def hessians(self, outputs: Tensor, targets: Tensor) -> Hessians | None:
        """What ``factor`` is a factor of, for every term (zero for one that is not valid); None without closed form."""
        return None

    def residual(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The gradient of each term's loss at its outputs, shaped like the outputs; ``valid`` says which ones count."""
        terms = int(self.valid(targets).sum())
        if not terms:  # the mean over no term is not finite
            return torch.zeros_like(outputs)
        with torch.enable_grad():
            leaf = outputs.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.loss(leaf, targets), leaf)
        return gradient * terms

    def sample(self, outputs: Tensor, targets: Tensor, draws: int, generator: torch.Generator) -> Tensor:
        """Residuals at targets drawn from the model, (draws, N, ..., C); their mean square is the curvature.

        Raises:
            ValueError: this likelihood cannot draw targets.
        """
        raise ValueError(
            f"{self.name} draws no targets, which fisher_type='mc' needs: take 'type-2', or a Likelihood with sample"
        )

    def coefficients(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Coefficients a with sum_r a_r s_r = residual, (R, N, ...), least squares where none are exact."""
        inverse = torch.linalg.pinv(self.factor(outputs, targets).movedim(0, -1))
        return (inverse @ self.residual(outputs, targets)[..., None]).squeeze(-1).movedim(-1, 0)

    def at_token(self, token: int) -> Likelihood:
        """This likelihood for the outputs (N, C) and the targets of one token of sequences (N, T, C)."""
        return self

    def for_batch(self, targets: Tensor) -> Likelihood:
        """This likelihood with the weights that terms have in a batch of these targets, to be used on its parts.

        A likelihood that has such weights already stays as it is.
        """
        return self
