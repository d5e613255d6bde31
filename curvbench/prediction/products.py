"""FLOPs and numbers of the products that methods share, per block, as ``parts`` and ``fisher`` make them.

Leading terms, with the smaller ones where they are seen on small networks. A multiply-add is 2 FLOPs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from curvbench.numerics import bands_of
from curvbench.parts.factors import is_cut
from curvbench.parts.others import LARGEST_BLOCK
from curvbench.prediction.layout import Block, Shape

EIGH, CHOLESKY, INVERSE = 9.0, 1 / 3, 1.0  # FLOPs over n^3: ``meters.flop_model``; an inverse takes a Cholesky factor
POWER = 2 + 8 / 3  # of a product and a QR factorization with its basis


def half(order: int, bands: int = 1) -> float:
    """The share of a product R R^T of this order that ``numerics.self_product`` computes with at least these bands."""
    count = min(max(bands, bands_of(order)), order)
    return (count + 1) / (2 * count)


def slab_rows(role: Shape) -> float:
    """Rows of pairs of kernel rows that ``patch_moment`` multiplies, over those of one pair."""
    side = role.kernel[0] if len(role.kernel) > 1 else 1
    height = max(math.isqrt(role.positions), 1)
    ends = [(n - 1) * role.dilation for n in range(1, side + 1)]
    if role.stride > 1 or height <= ends[-1]:
        return side * (side + 1) / 2
    return sum(height - end + n * end for n, end in enumerate(ends, 1)) / height


@dataclass(frozen=True)
class Case:
    """One block under one method: the block's letters, N, R, and the method's hyperparameters ``of``."""

    block: Block
    N: int
    R: int
    of: Mapping[str, Any]

    @cached_property
    def letters(self) -> tuple[int, int, int, int]:
        """G, M, D and S, D of a lookup being the words that a batch is expected to have."""
        G, M, D, S, _ = self.block.size
        return G, M, self.words if self.is_lookup else D, S

    @property
    def is_lookup(self) -> bool:
        return self.block.kind == "lookup"

    @property
    def is_vector(self) -> bool:
        return self.block.kind == "vector"

    @property
    def entries(self) -> int:
        """G M D."""
        return self.block.size.entries

    @property
    def words(self) -> int:
        """Different words among N S drawn from the whole vocabulary with equal chances, at least 1."""
        vocabulary, drawn = self.block.size.inputs, self.N * self.block.size.positions
        return max(1, round(vocabulary * -math.expm1(drawn * math.log1p(-1 / vocabulary)))) if vocabulary > 1 else 1

    def roles(self) -> list[Case]:
        """A case for each layer that reads the block; the others' transposed matrices are their own here."""
        if len(self.block.roles) == 1:
            return [self]
        kinds = {True: "product", False: "lookup"}
        return [
            Case(Block(kinds[role.is_product], (role,)), self.N, self.R, self.of)  # type: ignore[arg-type]
            for role in self.block.roles
        ]

    # Kronecker factors.

    @property
    def sums_of_patches(self) -> float:
        """Additions of ``mean_patch``: a kernel's rows share those along a row."""
        G, _, D, S, _ = self.block.size
        kernel = self.block.roles[0].kernel
        return self.N * S * (1.0 if self.is_lookup else G * D / (kernel[0] if len(kernel) == 2 else 1))

    @property
    def rows(self) -> int:
        """The order of the matrix on the side of the outputs; 1 for a diagonal."""
        return 1 if self.has_diagonal_outputs else self.block.size.outputs

    @property
    def has_diagonal_outputs(self) -> bool:
        """Whether the factor of the outputs is its diagonal."""
        return is_cut(self.block.size.outputs)

    @property
    def has_diagonal_inputs(self) -> bool:
        """Whether the factor of the inputs is its diagonal."""
        return self.is_lookup or is_cut(self.block.size.inputs)

    @property
    def columns(self) -> int:
        """The order of the matrix on the side of the inputs; 1 for a diagonal."""
        return 1 if self.has_diagonal_inputs else self.block.size.inputs

    def sides(self, power: int) -> float:
        """The sum over both factors of order times a power of the order of its matrix."""
        G, M, D, _, _ = self.block.size
        return float(G * (M * self.rows**power + D * self.columns**power))

    def bases(self, per_side: float = 1.0) -> float:
        """G M D times the orders of the sides that are matrices: the FLOPs of both products are twice that."""
        orders = sum(order for order in (self.rows, self.columns) if order > 1)
        return per_side * self.entries * orders

    def input_moment(self) -> float:
        """A: the sum of a a^T over positions, or its diagonal."""
        G, _, D, S, k = self.block.size
        if self.is_lookup:
            return float(self.N * S)
        if self.columns == 1:
            return 4.0 * self.N * S * G * D / max(k, 1)
        role = self.block.roles[0]
        if not role.kernel or role.is_unfolded:
            return 2.0 * self.N * S * G * D**2
        side = role.kernel[0] if len(role.kernel) > 1 else 1
        slab = (D - role.bias) / side
        return 2.0 * self.N * S * G * slab**2 * slab_rows(role) + 2 * self.N * S * G * D

    def formed_moment(self) -> float:
        """A from formed patches, with a weight of every position."""
        G, _, D, S, _ = self.block.size
        if self.is_lookup or self.columns == 1:
            return 4.0 * self.N * S * G * (1 if self.is_lookup else D)
        return 2.0 * self.N * S * G * D * (D * half(D) + 1)

    def output_moment(self) -> float:
        """B: the sum of g g^T over cotangents and positions, or its diagonal, and the sum of these sums."""
        G, M, _, S, _ = self.block.size
        products = 2.0 * self.N * self.R * S * G * M * self.rows * half(self.rows)
        times = math.ceil(self.R * self.N * S / max(M, self.N * S)) if self.R else 0
        return products + G * M * self.rows * (times + 1)

    def vector_order(self) -> int:
        """``others.block_order``."""
        others, size = self.of.get("others", "diagonal"), self.block.size
        if others == "unit":
            return size.inputs
        return size.entries if others == "block" and size.entries <= LARGEST_BLOCK else 1

    def vector_moment(self, order: int | None = None) -> float:
        """The sums of u u^T over runs of a vector's scores."""
        return 2.0 * self.N * self.R * self.entries * (self.vector_order() if order is None else order)

    # Score columns.

    def formed(self, R: int | None = None) -> float:
        """All matrices W = B X^T."""
        G, M, D, S = self.letters
        return 2.0 * self.N * (self.R if R is None else R) * G * M * D * S

    def squares(self) -> float:
        """``Columns.squares`` without bases."""
        G, M, D, S = self.letters
        if S == 1 or S**2 * (self.R * M + D + M * D) < self.R * M * D * (S + 1):
            return self._pairs()
        return self.formed() + 2.0 * self.N * self.R * G * M * D

    def _pairs(self) -> float:
        G, M, D, S = self.letters
        return 2.0 * self.N * G * S**2 * (self.R * M + D / 2 + M * D)

    def rotated_squares(self) -> float:
        """``Columns.squares`` in the bases of both factors."""
        G, M, D, S = self.letters
        left, right = (self.rows if self.rows > 1 else 0), (self.columns if self.columns > 1 else 0)
        if S == 1 or S**2 * (self.R * M + D + M * D) < self.R * M * D * (S + 1):
            return self._pairs() + 2.0 * self.N * G * S * (self.R * M * left + D * right)
        early = 2.0 * self.N * G * (self.R * M * left * min(S, D) + D * right * min(S, self.R * M))
        return early + self.formed() + 2.0 * self.N * self.R * G * M * D

    def unit_blocks(self) -> float:
        """The blocks of all output units."""
        G, M, D, S = self.letters
        if S == 1:
            return 2.0 * self.N * self.R * G * M + 2.0 * self.N * G * M * D * (1 + D)
        return self.formed() + 2.0 * self.N * self.R * G * M * D**2

    @property
    def has_kernels(self) -> bool:
        """Whether contractions take a kernel per sample instead of a matrix per column."""
        _, M, D, S = self.letters
        return S**2 * (D + self.R * M) + S * (D**2 + self.R * M**2) < self.R * M * D * (S + M + D)

    def contracted_inputs(self) -> float:
        """``Columns.contract_inputs`` with a diagonal: the sum of W W^T."""
        G, M, D, S = self.letters
        R, N = self.R, self.N
        if self.has_kernels:
            return 2.0 * N * G * (R * M * S**2 + D * S**2 + R * S * M**2) + N * G * D * S
        return self.formed() + N * R * G * M * D * (2.0 * M + 1)

    def contracted_outputs(self) -> float:
        """``Columns.contract_outputs``: the sum of W^T W."""
        G, M, D, S = self.letters
        R, N = self.R, self.N
        if self.has_kernels:
            return 2.0 * N * G * (R * M * S**2 + D * S**2 + S * D**2)
        return self.formed() + 2.0 * N * R * G * M * D**2

    def gram(self) -> float:
        """All inner products of the block's columns."""
        G, M, D, S = self.letters
        R, N = self.R, self.N
        if self.is_vector:
            return 2.0 * (N * R) ** 2 * self.entries
        direct = G * ((R * N) ** 2 * M * D + 2.0 * R * N * M * D * S)
        kernel = G * N * (N + 1) / 2 * (2.0 * D * S**2 + 2 * R * M * S**2 + 2 * R**2 * M * S)
        if direct < kernel:
            return direct + G * (R * N) ** 2 * M * D / 8 + (R * N) ** 2
        if S == 1 and G == 1:
            return 2.0 * N**2 * D + 2.0 * (R * N) ** 2 * M + (R * N) ** 2
        return kernel + G * N * (N - 1) * D * S**2

    def combine(self, K: int = 1) -> float:
        """Weighted sums of the columns."""
        G, M, D, S = self.letters
        return 2.0 * K * self.N * G * M * S * (self.R + D)

    def project(self, K: int = 1) -> float:
        """Inner products of the columns with vectors."""
        return self.combine(K)

    def stored_columns(self) -> float:
        """Numbers of slopes and inputs."""
        G, M, _, S, _ = self.block.size
        role = self.block.roles[0]
        if self.is_vector:
            return float(self.N * self.R * self.entries + self.N)
        width = 1 if self.is_lookup else role.inputs * role.stride ** len(role.kernel)
        width = role.size.inputs * G if role.is_unfolded else width
        return float(self.N * S * (self.R * G * M + width))
