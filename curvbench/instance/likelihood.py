"""Likelihoods: the loss, its gradient at the outputs and the factor of its curvature there.

Outputs are (N, C) or (N, T, C), classes last. A loss term is one sample, or one token of a sequence; a token with
target -100 is no loss term. Every Fisher matrix is a mean over the loss terms.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from curvbench.spec.geometry import canonical_type

IGNORED = -100


class Likelihood(ABC):
    """A loss that is the negative logarithm of a density over targets, up to a constant."""

    @abstractmethod
    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise ValueError if outputs and targets do not fit this likelihood."""

    @abstractmethod
    def valid(self, targets: Tensor) -> Tensor:
        """Which loss terms count, bool (N,) or (N, T)."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss over the valid terms, a scalar."""

    @abstractmethod
    def residual(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The gradient of each term's loss at its outputs, shaped like the outputs; ``valid`` says which ones count."""

    @abstractmethod
    def rank(self, classes: int) -> int:
        """The number R of cotangents in ``factor`` for a term with ``classes`` outputs."""

    @abstractmethod
    def factor(self, outputs: Tensor, rows: range | None = None) -> Tensor:
        """Cotangents s_r with sum_r s_r s_r^T = Hessian of a term's loss, (R, N, ..., C); ``rows`` picks some r."""

    @abstractmethod
    def sample(self, outputs: Tensor, draws: int, generator: torch.Generator) -> Tensor:
        """Residuals at targets drawn from the model, (draws, N, ..., C)."""

    @abstractmethod
    def coefficients(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Coefficients a with sum_r a_r s_r = residual, (R, N, ...); 0 where a coefficient would exceed 1 / eps."""


class CrossEntropy(Likelihood):
    """Softmax and categorical targets; class indices (N,) or (N, T) int64."""

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        if outputs.shape[-1] < 2:
            raise ValueError(
                "cross entropy over one class is constant: its Fisher is zero; give the model more outputs"
            )
        if targets.dtype != torch.int64 or targets.shape != outputs.shape[:-1]:
            raise ValueError(
                f"cross_entropy needs int64 class indices of shape {tuple(outputs.shape[:-1])} for outputs "
                f"{tuple(outputs.shape)} (classes last), got {targets.dtype} of shape {tuple(targets.shape)}"
            )
        labels = targets[self.valid(targets)]
        if labels.numel() == 0:
            raise ValueError(f"no loss term is left: every target is {IGNORED} (ignored)")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= outputs.shape[-1]:
            raise ValueError(f"targets must lie in 0..{outputs.shape[-1] - 1}, got {low}..{high}")

    def valid(self, targets: Tensor) -> Tensor:
        return targets != IGNORED

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.flatten(0, -2), targets.flatten(), ignore_index=IGNORED)

    def residual(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return _scores_at(outputs, targets.clamp_min(0))

    def rank(self, classes: int) -> int:
        return classes - 1

    def factor(self, outputs: Tensor, rows: range | None = None) -> Tensor:
        """C - 1 columns of the closed-form Cholesky factor of diag(p) - p p^T.

        With the tail sums Q_c = p_c + ... + p_C and q_c = Q_{c+1}: s_c[c] = sqrt(p_c q_c / Q_c) and
        s_c[i > c] = -p_i sqrt(p_c / (q_c Q_c)). Tails are summed, not subtracted, so that no digit is lost where one
        probability is nearly 1.
        """
        rows = rows or range(outputs.shape[-1] - 1)
        some = slice(rows.start, rows.stop)
        p, Q, q = _tails(outputs)
        tails = q[..., some]
        ratio = (p[..., some] / Q[..., some]).nan_to_num(0.0).sqrt()  # 0 / 0 where a whole tail underflows
        cotangents = -ratio[..., None] * (p[..., None, :] / tails[..., None].sqrt()).nan_to_num(0.0)
        cotangents = cotangents.triu(rows.start + 1)
        cotangents.diagonal(rows.start, -2, -1).copy_(ratio * tails.sqrt())
        return cotangents.movedim(-2, 0)

    def sample(self, outputs: Tensor, draws: int, generator: torch.Generator) -> Tensor:
        p = torch.softmax(outputs.double(), -1).flatten(0, -2).cpu()
        try:
            labels = torch.multinomial(p, draws, replacement=True, generator=generator).T
        except RuntimeError as error:  # torch looks for NaN itself; another look would count as the method's FLOPs
            raise ValueError("no labels can be drawn, because the model's outputs are not finite") from error
        labels = labels.reshape(draws, *outputs.shape[:-1]).to(outputs.device)
        return _scores_at(outputs.expand(draws, *outputs.shape), labels)

    def coefficients(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """a_c = sqrt(p_c / (Q_c q_c)) for c < y, -sqrt(q_y / (p_y Q_y)) at c = y, 0 above.

        Where a wrong class has nearly all probability, a_c grows as s_c shrinks, up to the exponential of half the
        difference of the logits.
        """
        p, Q, q = _tails(outputs)
        p, Q = p[..., :-1], Q[..., :-1]
        classes = torch.arange(p.shape[-1], device=p.device)
        y = targets[..., None]
        before = (p / (Q * q)).sqrt()
        at = -(q / (p * Q)).sqrt()
        a = torch.where(classes < y, before, torch.where(classes == y, at, torch.zeros_like(p)))
        return torch.where(a.abs() <= 1 / torch.finfo(a.dtype).eps, a, 0.0).movedim(-1, 0)


def _tails(outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities p (..., C), their tail sums Q (..., C) from c on, and q (..., C - 1) from c + 1 on."""
    p = torch.softmax(outputs, -1)
    Q = p.flip(-1).cumsum(-1).flip(-1)
    return p, Q, Q[..., 1:]


def _scores_at(outputs: Tensor, labels: Tensor) -> Tensor:
    """The vectors p - e_label; the entry p_y - 1 is computed as -(sum of the others), which loses no digits."""
    p = torch.softmax(outputs, -1)
    hit = F.one_hot(labels, outputs.shape[-1]).bool()
    others = p.masked_fill(hit, 0.0)
    return torch.where(hit, -others.sum(-1, keepdim=True), others)


class Gaussian(Likelihood):
    """Normal targets of unit variance, shaped like the outputs: the loss is 1/2 |f - y|^2 summed over outputs."""

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        if targets.dtype != outputs.dtype or targets.shape != outputs.shape:
            raise ValueError(
                f"gaussian needs targets like the outputs, {outputs.dtype} of shape {tuple(outputs.shape)}, "
                f"got {targets.dtype} of shape {tuple(targets.shape)}"
            )
        if not bool(torch.isfinite(targets).all()):
            raise ValueError("the targets hold NaN or infinity")

    def valid(self, targets: Tensor) -> Tensor:
        return torch.ones(targets.shape[:-1], dtype=torch.bool, device=targets.device)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().sum(-1).mean() / 2

    def residual(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs - targets

    def rank(self, classes: int) -> int:
        return classes

    def factor(self, outputs: Tensor, rows: range | None = None) -> Tensor:
        rows = rows or range(outputs.shape[-1])
        units = outputs.new_zeros(len(rows), outputs.shape[-1])
        units.diagonal(rows.start).fill_(1)
        return units.reshape(-1, *[1] * (outputs.ndim - 1), outputs.shape[-1]).expand(-1, *outputs.shape)

    def sample(self, outputs: Tensor, draws: int, generator: torch.Generator) -> Tensor:
        noise = torch.randn(draws, *outputs.shape, generator=generator, dtype=torch.float64)
        return noise.to(outputs.device, outputs.dtype)

    def coefficients(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).movedim(-1, 0)


LIKELIHOODS: dict[str, Likelihood] = {"cross_entropy": CrossEntropy(), "gaussian": Gaussian()}


def likelihood(loss: str) -> Likelihood:
    """The likelihood of a loss by its name; raises ValueError for an unknown one."""
    if loss not in LIKELIHOODS:
        raise ValueError(f"unknown loss {loss!r}: choose one of {', '.join(LIKELIHOODS)}")
    return LIKELIHOODS[loss]


_ENTRIES = 2**20  # numbers of a factor that exist at the same time: 8 MiB in float64


def _factor(model: Likelihood, outputs: Tensor) -> Iterator[Tensor]:
    """The R cotangents (N, C) at outputs (N, C), made some at a time: all of them take R times the outputs' memory."""
    rank, step = model.rank(outputs.shape[-1]), max(1, _ENTRIES // outputs.numel())
    for first in range(0, rank, step):
        yield from model.factor(outputs, range(first, min(first + step, rank)))


def _type_2(model: Likelihood, outputs: Tensor, mask: Tensor) -> Iterator[Tensor]:
    """R cotangents (N, C) without tokens; with tokens T R cotangents (N, T, C), each nonzero at one token."""
    if outputs.ndim == 2:
        yield from (score * mask for score in _factor(model, outputs))
        return
    for t in range(outputs.shape[1]):
        yield from (_at(t, score * mask[:, t], outputs) for score in _factor(model, outputs[:, t]))


def _at(t: int, score: Tensor, outputs: Tensor) -> Tensor:
    """A cotangent (N, T, C) that is ``score`` (N, C) at token t and zero at every other token."""
    only = torch.zeros_like(outputs)
    only[:, t] = score
    return only


def cotangents(
    model: Likelihood, outputs: Tensor, targets: Tensor, fisher_type: str, mc_samples: int = 1, seed: int = 0
) -> Iterator[Tensor]:
    """Cotangents at the outputs whose score columns v make up F = (1/terms) sum v v^T, each (N, ..., C).

    ``type-2``: R cotangents per term. ``empirical``: one per term. ``mc``: ``mc_samples`` altogether; one draw labels
    all tokens of a sequence, because products of two tokens' scores vanish in expectation.
    """
    fisher_type = canonical_type(fisher_type)
    if mc_samples < 1:
        raise ValueError(f"mc_samples must be at least 1, got {mc_samples}")
    mask = model.valid(targets)[..., None]
    if fisher_type == "type-2":
        yield from _type_2(model, outputs, mask)
    elif fisher_type == "empirical":
        scores = model.residual(outputs, targets) * mask
        yield from [scores] if outputs.ndim == 2 else (_at(t, scores[:, t], outputs) for t in range(outputs.shape[1]))
    elif fisher_type == "mc":
        generator = torch.Generator().manual_seed(seed)
        yield from model.sample(outputs, mc_samples, generator) * mask / mc_samples**0.5
    else:
        raise ValueError(f"fisher_type must be 'type-2', 'mc' or 'empirical', got {fisher_type!r}")


def gradient_coefficients(model: Likelihood, outputs: Tensor, targets: Tensor) -> Tensor:
    """Coefficients a (columns per sample, N) of the type-2 Fisher's columns v with sum_m a_m v_m = the mean gradient.

    The order is that of ``cotangents``. An entry is 0 if no finite coefficient exists.
    """
    valid = model.valid(targets)
    a = model.coefficients(outputs, targets.clamp_min(0) if targets.dtype == torch.int64 else targets) * valid
    if a.ndim == 3:
        a = a.permute(2, 0, 1).flatten(0, 1)
    return a / int(valid.sum())
