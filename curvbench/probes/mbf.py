"""Mini-block Fisher: one small block per output unit or kernel, or their mean (Bahamou, Goldfarb and Ren 2023).

A Linear has one block per output unit, the bias inside. A convolution has one per pair of output and input channel,
of k_h k_w entries; the bias of an output channel belongs to no pair and is a block of one entry. Only the paper's
abstract is known here: its Fisher is the empirical one (``fisher_type``). Which blocks it averages is our reading.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from curvbench.fisher import collect
from curvbench.fisher.columns import Columns
from curvbench.instance import Instance
from curvbench.numerics import checked_together
from curvbench.operators import BlockDiagonal
from curvbench.parts.miniblocks import MiniBlocks, kernel_blocks
from curvbench.parts.storage import too_large
from curvbench.spec import About, FisherProbe, LayerSize

Choice = Literal["avg", "all"]


@dataclass(frozen=True)
class Mbf(FisherProbe):
    """Exact blocks of output units (Linear) and of kernels (convolutions), averaged over a layer or not.

    ``fc``: the blocks of a Linear. ``avg`` is one block that all units share, their mean; ``all`` keeps every block.
    ``conv``: the blocks of a convolution's kernels, ``avg`` or ``all`` in the same sense.

    Both are projections of the exact Fisher: traces are kept.
    """

    fc: Choice = "avg"
    conv: Choice = "all"

    supports_ema: ClassVar[bool] = True
    combines_by = "mean"
    is_layerwise = True

    about = About(
        represents="Linear: I (x) the mean of the units' blocks; convolutions: one block per kernel, biases apart",
        notes=(
            "A lookup, a weight that is tied in two orientations, and a norm's scale and shift, or any other vector, "
            "with a row per channel, have the blocks of a Linear. A kernel in three dimensions is one block; a "
            "transposed convolution has a block per entry.",
        ),
        damping="damping I is added to every block, which is inverted on its own",
        cost={
            "statistics": "[k > 0] N R G M D ([S > 1] S + k) + [k = 0] [fc = all] N R G M D ([S > 1] S + D)"
            " + [k = 0] [fc = avg] [S = 1] (N D^2 + N R M)"
            " + [k = 0] [fc = avg] [S > 1] min(N R M S^2 + N D S (S + D), N R M D (S + D))",
            "invert": "B Q^3 / 6",
            "precondition": "G M D Q",
            "memory": "B Q^2",
        },
        where={
            "Q": "[k > 0] k + [k = 0] D",
            "B": "1 + ([k > 0] [conv = all] + [k = 0] [fc = all]) (floor(G M D / max(k + [k = 0] D, 1)) - 1)",
        },
        source="Bahamou, Goldfarb and Ren 2023; the averages are how they are understood here, not read in the paper",
        family="smaller factors",
        color="brown",
        formulas=(
            r"\hat F_\ell = I_M \otimes \frac{1}{M} \sum_{o=1}^{M} \mathrm{E}[w_o w_o^\top] \quad \mathrm{(Linear)}",
            r"\hat F_\ell = \bigoplus_{o,i} \mathrm{E}[w_{oi} w_{oi}^\top] \quad \mathrm{(convolution)}",
        ),
    )

    def unsupported(self, instance: Instance) -> str | None:
        entries = sum(_entries(size, self.fc == "all") for size in instance.sizes.values())
        return too_large("mini-blocks", entries, instance.dtype)

    def update(self, state: list[MiniBlocks] | None, batch: Instance) -> list[MiniBlocks]:
        columns = collect(batch, self.fisher_type, self.mc_samples, self.seed)
        return [self._blocks(c, batch.terms) for c in columns]

    def _blocks(self, columns: Columns, terms: int) -> MiniBlocks:
        layer = columns.layer
        rows = layer.groups * layer.outputs
        if layer.kind not in ("conv1d", "conv2d", "matrix"):
            if self.fc == "avg":
                return MiniBlocks(rows, 1, columns.contract_outputs() / (rows * terms))
            return MiniBlocks(rows, 1, columns.unit_blocks() / terms)
        blocks, bias = (None if sums is None else sums / terms for sums in kernel_blocks(columns))
        assert blocks is not None
        per_row = len(blocks) // rows
        if self.conv == "all":
            return MiniBlocks(rows, per_row, blocks, bias)
        mean_bias = None if bias is None else bias.mean(0, keepdim=True)
        return MiniBlocks(rows, per_row, blocks.mean(0, keepdim=True), mean_bias)

    def refresh(self, state: list[MiniBlocks]) -> list[MiniBlocks]:
        return checked_together(lambda: [mini.factorized(self.damping) for mini in state])

    def precondition(self, state: list[MiniBlocks], gradient: Tensor) -> Tensor:
        parts = gradient.split([mini.size for mini in state])
        return torch.cat([mini.solve(part, self.damping) for mini, part in zip(state, parts, strict=True)])

    def operator(self, state: list[MiniBlocks]) -> BlockDiagonal:
        return BlockDiagonal([mini.operator() for mini in state])


def _entries(size: LayerSize, every_unit: bool) -> int:
    """The entries of a layer's blocks before any mean is taken."""
    rows = size.groups * size.outputs
    return rows * size.inputs * size.kernel if size.kernel else size.inputs**2 * (rows if every_unit else 1)
