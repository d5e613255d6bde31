"""The Hessians of the terms' losses at their outputs in closed form, (C, C) each, of which none is stored.

A method that sums them needs no cotangent per output: a last linear layer has them for its output gradients' moments.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from curvbench.instance.likelihood.sums import others


class Hessians(Protocol):
    """The Hessians H_t of n loss terms, in the order of the samples."""

    @property
    def count(self) -> int:
        """The number of terms, n."""

    def weighted(self, weights: Tensor) -> Hessians:
        """The Hessians times weights (n,), which are not negative."""

    def total(self, rows: slice = slice(None)) -> Tensor:
        """The sum over terms of the block of some rows and the same columns, (C', C')."""

    def diagonals(self, basis: Tensor | None = None) -> Tensor:
        """The diagonals of Q^T H_t Q for a basis Q (C, K), (n, K); None is the identity."""

    def applied(self, Y: Tensor) -> Tensor:
        """The products H_t Y_t for Y (n, C, K), in the dtype of Y."""

    def traces_of_products(self) -> Tensor:
        """tr(H_t H_t') for every two terms, (n, n)."""

    def compressed(self, term: int, W: Tensor) -> tuple[Tensor, Tensor]:
        """Cotangents M (C, d) of a term, and W^T M (d, d), for the weight W (C, d) of the layer that gives the outputs.

        H_t - M M^T vanishes on W from both sides: behind that layer the d cotangents stand for all.
        """


@dataclass(frozen=True, eq=False)
class SoftmaxHessians:
    """w_t (diag(p_t) - p_t p_t^T) for probabilities p (n, C) and weights w (n,).

    The entry 1 - p_c is the sum of the other probabilities, and a variance is a sum of squares of differences from the
    most probable class: no digit is lost where one probability is nearly 1.
    """

    p: Tensor
    weights: Tensor

    @property
    def count(self) -> int:
        return len(self.p)

    def weighted(self, weights: Tensor) -> SoftmaxHessians:
        return replace(self, weights=self.weights * weights.to(self.weights))

    def total(self, rows: slice = slice(None)) -> Tensor:
        some = self.p[:, rows]
        total = -(self.weights[:, None] * some).mT @ some
        total.diagonal().copy_(self.diagonals()[:, rows].sum(0))
        return total

    def diagonals(self, basis: Tensor | None = None) -> Tensor:
        if basis is None:
            return self.weights[:, None] * self.p * others(self.p)
        return self.weights[:, None] * torch.stack([_variances(p, basis) for p in self.p])

    def applied(self, Y: Tensor) -> Tensor:
        differences = Y - Y.gather(1, self.p.argmax(1)[:, None, None].expand(-1, -1, Y.shape[2]))
        means = torch.einsum("nc,nck->nk", self.p.to(Y), differences)
        return (self.weights[:, None] * self.p)[..., None].to(Y) * (differences - means[:, None])

    def traces_of_products(self) -> Tensor:
        diagonals = self.p * others(self.p)
        traces = diagonals @ diagonals.mT
        for term, p in enumerate(self.p):
            pairs = p * self.p
            traces[term] += (pairs * others(pairs)).sum(1)
        return self.weights[:, None] * traces * self.weights

    def compressed(self, term: int, W: Tensor) -> tuple[Tensor, Tensor]:
        p, most = self.p[term], self.p[term].argmax()[None]
        differences = W - W.index_select(0, most)
        root, scale = p.sqrt(), self.weights[term].sqrt()
        U, R = torch.linalg.qr(root[:, None] * (differences - p @ differences))
        M = root[:, None] * (U - root[:, None] * (root @ U))
        M.index_fill_(0, most, 0)
        M.index_add_(0, most, M.sum(0, keepdim=True), alpha=-1)  # because the entries of a cotangent sum to zero
        return scale * M, scale * R.mT


def _variances(p: Tensor, X: Tensor) -> Tensor:
    """The variances (K,) of the columns of X (C, K) under probabilities p (C,)."""
    differences = X - X.index_select(0, p.argmax()[None])
    return p @ differences.sub_(p @ differences).square_()


@dataclass(frozen=True, eq=False)
class DiagonalHessians:
    """diag(h_t) for entries h (n, C)."""

    entries: Tensor

    @property
    def count(self) -> int:
        return len(self.entries)

    def weighted(self, weights: Tensor) -> DiagonalHessians:
        return DiagonalHessians(self.entries * weights[:, None].to(self.entries))

    def total(self, rows: slice = slice(None)) -> Tensor:
        return self.entries[:, rows].sum(0).diag()

    def diagonals(self, basis: Tensor | None = None) -> Tensor:
        return self.entries if basis is None else self.entries @ basis.square()

    def applied(self, Y: Tensor) -> Tensor:
        return self.entries[..., None].to(Y) * Y

    def traces_of_products(self) -> Tensor:
        return self.entries @ self.entries.mT

    def compressed(self, term: int, W: Tensor) -> tuple[Tensor, Tensor]:
        root = self.entries[term].sqrt()[:, None]
        U, R = torch.linalg.qr(root * W)
        return root * U, R.mT
