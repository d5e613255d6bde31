"""The layers of a network as numbers: all that a cost needs to know of a model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

from curvbench.spec.geometry import LayerSize
from curvbench.words import near_misses

LayerKind = Literal["linear", "conv", "embedding", "norm", "vector", "attention"]
BlockKind = Literal["product", "lookup", "tied", "vector"]
LARGEST = 10**12  # of any number of a layer: no network has more
MOST_REPEATS = 10**6
LOSSES = ("cross_entropy", "gaussian")
NEEDED: dict[LayerKind, tuple[str, ...]] = {
    "linear": ("in", "out"),
    "conv": ("in", "out", "kernel"),
    "embedding": ("in", "out"),
    "norm": ("out",),
    "vector": ("out",),
    "attention": ("in",),
}
KEYS = {"in": "inputs", "out": "outputs"}  # where a file's key is another word than the field
TAKEN: dict[LayerKind, tuple[str, ...]] = {
    "linear": ("positions", "groups", "bias", "tied_to"),
    "conv": ("positions", "groups", "bias", "stride", "dilation", "tied_to"),
    "embedding": ("positions", "tied_to"),
    "norm": ("positions", "bias"),
    "vector": ("in",),
    "attention": ("positions", "keys"),
}
SUMS = {"norm": (8, 10, 3), "vector": (1, 0, 1)}  # FLOPs per number: forward, for the input, for the parameters


@dataclass(frozen=True)
class Shape:
    """One layer, or ``repeat`` equal ones.

    ``inputs`` and ``outputs``: channels of all groups together. An ``embedding`` has a vocabulary of ``inputs``. A
    ``norm`` has a scale for each of its ``outputs``, with ``bias`` a shift too. A ``vector`` is a parameter of
    ``outputs`` x ``inputs`` numbers without a product (positions, a class token). ``attention`` has no parameters;
    ``inputs`` is the width of its values, all heads together. ``positions``: rows per sample (pixels of the output,
    tokens). ``keys``: the positions that each position of an attention reads; 0 means all. ``tied_to``: the name of the
    layer whose parameter this one reads.
    """

    name: str
    kind: LayerKind
    inputs: int = 1
    outputs: int = 0
    kernel: tuple[int, ...] = ()
    stride: int = 1
    dilation: int = 1
    positions: int = 1
    groups: int = 1
    bias: bool = False
    keys: int = 0
    repeat: int = 1
    tied_to: str = ""

    @property
    def is_product(self) -> bool:
        """Whether the layer multiplies rows by a matrix."""
        return self.kind in ("linear", "conv")

    @property
    def window(self) -> int:
        """The entries of a kernel; 0 for a layer without one."""
        return math.prod(self.kernel) if self.kernel else 0

    @property
    def is_unfolded(self) -> bool:
        """Whether patches are formed: those of a kernel in three dimensions are."""
        return len(self.kernel) == 3

    @property
    def size(self) -> LayerSize:
        """G, M, D, S and k of one layer, as its block in the parameter vector has them."""
        if self.kind == "norm":
            return LayerSize(1, self.outputs, 1 + self.bias, 1 + self.bias)
        if self.kind == "vector":
            return LayerSize(1, self.outputs * self.inputs, 1, 1)
        patch = self.inputs // self.groups * max(self.window, 1) + self.bias
        return LayerSize(self.groups, self.outputs // self.groups, patch, self.positions, self.window)

    @property
    def parameters(self) -> int:
        """Numbers of all repeats; a tied layer and an attention have none of their own."""
        return 0 if self.tied_to or self.kind == "attention" else self.size.entries * self.repeat

    @property
    def product(self) -> float:
        """FLOPs of one repeat's product with the rows of one sample."""
        if not self.is_product:
            return 0.0
        return 2.0 * self.positions * self.outputs * (self.inputs // self.groups) * max(self.window, 1)

    @property
    def sums(self) -> tuple[float, float, float]:
        """FLOPs of one repeat and sample that are no product with a weight: forward, for inputs, for parameters."""
        if self.kind == "attention":
            pairs = 2.0 * self.positions * (self.keys or self.positions) * self.inputs
            return 2 * pairs, 5 * pairs, 0.0
        if self.kind in SUMS:
            numbers = float(self.positions * self.outputs * self.inputs)
            forward, inputs, own = SUMS[self.kind]
            return forward * numbers, inputs * numbers, own * numbers
        return 0.0, 0.0, 0.0

    def check(self) -> None:
        """Raise ValueError for numbers that no layer of the kind has; the text begins with the key."""
        kind_of(self.kind)
        numbers = (self.inputs, self.outputs, *self.kernel, self.positions, self.keys, self.repeat)
        if max(numbers) > LARGEST:
            raise ValueError(f"a number above {LARGEST:,}: {max(numbers):,}")
        if self.repeat > MOST_REPEATS:
            raise ValueError(f"repeat must be at most {MOST_REPEATS:,}, got {self.repeat}")
        for key, value in (("in", self.inputs), ("out", self.outputs)):
            if key in NEEDED[self.kind] and value < 1:
                raise ValueError(f"{key} must be at least 1, got {value}")
        for key in ("stride", "dilation", "positions", "groups", "repeat"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, got {getattr(self, key)}")
        if self.keys < 0:
            raise ValueError(f"keys must not be negative, got {self.keys}")
        if any(side < 1 for side in self.kernel):
            raise ValueError(f"kernel must be at least 1 in every direction, got {list(self.kernel)}")
        if self.inputs % self.groups or (self.is_product and self.outputs % self.groups):
            raise ValueError(f"groups must divide in and out, got {self.groups} for {self.inputs} and {self.outputs}")


@dataclass(frozen=True)
class Block:
    """A block of the parameter vector. ``roles``: the layers that read it, of which all but one are tied to the first.

    ``own``: the matrix (M, D) in which a method of matrices reads a vector; that of a product is its size.
    """

    kind: BlockKind
    roles: tuple[Shape, ...]

    @property
    def repeat(self) -> int:
        """How many equal blocks there are."""
        return self.roles[0].repeat

    @cached_property
    def size(self) -> LayerSize:
        """G, M, D, S and k of one block; S sums the positions of all roles."""
        return self.roles[0].size._replace(positions=sum(role.size.positions for role in self.roles))

    @property
    def own(self) -> tuple[int, int]:
        """The matrix (M, D) of a vector's parameter, where it has two dimensions."""
        role = self.roles[0]
        return (role.outputs, role.inputs) if role.kind == "vector" else (self.size.outputs, self.size.inputs)


@dataclass(frozen=True)
class Shapes:
    """The layers of a network in its order, and the batch.

    ``samples``: N. ``terms``: loss terms per sample, T. ``outputs``: C of a term; 0 means those of the last product.
    ``loss``: ``cross_entropy``, whose type-2 Fisher has C - 1 columns per term, or ``gaussian`` with C. ``forward`` and
    ``backward``: FLOPs per sample of all that is no product with a weight (norms, activations, attention), if they were
    counted; None means that those of the norms and attentions that are listed count. ``source``: where the numbers come
    from. ``name``: what errors and tables call the network.

    Raises:
        ValueError: a number is out of range, or a layer is tied to one that there is not; the text names the layer.
    """

    layers: tuple[Shape, ...]
    samples: int = 1
    terms: int = 1
    outputs: int = 0
    loss: str = "cross_entropy"
    forward: float | None = None
    backward: float | None = None
    source: str = ""
    name: str = "shapes"

    def __post_init__(self) -> None:
        for key in ("samples", "terms"):
            if not 1 <= getattr(self, key) <= LARGEST:
                raise ValueError(f"{self.name}: {key} must be at least 1 and at most {LARGEST:,}")
        for key in ("outputs", "forward", "backward"):
            if not 0 <= (getattr(self, key) or 0) < math.inf:
                raise ValueError(f"{self.name}: {key} must be finite and not negative, got {getattr(self, key)}")
        if self.loss not in LOSSES:
            raise ValueError(f"{self.name}: unknown loss {self.loss!r}: {near_misses(self.loss, LOSSES)}")
        for layer in self.layers:
            try:
                layer.check()
                self._check_tie(layer)
            except ValueError as error:
                raise ValueError(f"{self.name}: layer {layer.name!r}: {error}") from None
        if not self.blocks:
            raise ValueError(f"{self.name}: there is no layer with parameters")
        if self.classes < 1 + (self.loss == "cross_entropy"):
            raise ValueError(f"{self.name}: outputs must be at least 2 with {self.loss}, got {self.classes}")

    def _check_tie(self, layer: Shape) -> None:
        names = [other.name for other in self.layers]
        if names.count(layer.name) > 1:
            raise ValueError("name must be the only one, but another layer has it")
        if not layer.tied_to:
            return
        free = [other.name for other in self.layers if other.parameters and other.name != layer.name]
        if layer.tied_to not in free:
            raise ValueError(f"tied_to names no layer with parameters: {near_misses(layer.tied_to, free)}")
        first = next(other for other in self.layers if other.name == layer.tied_to)
        if {first.inputs, first.outputs} != {layer.inputs, layer.outputs} or first.repeat != layer.repeat:
            raise ValueError(f"tied_to {first.name!r} needs its in, out and repeat")

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks of the parameter vector, in the order of the layers."""
        return tuple(_block(layer, self.layers) for layer in self.layers if layer.parameters)

    @property
    def parameters(self) -> int:
        """P."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def classes(self) -> int:
        """C."""
        return self.outputs or next((la.outputs for la in reversed(self.layers) if la.is_product), 0)

    def columns(self, fisher_type: str, mc_samples: int = 1) -> int:
        """The score columns per sample in a Fisher type, R; none for any other name."""
        if fisher_type == "mc":
            return mc_samples
        per_term = {"type-2": self.classes - (self.loss == "cross_entropy"), "empirical": 1}.get(fisher_type, 0)
        return per_term * self.terms

    def slopes(self, fisher_type: str, mc_samples: int = 1) -> float:
        """FLOPs of the loss's derivatives at the outputs that a Fisher type takes, from no pass."""
        C, is_softmax = self.classes, self.loss == "cross_entropy"
        of_kind = {
            "type-2": 3.4 * C + 8 if is_softmax else C,
            "mc": (17 if is_softmax else 0) + 2 * mc_samples,
            "empirical": 7 if is_softmax else 2,
        }
        return of_kind.get(fisher_type, 0.0) * self.samples * self.terms * C

    def each(self) -> Iterator[LayerSize]:
        """The size of every block, repeats included."""
        for block in self.blocks:
            yield from [block.size] * block.repeat


def _block(layer: Shape, layers: tuple[Shape, ...]) -> Block:
    """The block that a layer owns; a layer that reads it in the same orientation adds its positions."""
    roles = [layer]
    for other in layers:
        if other.tied_to != layer.name:
            continue
        if other.kind == layer.kind and (other.inputs, other.outputs) == (layer.inputs, layer.outputs):
            roles[0] = replace(roles[0], positions=roles[0].positions + other.positions)
        else:
            roles.append(other)
    if len(roles) > 1:
        return Block("tied", tuple(roles))
    kind: BlockKind = "product" if layer.is_product else "lookup" if layer.kind == "embedding" else "vector"
    return Block(kind, tuple(roles))


def kind_of(word: object) -> LayerKind:
    """The kind of a layer; raises ValueError for a word that is none."""
    kinds = get_args(LayerKind)
    if word not in kinds:
        raise ValueError(f"unknown kind {word!r}: {near_misses(str(word), kinds)}")
    found: LayerKind = next(kind for kind in kinds if kind == word)
    return found
