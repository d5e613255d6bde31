"""What a Fisher matrix covers: parameters, layers with their kinds and shapes in letters, and its types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

FisherType = Literal["type-2", "mc", "empirical", "forward-only"]
FISHER_ALIASES: Mapping[str, FisherType] = {"type2": "type-2", "exact": "type-2"}
Parameters = Literal["all", "weights"]
Kind = Literal["linear", "conv1d", "conv2d", "matrix", "lookup", "tied", "vector"]
PARAMETERS: Mapping[Parameters, str] = {"all": "all parameters", "weights": "weights only"}
LEVELS: Mapping[Kind, int] = {"lookup": 1, "tied": 1, "vector": 2}
"""The order of kinds in the parameter vector: weights (0), then lookups, then vectors."""


class Piece(NamedTuple):
    """Where some columns of a block lie in a parameter: strides of (G, M, columns) from an offset, all contiguous."""

    parameter: str
    offset: int
    strides: tuple[int, int, int]
    columns: int


def refuse_parameters(parameters: str) -> None:
    """Raise ValueError for a choice that is neither all trainable parameters nor the weights alone."""
    if parameters not in PARAMETERS:
        raise ValueError(f"parameters must be 'all' or 'weights', got {parameters!r}")


def canonical_type(name: Any) -> Any:
    """The name of a Fisher type, of which the type-2 Fisher has several; any other value as it is."""
    return FISHER_ALIASES.get(name, name) if isinstance(name, str) else name


@dataclass(frozen=True)
class Layer:
    """Geometry of one block of the parameter vector, a matrix (G, M, D): in most cases a weight with its bias.

    ``kind``: how inputs become patches. A ``linear`` has no kernel; a ``conv1d`` is a ``conv2d`` of height 1; inputs of
    a ``matrix`` are patches already (transposed and three-dimensional convolutions, convolutions called several
    times); a ``lookup`` has indices instead of one-hot inputs; a ``tied`` block is used in two orientations; a
    ``vector`` is a norm's scale and shift, or any other parameter without a product. ``outputs`` (M) and ``inputs``
    (D, bias included) are per group. ``start``: the offset of the first entry in the parameter vector. ``padding``:
    (left, right, top, bottom) as ``F.pad`` takes it. ``pieces``: the parameters that hold the block's columns, one
    after the other. ``roles``: of a tied block, the matrices of its uses, each as if it stood alone.
    """

    name: str
    kind: Kind
    groups: int
    outputs: int
    inputs: int
    bias: bool
    start: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    pieces: tuple[Piece, ...] = ()
    roles: tuple[Layer, ...] = ()

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters that hold the block's entries."""
        return tuple(dict.fromkeys(piece.parameter for piece in self.pieces))

    @property
    def level(self) -> int:
        """0 for a weight, 1 for a lookup, 2 for a vector."""
        return LEVELS.get(self.kind, 0)

    @property
    def size(self) -> int:
        return self.groups * self.outputs * self.inputs

    @property
    def slice(self) -> slice:
        return slice(self.start, self.start + self.size)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(G, M, D)."""
        return self.groups, self.outputs, self.inputs


class LayerSize(NamedTuple):
    """What a cost model needs to know of a layer: G, M and D per group, S positions, k_h k_w (0 for a Linear)."""

    groups: int
    outputs: int
    inputs: int
    positions: int
    kernel: int = 0

    @property
    def entries(self) -> int:
        return self.groups * self.outputs * self.inputs
