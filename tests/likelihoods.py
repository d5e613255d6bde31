"""Losses of torch and of users with outputs and targets as they come, and the dense curvature that judges them.

The curvature is torch's own Hessian of torch's own loss at the raw outputs. Of a mean and a variance it is the expected
Hessian: the Hessian is quadratic in the targets, so that its mean at the targets m + sqrt(v) and m - sqrt(v) is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.nn import functional

SAMPLES = 4


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape)))


def labels(classes: int, *shape: int, ignored: int | None = None) -> Tensor:
    """Labels without a pattern; the first one is ignored if ``ignored`` is given."""
    found = torch.randint(classes, shape, generator=torch.Generator().manual_seed(7))
    if ignored is not None:
        found.view(-1)[0] = ignored
    return found


def probabilities(*shape: int) -> Tensor:
    return drawn(*shape).softmax(1)


def weights(*shape: int) -> Tensor:
    return drawn(*shape).abs() + 0.3


def poisson(outputs: Tensor, target: Tensor) -> Tensor:
    """Counts whose logarithmic rates are the outputs."""
    return (outputs.exp() - target * outputs).sum()


def huber(outputs: Tensor, target: Tensor) -> Tensor:
    """Without curvature where the distance exceeds 1."""
    return functional.huber_loss(outputs, target, reduction="sum")


def negative_log_softmax(outputs: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, target)


@dataclass(frozen=True)
class Row:
    """A loss, the shape of its outputs as they come, its targets, and whether the type-2 matrix is a Fisher matrix.

    ``mean``: the loss of a batch, if the loss is a function of one term.
    """

    loss: Any
    shape: tuple[int, ...]
    targets: Tensor
    is_fisher: bool
    mean: Callable[[Tensor, Tensor], Tensor] | None = None

    def model(self, inputs: int = 3) -> nn.Module:
        torch.manual_seed(0)
        numbers = torch.Size(self.shape[1:]).numel()
        is_pair = isinstance(self.loss, nn.GaussianNLLLoss)
        last: nn.Module = Pair(self.shape) if is_pair else Shaped(self.shape)
        net = nn.Sequential(nn.Linear(inputs, 4), nn.Tanh(), nn.Linear(4, numbers * (1 + is_pair)), last)
        if isinstance(self.loss, nn.NLLLoss):
            net.append(nn.LogSoftmax(1))
        return net.double()

    def value(self, outputs: Any, targets: Tensor | None = None) -> Tensor:
        """The reduced loss as torch has it."""
        y = self.targets if targets is None else targets
        if isinstance(outputs, tuple):
            return self.loss(outputs[0], y, outputs[1])
        return (self.mean or self.loss)(outputs, y)


class Shaped(nn.Module):
    """(N, numbers) in the shape of the outputs as they come."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape[1:]

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, *self.shape)


class Pair(Shaped):
    """(N, 2 numbers) as a mean and a variance, one of which lies below torch's least one."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, rest = x.chunk(2, -1)
        return mean.reshape(-1, *self.shape), functional.softplus(rest).reshape(-1, *self.shape)


def of_terms(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """The mean over terms (N, C) by a loop."""
    return lambda outputs, targets: torch.stack([loss(f, y) for f, y in zip(outputs, targets, strict=True)]).mean()


N = SAMPLES
ROWS = {
    "plain": Row(nn.CrossEntropyLoss(), (N, 3), labels(3, N), True),
    "ignored 0, weights, smoothing": Row(
        nn.CrossEntropyLoss(weights(3), ignore_index=0, label_smoothing=0.2), (N, 3), labels(3, N, ignored=0), False
    ),
    "tokens": Row(nn.CrossEntropyLoss(), (N, 3, 2), labels(3, N, 2, ignored=-100), True),
    "a sum over weighted tokens": Row(
        nn.CrossEntropyLoss(weights(3), reduction="sum"), (N, 3, 2), labels(3, N, 2, ignored=-100), False
    ),
    "weighted pixels": Row(
        nn.CrossEntropyLoss(weights(2), ignore_index=255), (N, 2, 2, 3), labels(2, N, 2, 3, ignored=255), False
    ),
    "probabilities": Row(nn.CrossEntropyLoss(), (N, 3), probabilities(N, 3), True),
    "weighted, smoothed probabilities": Row(
        nn.CrossEntropyLoss(weights(3), label_smoothing=0.1), (N, 3), probabilities(N, 3), False
    ),
    "probabilities of pixels": Row(nn.CrossEntropyLoss(weights(2)), (N, 2, 2, 2), probabilities(N, 2, 2, 2), False),
    "log-probabilities": Row(nn.NLLLoss(weights(3)), (N, 3), labels(3, N), False),
    "binary": Row(nn.BCEWithLogitsLoss(), (N, 3), drawn(N, 3).gt(0).double(), True),
    "binary, one output": Row(nn.BCEWithLogitsLoss(pos_weight=weights(1)), (N,), drawn(N).gt(0).double(), False),
    "weighted, binary, a sum": Row(
        nn.BCEWithLogitsLoss(weight=weights(3), reduction="sum", pos_weight=weights(1)),
        (N, 2, 3),
        drawn(N, 2, 3).sigmoid(),
        False,
    ),
    "squares": Row(nn.MSELoss(), (N, 3), drawn(N, 3), True),
    "squares of tokens": Row(nn.MSELoss(), (N, 2, 3), drawn(N, 2, 3), True),
    "squares of pixels, a sum": Row(nn.MSELoss(reduction="sum"), (N, 1, 2, 2), drawn(N, 1, 2, 2), True),
    "squares, one output": Row(nn.MSELoss(), (N,), drawn(N), True),
    "mean and variance": Row(nn.GaussianNLLLoss(), (N, 2), drawn(N, 2), True),
    "mean and variance, a sum": Row(nn.GaussianNLLLoss(full=True, eps=0.5, reduction="sum"), (N,), drawn(N), True),
    "poisson": Row(poisson, (N, 2), labels(4, N, 2).double(), False, of_terms(poisson)),
    "huber": Row(huber, (N, 2), 2 * drawn(N, 2), False, of_terms(huber)),
    "function of a label": Row(negative_log_softmax, (N, 3), labels(3, N), False, functional.cross_entropy),
}


def curvature(row: Row, outputs: Any) -> Tensor:
    """The curvature of the whole loss at the raw outputs, as a matrix over all of their numbers in order."""
    if isinstance(outputs, tuple):
        return _expected(row, outputs)

    def loss(raw: Tensor) -> Tensor:
        # the curvature of NLLLoss lies in the log-softmax, which does not change its outputs
        return row.value(raw.log_softmax(1) if isinstance(row.loss, nn.NLLLoss) else raw)

    return hessian(loss, outputs).reshape(outputs.numel(), outputs.numel())


def _expected(row: Row, outputs: tuple[Tensor, Tensor]) -> Tensor:
    mean, variance = outputs
    flat, size = torch.cat([mean.flatten(), variance.flatten()]), mean.numel()
    deviation = variance.clamp_min(row.loss.eps).sqrt()

    def loss_at(targets: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda x: row.value((x[:size].reshape(mean.shape), x[size:].reshape(mean.shape)), targets)

    ends = [hessian(loss_at(mean + sign * deviation), flat) for sign in (1, -1)]
    return (ends[0] + ends[1]) / 2
