"""What a layer is: its kind, its shape in letters, and the types of the Fisher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

FisherType = Literal["type-2", "mc", "empirical", "forward-only"]
FISHER_ALIASES: Mapping[str, FisherType] = {"type2": "type-2", "exact": "type-2"}
Kind = Literal["linear", "conv1d", "conv2d"]


def canonical_type(name: Any) -> Any:
    """The name of a Fisher type, of which the type-2 Fisher has several; any other value as it is."""
    return FISHER_ALIASES.get(name, name) if isinstance(name, str) else name


@dataclass(frozen=True)
class Layer:
    """Geometry of one covered layer. A Conv1d is a Conv2d of height 1; a Linear has no kernel.

    ``outputs`` (M) and ``inputs`` (D, bias included) are per group; ``start`` is the offset of the layer's
    first entry in the parameter vector; ``padding`` is (left, right, top, bottom) as ``F.pad`` takes it.
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
    padding_mode: str = "zeros"

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
