"""Softmax and class labels: the loss ``cross_entropy``, and the closed forms of its factor and its scores."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from curvbench.instance.likelihood.base import IGNORED, Likelihood
from curvbench.instance.likelihood.hessians import SoftmaxHessians
from curvbench.instance.likelihood.sums import tails

_ENTRIES = 2**20  # numbers of a factor that exist at the same time: 8 MiB in float64


class CrossEntropy(Likelihood):
    """Softmax and categorical targets; class indices (N,) or (N, T) int64."""

    name = "cross_entropy"
    is_fisher = True
    targets_like_outputs = True

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        refuse_one_class(outputs)
        refuse_no_labels(self.name, outputs, targets)
        refuse_labels(outputs, targets, IGNORED)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.flatten(0, -2), targets.flatten(), ignore_index=IGNORED)

    def residual(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return scores_at(outputs, targets.clamp_min(0))

    def rank(self, classes: int) -> int:
        return classes - 1

    def factor(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return cholesky_columns(outputs, range(outputs.shape[-1] - 1))

    def factor_parts(self, outputs: Tensor, targets: Tensor) -> Iterator[Tensor]:
        return (cholesky_columns(outputs, rows) for rows in ranges(self.rank(outputs.shape[-1]), outputs.numel()))

    def hessians(self, outputs: Tensor, targets: Tensor) -> SoftmaxHessians:
        return softmax_hessians(outputs, self.valid(targets))

    def sample(self, outputs: Tensor, targets: Tensor, draws: int, generator: torch.Generator) -> Tensor:
        return drawn_scores(outputs, draws, generator)

    def coefficients(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """a_c = sqrt(p_c / (Q_c q_c)) for c < y, -sqrt(q_y / (p_y Q_y)) at c = y, 0 above.

        A coefficient that would exceed 1 / eps is 0. Where a wrong class has nearly all probability, a_c grows as s_c
        shrinks, up to the exponential of half the difference of the logits.
        """
        before, at = slopes(outputs)
        classes = torch.arange(before.shape[-1], device=before.device)
        y = targets.clamp_min(0)[..., None]
        a = torch.where(classes < y, before, torch.where(classes == y, at, torch.zeros_like(before)))
        return bounded(a).movedim(-1, 0)


def ranges(rank: int, numbers: int) -> Iterator[range]:
    """The columns 0..rank - 1 of a factor in ranges of some; ``numbers``: how many numbers a column has."""
    step = max(1, _ENTRIES // numbers)
    return (range(first, min(first + step, rank)) for first in range(0, rank, step))


def cholesky_columns(outputs: Tensor, rows: range) -> Tensor:
    """The columns ``rows`` of the closed-form Cholesky factor of diag(p) - p p^T, which has C - 1, (R', N, ..., C).

    With the tail sums Q_c = p_c + ... + p_C and q_c = Q_{c+1}: s_c[c] = sqrt(p_c q_c / Q_c) and
    s_c[i > c] = -p_i sqrt(p_c / (q_c Q_c)). Tails are summed, not subtracted, so that no digit is lost where one
    probability is nearly 1.
    """
    some = slice(rows.start, rows.stop)
    p = torch.softmax(outputs, -1)
    Q = tails(p)
    q = Q[..., 1:][..., some]
    ratio = (p[..., some] / Q[..., some]).nan_to_num(0.0).sqrt()  # 0 / 0 where a whole tail underflows
    cotangents = -ratio[..., None] * (p[..., None, :] / q[..., None].sqrt()).nan_to_num(0.0)
    cotangents = cotangents.triu(rows.start + 1)
    cotangents.diagonal(rows.start, -2, -1).copy_(ratio * q.sqrt())
    return cotangents.movedim(-2, 0)


def softmax_hessians(outputs: Tensor, weights: Tensor) -> SoftmaxHessians:
    """The Hessians of a softmax under weights of the terms, (N, ...)."""
    p = torch.softmax(outputs, -1)
    return SoftmaxHessians(p.flatten(0, -2), weights.flatten().to(p))


def drawn_scores(outputs: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """The vectors p - e_y at classes y drawn from p, (draws, N, ..., C)."""
    p = torch.softmax(outputs.double(), -1).flatten(0, -2).cpu()
    try:
        labels = torch.multinomial(p, draws, replacement=True, generator=generator).T
    except RuntimeError as error:  # torch looks for NaN itself; another look would count as the method's FLOPs
        raise ValueError("no labels can be drawn, because the model's outputs are not finite") from error
    labels = labels.reshape(draws, *outputs.shape[:-1]).to(outputs.device)
    return scores_at(outputs.expand(draws, *outputs.shape), labels)


def scores_at(outputs: Tensor, labels: Tensor) -> Tensor:
    """The vectors p - e_label; the entry p_y - 1 is computed as -(sum of the others), which loses no digits."""
    p = torch.softmax(outputs, -1)
    hit = F.one_hot(labels, outputs.shape[-1]).bool()
    others = p.masked_fill(hit, 0.0)
    return torch.where(hit, -others.sum(-1, keepdim=True), others)


def slopes(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """The coefficients of the columns c < C of p - e_y: for c below y, and at c = y, (N, ..., C - 1) each."""
    p = torch.softmax(outputs, -1)
    Q = tails(p)
    q = Q[..., 1:]
    p, Q = p[..., :-1], Q[..., :-1]
    return (p / (Q * q)).sqrt(), -(q / (p * Q)).sqrt()


def bounded(a: Tensor) -> Tensor:
    """The coefficients, 0 where one exceeds 1 / eps or does not exist."""
    return torch.where(a.abs() <= 1 / torch.finfo(a.dtype).eps, a, 0.0)


def refuse_one_class(outputs: Tensor) -> None:
    """Refuse a softmax of one output."""
    if outputs.shape[-1] < 2:
        raise ValueError("cross entropy over one class is constant: its Fisher is zero; give the model more outputs")


def refuse_no_labels(name: str, outputs: Tensor, targets: Tensor) -> None:
    """Refuse targets that are no class indices, one per term."""
    if targets.dtype != torch.int64 or targets.shape != outputs.shape[:-1]:
        raise ValueError(
            f"{name} needs int64 class indices of shape {tuple(outputs.shape[:-1])} for outputs "
            f"{tuple(outputs.shape)} (classes last), got {targets.dtype} of shape {tuple(targets.shape)}"
        )


def refuse_labels(outputs: Tensor, targets: Tensor, ignored: int) -> None:
    """Refuse class indices that are all ignored or out of range."""
    labels = targets[targets != ignored]
    if labels.numel() == 0:
        raise ValueError(f"no loss term is left: every target is {ignored} (ignored)")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= outputs.shape[-1]:
        raise ValueError(f"targets must lie in 0..{outputs.shape[-1] - 1}, got {low}..{high}")
