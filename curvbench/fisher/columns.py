"""The score columns of one layer in factored form: a product forms them in tiles, and nothing stores them.

Column m = (r, n) is the vector of the matrix W_rn = B_rn X_n^T, with slopes B_rn (G, M, S) and patches X_n (G, D, S).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from curvbench.instance import layers as geometry
from curvbench.spec import Layer

TILE_BYTES = 64 * 2**20  # of columns that are formed at the same time


def form(slopes: Tensor, patches: Tensor) -> Tensor:
    """The matrices W_rn = B_rn X_n^T: slopes (R, n, G, M, S) and patches (n, G, D, S) give (n, G, R, M, D).

    The columns of a sample are stacked into one product: broadcasting over R would copy the patches R times.
    """
    R, n, G, M, S = slopes.shape
    stacked = slopes.permute(1, 2, 0, 3, 4).reshape(n, G, R * M, S)
    return (stacked @ patches.mT).reshape(n, G, R, M, -1)


def form_rotated(slopes: Tensor, patches: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    """Q_l^T W Q_r for the matrices W of ``form`` and bases (G, M, M) and (G, D, D): (n, G, R, M, D).

    A basis of None is the identity. Each basis meets the factor of W or W itself, whichever is smaller.
    """
    R, _, _, M, S = slopes.shape
    early_left, early_right = S < patches.shape[2], S < R * M
    W = form(
        rotated_slopes(slopes, left) if early_left else slopes,
        rotated_patches(patches, right) if early_right else patches,
    )
    W = W if early_right or right is None else torch.einsum("ngrme,ged->ngrmd", W, right)
    return W if early_left or left is None else left.mT[:, None] @ W


def rotated_slopes(slopes: Tensor, left: Tensor | None) -> Tensor:
    """Q_l^T B for slopes B (R, n, G, M, S) and a basis (G, M, M); None is the identity."""
    return slopes if left is None else torch.einsum("gom,rngos->rngms", left, slopes)


def rotated_patches(patches: Tensor, right: Tensor | None) -> Tensor:
    """Q_r^T X for patches X (n, G, D, S) and a basis (G, D, D); None is the identity."""
    return patches if right is None else torch.einsum("ged,nges->ngds", right, patches)


def middle_slopes(middle: Tensor, B: Tensor) -> Tensor:
    """The products of a symmetric matrix (G, M, M), or of a diagonal (G, M), with slopes (R, n, G, M, S)."""
    return middle[:, :, None] * B if middle.ndim == 2 else torch.einsum("gmo,rngos->rngms", middle, B)


def middle_patches(middle: Tensor, X: Tensor) -> Tensor:
    """The products of a symmetric matrix (G, D, D), or of a diagonal (G, D), with patches (n, G, D, S)."""
    return middle[:, :, None] * X if middle.ndim == 2 else torch.einsum("gde,nges->ngds", middle, X)


def middle_formed(middle: Tensor, W: Tensor) -> Tensor:
    """The products of a matrix (G, M, M), or of a diagonal (G, M), with matrices W (n, G, R, M, D)."""
    return middle[:, None, :, None] * W if middle.ndim == 2 else middle[:, None] @ W


def formed_middle(W: Tensor, middle: Tensor) -> Tensor:
    """The products of matrices W (n, G, R, M, D) with a matrix (G, D, D), or with a diagonal (G, D)."""
    return W * middle[:, None, None, :] if middle.ndim == 2 else torch.einsum("ngrmd,gde->ngrme", W, middle)


@dataclass(frozen=True, eq=False)
class Columns:
    """``inputs`` as the layer read them (N, ...), ``slopes`` (R, N, G, M, S). Products come in the slopes' dtype."""

    layer: Layer
    inputs: Tensor
    slopes: Tensor

    @property
    def count(self) -> int:
        """Number of columns, R N."""
        return self.slopes.shape[0] * self.slopes.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the slopes, in which products come."""
        return self.slopes.dtype

    def to(self, dtype: torch.dtype) -> Columns:
        """The columns with inputs (N, ...) and slopes (R, N, G, M, S) in another dtype; the same object if equal."""
        if self.slopes.dtype == dtype:
            return self
        return Columns(self.layer, stored(self.inputs, dtype), self.slopes.to(dtype))

    def part(self, samples: slice) -> Columns:
        """The columns of n samples: inputs (n, ...), slopes (R, n, G, M, S)."""
        return Columns(self.layer, self.inputs[samples], self.slopes[:, samples])

    def patches(self, samples: slice = slice(None)) -> Tensor:
        """Patches of some samples, (n, G, D, S)."""
        return stored(geometry.patches(self.layer, self.inputs[samples]), self.slopes.dtype)

    def matrices(self, samples: slice = slice(None)) -> Tensor:
        """The formed columns of some samples, (n, G, R, M, D)."""
        return form(self.slopes[:, samples], self.patches(samples))

    def _joined_patches(self, samples: slice) -> Tensor:
        """``patches`` of some samples as (G, D, S, n)."""
        return stored(geometry.joined_patches(self.layer, self.inputs[samples]), self.slopes.dtype)

    def _tile_slices(self, bytes_per_sample: int) -> Iterator[slice]:
        samples = self.slopes.shape[1]
        step = max(1, TILE_BYTES // max(bytes_per_sample, 1))
        return (slice(i, min(i + step, samples)) for i in range(0, samples, step))

    def tiles(self, numbers_per_sample: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Tile by tile the slopes (R, n, G, M, S) and the patches (n, G, D, S) of n samples.

        ``numbers_per_sample`` fill a tile with each sample; by default they are those of its formed columns.
        """
        numbers = self.slopes.shape[0] * self.layer.size if numbers_per_sample is None else numbers_per_sample
        for part in self._tile_slices(numbers * self.slopes.element_size()):
            yield self.slopes[:, part], self.patches(part)

    def combine(self, weights: Tensor) -> Tensor:
        """V a for the columns V and weights a (R, N, K), (P, K)."""
        total = self.slopes.new_zeros(weights.shape[2], *self.layer.shape)
        for part in self._tile_slices(self.slopes[0, 0].numel() * weights.shape[2] * self.slopes.element_size()):
            mixed = torch.einsum("rnk,rngms->kngms", weights[:, part].to(self.slopes.dtype), self.slopes[:, part])
            # i, not s, because einsum orders sums by letter and would copy the patches into another order
            total += torch.einsum("kngmi,gdin->kgmd", mixed, self._joined_patches(part))
        return total.flatten(1).T

    def project(self, V: Tensor) -> Tensor:
        """Inner products of the columns with a stack of vectors (P, K), (R, N, K) in the dtype with more digits."""
        dtype = torch.promote_types(V.dtype, self.slopes.dtype)
        matrices = V.T.to(dtype).reshape(-1, *self.layer.shape)
        results = []
        for part in self._tile_slices(self.slopes[0, 0].numel() * V.shape[1] * dtype.itemsize):
            responses = torch.einsum("kgmd,gdsn->kgmsn", matrices, self._joined_patches(part).to(dtype))
            results.append(torch.einsum("rngms,kgmsn->rnk", self.slopes[:, part].to(dtype), responses))
        return torch.cat(results, dim=1)

    def squares(self, left_basis: Tensor | None = None, right_basis: Tensor | None = None) -> Tensor:
        """The sum over columns of W * W for W rotated to Q_l^T W Q_r, (G, M, D) in float64; None is the identity."""
        total = torch.zeros(self.layer.shape, dtype=torch.float64, device=self.slopes.device)
        left, right = (None if b is None else b.to(self.slopes.dtype) for b in (left_basis, right_basis))
        for B, X in self.tiles():
            if self._pairs_are_cheaper:
                total += pair_squares(rotated_slopes(B, left), rotated_patches(X, right))
            else:
                total += form_rotated(B, X, left, right).square_().sum((0, 2))
        return total

    def unit_blocks(self, order: int | None = None) -> Tensor:
        """Per output unit the sum over columns of w w^T, (G M, D, D).

        ``order`` n splits every w into D / n runs, each with a block of its own, (G M D / n, n, n).
        """
        groups, outputs, inputs = self.layer.shape
        runs, order = (1, inputs) if order is None else (inputs // order, order)
        total = self.slopes.new_zeros(groups * outputs * runs, order, order)
        for B, X in self.tiles():
            rows = unit_rows(B, X).unflatten(-1, (runs, order)).transpose(1, 2).flatten(0, 1)
            total.baddbmm_(rows.mT, rows)
        return total

    def contract_inputs(self, middle: Tensor) -> Tensor:
        """The sum over columns of W middle W^T, (G, M, M), for ``middle`` (G, D, D) or a diagonal (G, D)."""
        groups, outputs, _ = self.layer.shape
        total = torch.zeros(groups, outputs, outputs, dtype=torch.float64, device=self.slopes.device)
        for B, X in self._contraction_tiles():
            if self._kernels_are_cheaper:
                kernels = X.mT @ middle_patches(middle, X)
                total += torch.einsum("rngms,rngos->gmo", B @ kernels, B)
            else:
                W = form(B, X)
                total += torch.einsum("ngrmd,ngrod->gmo", formed_middle(W, middle), W)
        return total.to(self.slopes.dtype)

    def contract_outputs(self, middle: Tensor | None = None) -> Tensor:
        """The sum over columns of W^T middle W, (G, D, D), for ``middle`` (G, M, M) or a diagonal (G, M).

        By default ``middle`` is the identity.
        """
        groups, _, inputs = self.layer.shape
        total = torch.zeros(groups, inputs, inputs, dtype=torch.float64, device=self.slopes.device)
        for B, X in self._contraction_tiles():
            if self._kernels_are_cheaper:
                left = B if middle is None else middle_slopes(middle, B)
                total += torch.einsum("ngds,nges->gde", X @ torch.einsum("rngms,rngmt->ngst", B, left), X)
            else:
                W = form(B, X)
                total += torch.einsum("ngrmd,ngrme->gde", W, W if middle is None else middle_formed(middle, W))
        return total.to(self.slopes.dtype)

    def _contraction_tiles(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Tiles of samples whose kernels, or matrices W, are formed at once."""
        R, _, _, M, S = self.slopes.shape
        groups, _, inputs = self.layer.shape
        return self.tiles(2 * groups * S * (R * M + inputs + S) if self._kernels_are_cheaper else None)

    @property
    def _kernels_are_cheaper(self) -> bool:
        """Whether S x S kernels, one per sample, take fewer FLOPs than a matrix W per column."""
        R, _, _, M, S = self.slopes.shape
        D = self.layer.inputs
        return S**2 * (D + R * M) + S * (D**2 + R * M**2) < R * M * D * (S + M + D)

    @property
    def _pairs_are_cheaper(self) -> bool:
        """Whether products of all pairs of positions, which the columns of a sample share, beat squares of each W."""
        R, _, _, M, S = self.slopes.shape
        D = self.layer.inputs
        return S == 1 or S**2 * (R * M + D + M * D) < R * M * D * (S + 1)

    @property
    def unit_row_count(self) -> int:
        """Rows of ``unit_rows`` per unit: one per column, or one per sample for a layer without positions."""
        return self.count if self.slopes.shape[-1] > 1 else self.slopes.shape[1]

    def unit_tiles(self, step: int) -> Iterator[tuple[slice, Tensor]]:
        """``unit_rows`` of at most ``step`` units at a time, with the slice of the G M units that they are."""
        patches = self.patches()
        for group in range(self.layer.groups):
            one = slice(group, group + 1)
            for first in range(0, self.layer.outputs, step):
                part = slice(first, min(first + step, self.layer.outputs))
                start = group * self.layer.outputs
                rows = unit_rows(self.slopes[:, :, one, part], patches[:, one])
                yield slice(start + part.start, start + part.stop), rows

    def unit_rows(self) -> Tensor:
        """Rows w per output unit whose outer products w w^T sum to its block, (G M, rows, D)."""
        return torch.cat([unit_rows(B, X) for B, X in self.tiles()], dim=1)


def stored(inputs: Tensor, dtype: torch.dtype) -> Tensor:
    """Inputs in a floating dtype; indices stay as they are."""
    return inputs.to(dtype) if inputs.is_floating_point() else inputs


def pair_squares(B: Tensor, X: Tensor) -> Tensor:
    """The sum over columns of W * W as the sum over pairs of positions of (B_s B_t) (X_s X_t); (G, M, D).

    Entries that rounding takes below zero are set to zero.
    """
    weights = torch.einsum("rngms,rngmt->ngmst", B, B)
    pairs = torch.einsum("ngds,ngdt->ngdst", X, X)
    return torch.einsum("ngmst,ngdst->gmd", weights, pairs).clamp_min(0)


def unit_rows(B: Tensor, X: Tensor) -> Tensor:
    """Rows w per output unit whose outer products sum to its block, (G M, rows, D)."""
    if B.shape[-1] == 1:  # w_r = b_r x for the one x of a sample, so that its R columns merge into one row
        B = B.square().sum(0, keepdim=True).sqrt()
    W = form(B, X)
    return W.permute(1, 3, 0, 2, 4).reshape(W.shape[1] * W.shape[3], -1, W.shape[4])
