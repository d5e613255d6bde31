"""Losses whose curvature at the outputs is diagonal: each output has a density of its own, given the model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from curvbench.instance.likelihood.base import Likelihood
from curvbench.instance.likelihood.hessians import DiagonalHessians
from curvbench.instance.likelihood.softmax import bounded, ranges


class Gaussian(Likelihood):
    """Normal targets of unit variance, shaped like the outputs: the loss is 1/2 |f - y|^2 summed over outputs."""

    is_fisher = True
    targets_like_outputs = True

    def __init__(self, name: str = "gaussian") -> None:
        self.name = name

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        refuse_unlike(self.name, outputs, targets)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().sum(-1).mean() / 2

    def residual(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs - targets

    def factor(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return units(outputs, range(outputs.shape[-1]))

    def factor_parts(self, outputs: Tensor, targets: Tensor) -> Iterator[Tensor]:
        return (units(outputs, rows) for rows in ranges(outputs.shape[-1], outputs.numel()))

    def hessians(self, outputs: Tensor, targets: Tensor) -> DiagonalHessians:
        return DiagonalHessians(torch.ones_like(outputs).flatten(0, -2))

    def sample(self, outputs: Tensor, targets: Tensor, draws: int, generator: torch.Generator) -> Tensor:
        return noise(outputs, draws, generator)

    def coefficients(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).movedim(-1, 0)


class Diagonal(Likelihood):
    """A loss whose curvature at a term's outputs is a diagonal matrix."""

    targets_like_outputs = True

    @abstractmethod
    def curvature(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The diagonal of each term's curvature, shaped like the outputs."""

    def factor(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return units(outputs, range(outputs.shape[-1])) * self.curvature(outputs, targets).sqrt()

    def factor_parts(self, outputs: Tensor, targets: Tensor) -> Iterator[Tensor]:
        root = self.curvature(outputs, targets).sqrt()
        return (units(outputs, rows) * root for rows in ranges(outputs.shape[-1], outputs.numel()))

    def hessians(self, outputs: Tensor, targets: Tensor) -> DiagonalHessians:
        return DiagonalHessians((self.curvature(outputs, targets) * self.valid(targets)[..., None]).flatten(0, -2))

    def coefficients(self, outputs: Tensor, targets: Tensor) -> Tensor:
        roots = self.curvature(outputs, targets).sqrt()
        return bounded(self.residual(outputs, targets) / roots).movedim(-1, 0)


class Bernoulli(Diagonal):
    """Independent binary targets, y in [0, 1] shaped like the outputs, which are logits; the loss sums over outputs.

    The loss of an output is w (v y log(1 + exp(-f)) + (1 - y) log(1 + exp(f))), and its curvature
    w (v y + 1 - y) p (1 - p). Sampled targets are drawn from p.

    Args:
        name: a short text for labels and results.
        weight: w, of a shape that expands to one sample's outputs, (C,) or (T, C). None means 1.
        positive: v, the weight of positive targets, of such a shape too. None means 1.
    """

    def __init__(self, name: str, weight: Tensor | None = None, positive: Tensor | None = None) -> None:
        self.name, self.weight, self.positive = name, weight, positive
        self.is_fisher = weight is None and positive is None

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        refuse_unlike(self.name, outputs, targets)
        if not bool(((targets >= 0) & (targets <= 1)).all()):
            raise ValueError(f"{self.name} needs targets in 0..1, got {float(targets.min())}..{float(targets.max())}")
        for weight in (self.weight, self.positive):
            _refuse_weight(self.name, weight, outputs)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        weight, positive = (None if w is None else w.to(outputs) for w in (self.weight, self.positive))
        total = F.binary_cross_entropy_with_logits(outputs, targets, weight, reduction="sum", pos_weight=positive)
        return total / outputs[..., 0].numel()

    def residual(self, outputs: Tensor, targets: Tensor) -> Tensor:
        of_ones, of_zeros = self._weights(outputs, targets)
        return of_zeros * torch.sigmoid(outputs) - of_ones * torch.sigmoid(-outputs)

    def curvature(self, outputs: Tensor, targets: Tensor) -> Tensor:
        of_ones, of_zeros = self._weights(outputs, targets)
        return (of_ones + of_zeros) * torch.sigmoid(outputs) * torch.sigmoid(-outputs)

    def sample(self, outputs: Tensor, targets: Tensor, draws: int, generator: torch.Generator) -> Tensor:
        of_ones, of_zeros = self._weights(outputs, targets)
        uniform = torch.rand(draws, *outputs.shape, device="cpu", generator=generator, dtype=torch.float64).to(
            outputs.device
        )
        ones = uniform < torch.sigmoid(outputs.double())
        return torch.where(ones, -torch.sigmoid(-outputs), torch.sigmoid(outputs)) * (of_ones + of_zeros).sqrt()

    def at_token(self, token: int) -> Likelihood:
        weight, positive = (_at_token(w, token) for w in (self.weight, self.positive))
        return Bernoulli(self.name, weight, positive)

    def _weights(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The weights of a one and of a zero as target in the loss of each output, shaped like the outputs."""
        of_ones = targets if self.positive is None else targets * self.positive.to(outputs)
        of_zeros = 1 - targets
        if self.weight is None:
            return of_ones, of_zeros
        return of_ones * self.weight.to(outputs), of_zeros * self.weight.to(outputs)


class NormalWithVariance(Diagonal):
    """Normal targets (N, ..., K) of mean m and variance v, which are the outputs [m | v] (N, ..., 2 K).

    The loss is 1/2 (log v + (m - y)^2 / v) summed over the K numbers. Its Hessian is not convex; ``factor`` gives the
    Fisher matrix diag(1 / v, 1 / (2 v^2)), which is its expectation. As in torch a variance below ``least`` counts as
    ``least``, and its derivatives are those at ``least``.

    Args:
        name: a short text for labels and results.
        least: the smallest variance.
        full: whether the loss has the constant of the density too.
    """

    is_fisher = True
    reads = ("mean", "variance")

    def __init__(self, name: str, least: float, full: bool = False) -> None:
        self.name, self.least, self.full = name, least, full

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        mean, variance = outputs.chunk(2, -1)
        refuse_unlike(self.name, mean, targets)
        if not bool((variance >= 0).all()):
            raise ValueError(f"{self.name} needs variances of at least 0, got {float(variance.min())}")

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        mean, variance = outputs.chunk(2, -1)
        total = F.gaussian_nll_loss(mean, targets, variance, self.full, self.least, "sum")
        return total / mean[..., 0].numel()

    def residual(self, outputs: Tensor, targets: Tensor) -> Tensor:
        mean, variance = self._moments(outputs)
        return self._slopes((targets - mean) / variance.sqrt(), variance)

    def curvature(self, outputs: Tensor, targets: Tensor) -> Tensor:
        _, variance = self._moments(outputs)
        return torch.cat([1 / variance, 1 / (2 * variance.square())], -1)

    def sample(self, outputs: Tensor, targets: Tensor, draws: int, generator: torch.Generator) -> Tensor:
        mean, variance = self._moments(outputs)
        return self._slopes(noise(mean, draws, generator), variance)

    def _moments(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        mean, variance = outputs.chunk(2, -1)
        return mean, variance.clamp_min(self.least)

    @staticmethod
    def _slopes(z: Tensor, variance: Tensor) -> Tensor:
        """The gradient of the loss at targets m + sqrt(v) z, (..., 2 K)."""
        return torch.cat([-z / variance.sqrt(), (1 - z.square()) / (2 * variance)], -1)


def units(outputs: Tensor, rows: range) -> Tensor:
    """The unit vectors ``rows`` of the outputs of a term, for every term: (R', N, ..., C)."""
    some = outputs.new_zeros(len(rows), outputs.shape[-1])
    some.diagonal(rows.start).fill_(1)
    return some.reshape(-1, *[1] * (outputs.ndim - 1), outputs.shape[-1]).expand(-1, *outputs.shape)


def noise(outputs: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """Standard normal numbers (draws, N, ..., C); the generator's are the same on every device and in every dtype."""
    numbers = torch.randn(draws, *outputs.shape, device="cpu", generator=generator, dtype=torch.float64)
    return numbers.to(outputs.device, outputs.dtype)


def refuse_unlike(name: str, outputs: Tensor, targets: Tensor) -> None:
    """Refuse targets of another dtype or shape than the outputs, and targets that are not finite."""
    if targets.dtype != outputs.dtype or targets.shape != outputs.shape:
        raise ValueError(
            f"{name} needs targets like the outputs, {outputs.dtype} of shape {tuple(outputs.shape)}, "
            f"got {targets.dtype} of shape {tuple(targets.shape)}"
        )
    if not bool(torch.isfinite(targets).all()):
        raise ValueError("the targets hold NaN or infinity")


def _at_token(weight: Tensor | None, token: int) -> Tensor | None:
    """The weights of one token, of a shape that expands to (C,)."""
    if weight is None or weight.ndim < 2:
        return weight
    return weight[token if len(weight) > 1 else 0]


def _refuse_weight(name: str, weight: Tensor | None, outputs: Tensor) -> None:
    """Refuse weights that belong to samples, which a part of the batch would lose, and negative ones."""
    if weight is None:
        return
    one = outputs.shape[1:]
    if len(weight.shape) > len(one) or any(
        w not in (1, o) for w, o in zip(weight.shape[::-1], one[::-1], strict=False)
    ):
        raise ValueError(
            f"{name} needs weights that expand to one sample's outputs {tuple(one)}, got {tuple(weight.shape)}: give "
            "one per output"
        )
    if not bool((weight >= 0).all()) or not bool(torch.isfinite(weight).all()):
        raise ValueError(f"{name} needs weights that are finite and not negative: other curvature has no factor")
