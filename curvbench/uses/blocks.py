"""Blocks of the parameter vector from the uses of the parameters, and the role that every call plays in its block.

A weight whose every use is a matrix product has a matrix (G, M, D) with its bias as last column, where all of these
uses have that bias and the bias no other use. Disjoint slices of a parameter are blocks of their own. A weight that is
used in two orientations (an embedding that is the output layer too) is ``tied``: it has a role for each. Scale and
shift of one norm are the two columns of a ``vector``, and so are alone all other parameters that are added or
multiplied entry by entry. What fits nothing of this is a ``vector`` whose scores are formed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from curvbench.spec.geometry import Kind, Layer, Piece
from curvbench.uses.calls import Call, Event, Key, Operation, View, Weight, contiguous
from curvbench.uses.owners import Layout, Order


class Use(NamedTuple):
    """What a call contributes to the scores of a role: ``column`` of a vector, or a product of gradient and input.

    ``role``: None for a bias that is a column of its weight's matrix, and for what is formed. ``formed``: the
    score is formed and added to a parameter's entries, because the block is no matrix. ``ones``: the bias's 1 is
    appended to the input.
    """

    role: str | None
    layout: Layout
    column: int = 0
    formed: bool = False
    ones: bool = False


@dataclass(frozen=True, eq=False)
class Plan:
    """How the columns of a model are made: the same for every pass over a batch of this kind.

    ``layers``: the blocks, weights before lookups before vectors. ``uses``: by call. ``vetoed``, ``cloned`` and
    ``uncut`` are what ``Tracer`` needs. ``generic``: parameters whose columns plain autograd makes, sample by sample.
    ``formed``: those whose scores are formed, the generic ones among them; a block of its own holds each. ``shapes``:
    per role those of one sample's input and gradient. ``is_mixed``: whether a call with a row per sample by its shape
    has rows that samples share, which coupled samples have. ``events`` and ``reorders``: those of the planned pass; see
    ``Tracer``.
    """

    layers: tuple[Layer, ...]
    uses: Mapping[Key, Use]
    vetoed: frozenset[Key] = frozenset()
    cloned: frozenset[Key] = frozenset()
    uncut: frozenset[str] = frozenset()
    generic: tuple[str, ...] = ()
    formed: frozenset[str] = frozenset()
    is_mixed: bool = False
    shapes: Mapping[str, tuple[torch.Size, torch.Size]] = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    reorders: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether rows are in simple orders, which hold for any other batch too."""
        return not self.reorders and all(isinstance(use.layout, Order) for use in self.uses.values())

    @property
    def is_numbered(self) -> bool:
        """Whether calls have computed weights, whose numbers hold only if every parameter is followed."""
        return any(event.key is None for event in self.events)

    def fits(self, events: Sequence[Event]) -> bool:
        """Whether another pass made the calls of the planned one; it may have skipped all calls of a weight."""
        if self.is_numbered or any(event.key is None for event in events):
            return self.events == tuple(events)
        planned, found = _by_weight(self.events), _by_weight(events)
        return all(planned.get(use) == sizes for use, sizes in found.items())


def _by_weight(events: Iterable[Event]) -> dict[tuple[Operation, Weight], list[object]]:
    sizes: dict[tuple[Operation, Weight], list[object]] = {}
    for key, size in events:
        assert key is not None
        sizes.setdefault((key.operation, key.weight), []).append(size)
    return sizes


class Place(NamedTuple):
    """The matrix (G, M, D) that an operation sees in a weight, as strides of the parameter's storage."""

    name: str
    offset: int
    shape: tuple[int, int, int]
    strides: tuple[int, int, int]

    @property
    def region(self) -> tuple[str, int, frozenset[tuple[int, int]]]:
        """The entries, whatever the orientation."""
        pairs = zip(self.shape, self.strides, strict=True)
        return self.name, self.offset, frozenset(pair for pair in pairs if pair[0] > 1)

    def entries(self, numel: int) -> Tensor:
        """The numbers of the entries in the parameter, flat."""
        return torch.arange(numel, device="cpu").as_strided(self.shape, self.strides, self.offset).flatten()


