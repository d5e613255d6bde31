"""What a traced pass notes: the calls that read a weight, and the weight that each of them reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

Operation = Literal["linear", "conv", "transposed", "lookup", "scale", "shift"]


def contiguous(size: Sequence[int]) -> tuple[int, ...]:
    """The strides of a tensor that lies in memory row by row."""
    return tuple(math.prod(size[i + 1 :]) for i in range(len(size)))


class View(NamedTuple):
    """A parameter, or a view of it: ``as_strided`` of the parameter's entries row by row."""

    name: str
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


class Computed(NamedTuple):
    """A tensor that is computed from parameters without any activation: the ``number``-th one of its pass."""

    number: int


Weight = View | Computed


class Key(NamedTuple):
    """The name of a call, which is the same in every pass: the ``occurrence``-th such operation on this weight."""

    operation: Operation
    weight: Weight
    occurrence: int


class Event(NamedTuple):
    """What a pass did at a known call, or when it computed a weight.

    ``key``: of the call; None for a computed weight. ``size``: the numbers of the call's gradient per sample, the shape
    of a computed weight; None for a call that is no use.
    """

    key: Key | None
    size: float | tuple[int, ...] | None


class Window(NamedTuple):
    """The geometry of a convolution with d spatial dimensions; ``padding`` holds a pair per dimension."""

    groups: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class Call:
    """One use of a weight: the gradient at ``edge`` and the input ``x`` make up the weight's score.

    ``shape``: of that gradient. ``rows``: its dimensions along which the weight is repeated, one of which holds the
    samples; the other dimensions belong to the weight. ``x``: the input as the operation read it, indices for a
    ``lookup`` (-1 where padding has no gradient), the normalized input for a ``scale`` as ``normalized`` makes it on
    demand. ``x`` is None if the score is the gradient itself. ``source``: the place of the input in the graph.
    ``host``: of a bias or of a shift, the call at the same edge whose weight it belongs to. ``tensor``: the computed
    weight. ``padded``: the input before a padding that repeats its entries, None without such a padding.
    """

    key: Key
    edge: GradientEdge
    shape: torch.Size
    rows: tuple[int, ...]
    x: Tensor | None = None
    version: int = 0
    source: GradientEdge | None = None
    window: Window | None = None
    normalized: Callable[[Tensor], Tensor] | None = None
    host: Key | None = None
    tensor: Tensor | None = None
    padded: Tensor | None = None

    def without_graph(self) -> Call:
        """The call without its places in the graph, for those whom the graph itself holds."""
        return replace(self, edge=GradientEdge(None, 0), source=None)  # type: ignore[arg-type]

    @property
    def read(self) -> Tensor | None:
        """The input that the layer as a whole reads, before its own padding; ``source`` is its place."""
        return self.x if self.padded is None else self.padded

    @property
    def is_matrix(self) -> bool:
        """Whether the score is a product of the gradient and the input, and not a sum over rows."""
        return self.key.operation not in ("scale", "shift")

    @property
    def kept(self) -> tuple[int, ...]:
        """The dimensions of the gradient that belong to the weight."""
        return tuple(d for d in range(len(self.shape)) if d not in self.rows)
