"""Softmax under class weights, label smoothing and probabilities as targets, as torch's cross entropy has them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from curvbench.instance.likelihood.base import IGNORED, Likelihood
from curvbench.instance.likelihood.hessians import SoftmaxHessians
from curvbench.instance.likelihood.softmax import (
    bounded,
    cholesky_columns,
    drawn_scores,
    ranges,
    refuse_labels,
    refuse_no_labels,
    refuse_one_class,
    slopes,
    softmax_hessians,
)
from curvbench.instance.likelihood.sums import others, tails


class WeightedCrossEntropy(Likelihood):
    """Softmax under class weights w, label smoothing e and probabilities q as targets, a mean over terms.

    A term's loss is -sum_c t_c log p_c with the mass t_c = w_c ((1 - e) q_c + e / C), so that its curvature is
    (sum_c t_c) (diag(p) - p p^T). Targets are class indices, or probabilities shaped like the outputs. Sampled targets
    are classes drawn from p.

    Args:
        name: a short text for labels and results.
        weight: the weights of the classes, (C,). None means 1.
        smoothing: e.
        ignored: the class index that is no loss term.
        are_logarithms: whether the outputs are logarithms of probabilities, as ``nn.NLLLoss`` reads them. The loss
            then includes the log-softmax, which does not change them.
    """

    classes_first = True
    targets_like_outputs = True

    def __init__(
        self,
        name: str,
        weight: Tensor | None = None,
        smoothing: float = 0.0,
        ignored: int = IGNORED,
        are_logarithms: bool = False,
    ) -> None:
        self.name, self.weight, self.smoothing, self.ignored = name, weight, smoothing, ignored
        self.are_logarithms = are_logarithms
        self.is_fisher = weight is None and not smoothing

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        refuse_one_class(outputs)
        _refuse_class_weights(self.name, self.weight, outputs)
        if self.are_logarithms:
            _refuse_not_normalized(self.name, outputs)
        if targets.is_floating_point() and not self.are_logarithms:
            refuse_no_probabilities(self.name, outputs, targets)
        else:
            refuse_no_labels(self.name, outputs, targets)
            refuse_labels(outputs, targets, self.ignored)

    def valid(self, targets: Tensor) -> Tensor:
        return super().valid(targets) if targets.is_floating_point() else targets != self.ignored

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        flat = targets.flatten(0, -2) if targets.is_floating_point() else targets.flatten()
        weight = None if self.weight is None else self.weight.to(outputs)
        total = F.cross_entropy(
            outputs.flatten(0, -2),
            flat,
            weight,
            ignore_index=self.ignored,
            reduction="sum",
            label_smoothing=self.smoothing,
        )
        return total / self.valid(targets).sum()

    def residual(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(sum_c t_c) p - t, as products of p_c with the other classes' mass and of t_c with their probability."""
        p, mass = torch.softmax(outputs, -1), self._mass(outputs, targets)
        return p * others(mass) - mass * others(p)

    def rank(self, classes: int) -> int:
        return classes - 1

    def factor(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.cat(list(self.factor_parts(outputs, targets)))

    def factor_parts(self, outputs: Tensor, targets: Tensor) -> Iterator[Tensor]:
        root = self._roots(outputs, targets)
        for rows in ranges(self.rank(outputs.shape[-1]), outputs.numel()):
            yield cholesky_columns(outputs, rows) * root

    def hessians(self, outputs: Tensor, targets: Tensor) -> SoftmaxHessians:
        return softmax_hessians(outputs, self._mass(outputs, targets).sum(-1) * self.valid(targets))

    def sample(self, outputs: Tensor, targets: Tensor, draws: int, generator: torch.Generator) -> Tensor:
        return drawn_scores(outputs, draws, generator) * self._roots(outputs, targets)

    def coefficients(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The coefficients of ``CrossEntropy`` at each class y, summed with its mass t_y."""
        before, at = slopes(outputs)
        mass = self._mass(outputs, targets)
        above = tails(mass)[..., 1:]
        a = _products(before, above) + _products(at, mass[..., :-1])
        return bounded(a / self._roots(outputs, targets)).movedim(-1, 0)

    def _mass(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mass t (N, ..., C) of each class in the loss of each term; that of an ignored term is arbitrary."""
        classes = outputs.shape[-1]
        if targets.is_floating_point():
            q = targets.to(outputs)
        else:
            q = F.one_hot(targets.masked_fill(targets == self.ignored, 0), classes).to(outputs)
        smoothed = (1 - self.smoothing) * q + self.smoothing / classes
        return smoothed if self.weight is None else smoothed * self.weight.to(outputs)

    def _roots(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The square roots of the terms' weights, (N, ..., 1)."""
        return self._mass(outputs, targets).sum(-1, keepdim=True).sqrt()


def terms_per_weight(weight: Tensor | None, ignored: int, targets: Tensor) -> float:
    """The number of terms over the sum of their classes' weights, by which torch divides; 1 for probabilities."""
    if weight is None or targets.is_floating_point():
        return 1.0
    labels = targets[targets != ignored]
    total = float(weight.to(labels.device)[labels].double().sum())
    if total == 0 and labels.numel():
        raise ValueError("every target has the class weight zero, so that the mean loss is 0 / 0: give other weights")
    return labels.numel() / total if labels.numel() else 1.0


def _products(slopes: Tensor, mass: Tensor) -> Tensor:
    """The products, 0 without mass even where a slope is infinite."""
    return torch.where(mass > 0, slopes * mass, 0.0)


def refuse_no_probabilities(name: str, outputs: Tensor, targets: Tensor) -> None:
    """Refuse real targets that are no mass over the classes."""
    if targets.dtype != outputs.dtype or targets.shape != outputs.shape:
        raise ValueError(
            f"{name} needs probabilities like the outputs, {outputs.dtype} of shape {tuple(outputs.shape)} (classes "
            f"last), or int64 class indices, got {targets.dtype} of shape {tuple(targets.shape)}"
        )
    if not bool((targets >= 0).all()) or not bool(torch.isfinite(targets).all()):
        raise ValueError(f"{name} needs probabilities that are finite and not negative: correct the targets")


def _refuse_class_weights(name: str, weight: Tensor | None, outputs: Tensor) -> None:
    if weight is None:
        return
    if weight.shape != outputs.shape[-1:]:
        raise ValueError(f"{name} needs {outputs.shape[-1]} class weights, one per output, got {tuple(weight.shape)}")
    if not bool((weight >= 0).all()) or not bool(torch.isfinite(weight).all()):
        raise ValueError(f"{name} needs class weights that are finite and not negative: other curvature has no factor")


def _refuse_not_normalized(name: str, outputs: Tensor) -> None:
    """Refuse outputs that are no logarithms of probabilities, within the rounding of a sum in their precision."""
    largest = float(outputs.logsumexp(-1).abs().max())
    if not largest <= 1e3 * torch.finfo(outputs.dtype).eps:
        raise ValueError(
            f"{name} needs logarithms of probabilities, but their exponentials sum to exp({largest:.3g}): end the "
            "model with LogSoftmax, or take nn.CrossEntropyLoss"
        )