def place(call: Call) -> Place | None:
    """The place of a call's weight; None if it has no such matrix."""
    weight = call.key.weight
    if not isinstance(weight, View) or not call.is_matrix:
        return None
    size, stride, window = weight.size, weight.stride, call.window
    if call.key.operation == "linear":
        return Place(weight.name, weight.offset, (1, *size), (0, *stride))  # type: ignore[arg-type]
    if call.key.operation == "lookup":
        return Place(weight.name, weight.offset, (1, size[1], size[0]), (0, stride[1], stride[0]))
    assert window is not None
    inner = math.prod(size[1:])
    if stride[1:] != contiguous(size[1:]):
        return None
    G, rows = window.groups, size[0] // window.groups
    if call.key.operation == "conv":
        return Place(weight.name, weight.offset, (G, rows, inner), (rows * stride[0], stride[0], 1))
    return Place(weight.name, weight.offset, (G, inner, rows), (rows * stride[0], 1, stride[0]))


class Builder:
    """Makes the blocks of all parameters from the calls of one traced pass and their layouts."""

    def __init__(self, parameters: Mapping[str, Tensor], calls: Sequence[Call], layouts: Mapping[Key, Layout]) -> None:
        self.parameters, self.layouts = parameters, layouts
        self.order = {name: i for i, name in enumerate(parameters)}
        self.calls = [call for call in calls if call.key in layouts]
        self.by_name: dict[str, list[Call]] = {}
        self.uses: dict[Key, Use] = {}
        self.layers: list[tuple[tuple[int, int, int], Layer]] = []
        self.formed: set[str] = set()
        self.done: set[str] = set()

    def build(
        self, computed: Mapping[Key, Collection[str]], formed: Collection[str]
    ) -> tuple[list[Layer], dict[Key, Use]]:
        """The blocks in order, and the uses.

        ``computed``: the parameters behind each call of a computed weight. ``formed``: parameters that are no matrix,
        whatever their calls.
        """
        layers, uses = self._built(computed, formed)
        if not (holes := self._holes(layers)):
            return layers, uses
        again = Builder(self.parameters, self.calls, self.layouts)
        built = again.build(computed, {*formed, *holes})
        self.formed = again.formed
        return built

    def _holes(self, layers: Sequence[Layer]) -> list[str]:
        """The parameters some of whose entries are in no block, as those of a bias that one of its weights lacks."""
        held: Counter[str] = Counter()
        for layer in layers:
            for piece in layer.pieces:
                held[piece.parameter] += layer.groups * layer.outputs * piece.columns
        return [name for name, count in held.items() if count < _reals(self.parameters[name])]

    def _built(
        self, computed: Mapping[Key, Collection[str]], formed: Collection[str]
    ) -> tuple[list[Layer], dict[Key, Use]]:
        for call in self.calls:
            names = [call.key.weight.name] if isinstance(call.key.weight, View) else computed[call.key]
            for name in names:
                self.by_name.setdefault(name, []).append(call)
        behind = {name for names in computed.values() for name in names}
        self.formed = {n for n in self.by_name if n in behind or not self._is_regular(n)} | set(formed)
        for name in self.by_name:
            if name not in self.formed and any(call.is_matrix for call in self.by_name[name]):
                self._matrices(name)
        for name in self.by_name:
            if name not in self.done and name not in self.formed:
                self._vector(name)
        for name in self.formed:
            self._add(name, "vector", (1, _reals(self.parameters[name]), 1), [_whole(name)], 2)
        for call in self.calls:
            if call.key not in self.uses:
                self.uses[call.key] = Use(None, self.layouts[call.key], formed=True)
        self.layers.sort(key=lambda item: item[0])
        return _started([layer for _, layer in self.layers]), self.uses

    def _is_regular(self, name: str) -> bool:
        """Whether a parameter's uses are all products with disjoint matrices that cover it, or none is a product."""
        calls = self.by_name[name]
        matrices = [call for call in calls if call.is_matrix]
        places = [place(call) for call in matrices]
        if not matrices or len(matrices) < len(calls) or None in places:
            return not matrices
        regions = {p.region: p for p in places if p is not None}
        numel = self.parameters[name].numel()
        entries = torch.cat([p.entries(numel) for p in regions.values()])
        return len(entries) == numel and (len(regions) == 1 or len(entries.unique()) == numel)

    def _matrices(self, name: str) -> None:
        groups: dict[object, list[Call]] = {}
        for call in self.by_name[name]:
            found = place(call)
            assert found is not None
            groups.setdefault(found.region, []).append(call)
        for calls in groups.values():
            self._matrix(name, calls, len(groups) > 1)
        self.done.add(name)

    def _matrix(self, name: str, calls: list[Call], is_slice: bool) -> None:
        """The block of one region: a matrix with its bias, a lookup, or a tied block of two orientations."""
        places: dict[Place, list[Call]] = {}
        for call in sorted(calls, key=lambda c: c.key.operation == "lookup"):
            found = place(call)
            assert found is not None
            places.setdefault(found, []).append(call)
        label = self._unused(self._named(name, next(iter(places)) if is_slice else None))
        position = (self.order[name], next(iter(places)).offset)
        if len(places) > 1:
            self._tied(label, places, position)
            return
        ((of, members),) = places.items()
        bias = self._bias(members)
        level = int(members[0].key.operation == "lookup")
        role = self._role(label, of, members, bias)
        self.layers.append(((level, *position), role))
        for call in members:
            self.uses[call.key] = Use(label, self.layouts[call.key], ones=bias is not None)

    def _tied(self, label: str, places: Mapping[Place, list[Call]], position: tuple[int, int]) -> None:
        roles = []
        for number, (of, members) in enumerate(places.items()):
            role = self._role(f"{label}#{number}", of, members, None)
            roles.append(role)
            for call in members:
                self.uses[call.key] = Use(role.name, self.layouts[call.key])
        first = next(iter(places))
        piece = Piece(first.name, first.offset, first.strides, first.shape[2])
        G, M, D = first.shape
        self.layers.append(
            ((1, *position), Layer(label, "tied", G, M, D, False, 0, pieces=(piece,), roles=tuple(roles)))
        )

    def _bias(self, calls: Sequence[Call]) -> View | None:
        """The bias that all calls of a matrix have in common and that has no other use."""
        if calls[0].key.operation not in ("linear", "conv"):
            return None
        hosts = {call.key for call in calls}
        shifts = [c for c in self.calls if c.host in hosts]
        weights = {c.key.weight for c in shifts}
        if len(shifts) != len(calls) or len(weights) != 1 or not isinstance(weight := weights.pop(), View):
            return None
        others = [c for c in self.by_name[weight.name] if c not in shifts and _overlap(c.key.weight, weight)]
        if others or weight.name in self.formed:
            return None
        whole = math.prod(weight.size) == self.parameters[weight.name].numel()
        if not whole and not self._is_split(weight.name):
            return None
        self.done.add(weight.name)
        for call in shifts:
            self.uses[call.key] = Use(None, self.layouts[call.key])
        return weight

    def _is_split(self, name: str) -> bool:
        """Whether all uses of a bias are disjoint slices that belong to matrices and cover it."""
        views = {c.key.weight for c in self.by_name[name] if isinstance(c.key.weight, View)}
        hosted = all(c.host is not None and c.host in self.layouts for c in self.by_name[name])
        sizes = sum(math.prod(view.size) for view in views)
        places = {view.offset for view in views}
        return hosted and sizes == self.parameters[name].numel() and len(places) == len(views)

    def _role(self, label: str, of: Place, calls: Sequence[Call], bias: View | None) -> Layer:
        G, M, D = of.shape
        pieces = [Piece(of.name, of.offset, of.strides, D)]
        if bias is not None:
            step = bias.stride[0]
            pieces.append(Piece(bias.name, bias.offset, (M * step, step, 0), 1))
        has_bias = bias is not None
        layer = Layer(label, _kind(calls, self.layouts), G, M, D + has_bias, has_bias, 0, pieces=tuple(pieces))
        return _with_window(layer, calls[0]) if calls[0].key.operation == "conv" else layer

    def _vector(self, name: str) -> None:
        """A vector of one parameter, or of the scale and the shift of one norm."""
        calls = self.by_name[name]
        names = [name]
        if (other := self._shift_of(calls)) is not None:
            names.append(other)
        label = self._named(name)
        for column, member in enumerate(names):
            self.done.add(member)
            for call in self.by_name[member]:
                self.uses[call.key] = Use(label, self.layouts[call.key], column)
        pieces = [_whole(member) for member in names]
        self._add(label, "vector", (1, _reals(self.parameters[name]), len(names)), pieces, 2)

    def _shift_of(self, calls: Sequence[Call]) -> str | None:
        """The parameter that shifts what another one scales, always and nowhere else."""
        if any(call.key.operation != "scale" for call in calls):
            return None
        hosts = {call.key for call in calls}
        shifts = [c for c in self.calls if c.host in hosts]
        names = {c.key.weight.name for c in shifts if isinstance(c.key.weight, View)}
        if len(names) != 1 or len(shifts) != len(calls):
            return None
        (name,) = names
        fits = self.parameters[name].numel() == self.parameters[calls[0].key.weight.name].numel()  # type: ignore[union-attr]
        return name if fits and name not in self.formed and len(self.by_name[name]) == len(calls) else None

    def _unused(self, label: str) -> str:
        """The label, with a mark if a block of this name exists."""
        names = {layer.name for _, layer in self.layers}
        while label in names:
            label += "'"
        return label

    def _named(self, name: str, of: Place | None = None) -> str:
        if of is not None:
            rows = max(of.shape[1], 1)
            start = of.offset // max(of.strides[1], of.strides[2], 1)
            return f"{name}[{start}:{start + (rows if of.strides[1] >= of.strides[2] else of.shape[2])}]"
        prefix, _, last = name.rpartition(".")
        label = prefix if prefix and last == "weight" else name
        return name if any(layer.name == label for _, layer in self.layers) else label

    def _add(self, label: str, kind: Kind, shape: tuple[int, int, int], pieces: Iterable[Piece], level: int) -> None:
        first = next(iter(pieces := tuple(pieces)))
        layer = Layer(label, kind, *shape, False, 0, pieces=pieces)
        self.layers.append(((level, self.order[first.parameter], first.offset), layer))


def _kind(calls: Sequence[Call], layouts: Mapping[Key, Layout]) -> Kind:
    operations = {call.key.operation for call in calls}
    if operations == {"linear"}:
        return "linear"
    if operations == {"lookup"}:
        return "lookup"
    window = calls[0].window
    is_plain = len(calls) == 1 and operations == {"conv"} and layouts[calls[0].key] == Order(0)
    if not is_plain or window is None or len(window.kernel) > 2:
        return "matrix"
    return "conv1d" if len(window.kernel) == 1 else "conv2d"


def _with_window(layer: Layer, call: Call) -> Layer:
    """The layer with the geometry of its convolution; a Conv1d counts as a Conv2d on planes of height 1."""
    window = call.window
    assert window is not None

    if layer.kind == "matrix":
        return replace(layer, kernel=(window.kernel[0], math.prod(window.kernel[1:])))

    def plane(values: tuple[int, ...]) -> tuple[int, int]:
        return (1, *values)[-2:]  # type: ignore[return-value]

    (top, bottom), (left, right) = ((0, 0), *window.padding)[-2:]
    return replace(
        layer,
        kernel=plane(window.kernel),
        stride=plane(window.stride),
        dilation=plane(window.dilation),
        padding=(left, right, top, bottom),
    )


def _started(layers: Sequence[Layer]) -> list[Layer]:
    placed, start = [], 0
    for layer in layers:
        placed.append(replace(layer, start=start))
        start += layer.size
    return placed


def _whole(name: str) -> Piece:
    return Piece(name, 0, (0, 1, 0), 1)


def _reals(parameter: Tensor) -> int:
    return parameter.numel() * (2 if parameter.is_complex() else 1)


def _overlap(weight: object, other: View) -> bool:
    """Whether two views of one parameter may share entries: those of equal size at other offsets do not."""
    if not isinstance(weight, View):
        return True
    ends = [view.offset + math.prod(view.size) for view in (weight, other)]
    return weight.offset < ends[1] and other.offset < ends[0]
