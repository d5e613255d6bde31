"""Passes through the network that make score columns: all at once, some cotangents at a time, or a segment of layers.

A segment is made again whenever it is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import overload

import torch
from torch import Tensor

from curvbench.fisher.budget import GRAPH_BYTES, column_memory
from curvbench.fisher.columns import Columns, stored
from curvbench.fisher.tied import columns_of, joined_roles
from curvbench.instance import Instance
from curvbench.instance.refusals import refuse_other_outputs
from curvbench.instance.survey import roles_of
from curvbench.instance.tape import Tape
from curvbench.spec import Layer

GROUP_BYTES = 2**24  # slopes of a group: a small part of the memory of the pass itself
_LEAST_GROUP = 16  # cotangents, which share a layer's patches: more than most problems have classes
_TENSORS_PER_OUTPUT = 6  # a pass keeps activations, normalizations and gradients beside a layer's output


def collect(
    instance: Instance,
    fisher_type: str,
    mc_samples: int = 1,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    layers: Sequence[Layer] | None = None,
    samples: slice = slice(None),
    graph_bytes: int = GRAPH_BYTES,
) -> tuple[Columns, ...]:
    """The score columns of some layers and samples (default: all), stored in ``dtype`` (default: the instance's own).

    Backward passes stop at the first of the layers. A recorded pass keeps about ``graph_bytes`` and takes as many
    samples as that allows.
    """
    dtype = dtype or instance.dtype
    return with_outputs(instance, fisher_type, mc_samples, seed, dtype, layers, samples, graph_bytes)[0]


def with_outputs(
    instance: Instance,
    fisher_type: str,
    mc_samples: int,
    seed: int,
    dtype: torch.dtype,
    layers: Sequence[Layer] | None = None,
    samples: slice = slice(None),
    graph_bytes: int = GRAPH_BYTES,
) -> tuple[tuple[Columns, ...], Tensor]:
    """The columns of ``collect``, and the outputs (N, ..., C) of the same passes."""
    layers = layers or instance.layers
    if instance.coupled and samples != slice(None):  # scores of coupled samples exist in their batch alone
        columns, joint = with_outputs(instance, fisher_type, mc_samples, seed, dtype, layers, slice(None), graph_bytes)
        return tuple(c.part(samples) for c in columns), joint[samples]
    outputs: list[Tensor] = []
    roles = roles_of(layers)
    inputs: dict[str, list[Tensor]] = {name: [] for name in roles}
    slopes: dict[str, list[Tensor]] = {name: [] for name in roles}
    names = {layer.name for layer in layers}
    for _, tape, pulled in _passes(instance, fisher_type, mc_samples, seed, names, samples, graph_bytes):
        outputs.append(tape.values)
        of_part: dict[str, list[Tensor]] = {name: [] for name in roles}
        for by_role in pulled:
            for name, slope in by_role.items():
                of_part[name].append(slope.to(dtype, copy=True))
        for name in roles:
            inputs[name].append(stored(tape.inputs[name], dtype))
            slopes[name].append(torch.stack(of_part.pop(name)))
    made = {name: columns_of(role, _joined(inputs, role, 0), _joined(slopes, role, 1)) for name, role in roles.items()}
    columns = tuple(joined_roles(layer, made) for layer in layers)
    return columns, outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def groups(
    instance: Instance, fisher_type: str, mc_samples: int = 1, seed: int = 0, group_bytes: int = GROUP_BYTES
) -> Iterator[tuple[Columns, ...]]:
    """The columns of all layers, some cotangents at a time, whose slopes take ``group_bytes``; 16 cotangents at least.

    Sums over columns need no more memory that way, where all columns would take R times as much.
    """
    names = {layer.name for layer in instance.layers}
    for some, tape, pulled in _passes(instance, fisher_type, mc_samples, seed, names, slice(None), GRAPH_BYTES):
        one = some.samples * _outputs(instance) * instance.dtype.itemsize
        while group := list(islice(pulled, max(_LEAST_GROUP, group_bytes // one))):
            made = {
                name: columns_of(role, tape.inputs[name], torch.stack([values.pop(name) for values in group]))
                for name, role in tape.roles.items()
            }
            yield tuple(joined_roles(layer, made) for layer in instance.layers)


def _passes(
    instance: Instance,
    fisher_type: str,
    mc_samples: int,
    seed: int,
    names: set[str],
    samples: slice,
    graph_bytes: int,
) -> Iterator[tuple[Instance, Tape, Iterator[dict[str, Tensor]]]]:
    """Part by part of the samples: the instance, its recorded pass, and the slopes per cotangent and layer."""
    parts = _parts(instance, samples, graph_bytes)
    cotangents = outputs = None
    if parts != [slice(0, instance.samples)]:
        outputs = instance.outputs()
        if fisher_type == "mc":  # the draws of the whole batch, so that they do not depend on the parts
            cotangents = torch.stack(list(instance.cotangents(outputs, "mc", mc_samples, seed)))
    for part in parts:
        some = instance if outputs is None else instance.part(part)
        tape = some.tape(names)
        if outputs is not None:
            refuse_other_outputs(tape.values, outputs[part])
        if cotangents is None:
            yield some, tape, some.slopes(tape, fisher_type, mc_samples, seed)
        else:
            yield some, tape, some.pull(tape, iter(cotangents[:, part]))


def _outputs(instance: Instance) -> int:
    """Numbers at the outputs of all layers for one sample."""
    return sum(s.groups * s.outputs * s.positions for s in instance.sizes.values())


def _parts(instance: Instance, samples: slice, graph_bytes: int) -> list[slice]:
    step = max(1, graph_bytes // (_outputs(instance) * _TENSORS_PER_OUTPUT * instance.dtype.itemsize))
    start, stop, _ = samples.indices(instance.samples)
    if instance.coupled:
        return [slice(start, stop)]
    return [slice(first, min(first + step, stop)) for first in range(start, stop, step)]


def _joined(parts: dict[str, list[Tensor]], layer: Layer, dimension: int) -> Tensor:
    """The parts of a layer in one tensor; the parts are removed from ``parts`` to free their memory."""
    tensors = parts.pop(layer.name)
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dimension)


@dataclass(eq=False)
class Source:
    """The arguments of ``collect``, and the segments of layers whose columns are stored at the same time."""

    instance: Instance
    fisher_type: str
    mc_samples: int
    seed: int
    dtype: torch.dtype
    segments: Sequence[Sequence[Layer]]
    stored: dict[str, Columns] = field(default_factory=dict)

    def columns(self, layer: Layer) -> Columns:
        """The columns of a layer; reading them frees the columns of the other segments."""
        if layer.name not in self.stored:
            self.stored = {}
            segment = next(s for s in self.segments if layer in s)
            self.stored = {c.layer.name: c for c in self.collect(segment)}
        return self.stored[layer.name]

    def collect(self, layers: Sequence[Layer], samples: slice = slice(None)) -> tuple[Columns, ...]:
        """The columns of some layers and samples, which are not stored here."""
        return collect(self.instance, self.fisher_type, self.mc_samples, self.seed, self.dtype, layers, samples)


@dataclass(frozen=True, eq=False)
class Stream(Sequence[Columns]):
    """The columns of some layers, made when they are read, because only one segment's columns fit into memory.

    Read them in the order of the layers: a step back makes a segment again.
    """

    source: Source
    layers: tuple[Layer, ...]

    @overload
    def __getitem__(self, index: int) -> Columns: ...
    @overload
    def __getitem__(self, index: slice) -> Stream: ...
    def __getitem__(self, index: int | slice) -> Columns | Stream:
        if isinstance(index, slice):
            return Stream(self.source, self.layers[index])
        return self.source.columns(self.layers[index])

    def __len__(self) -> int:
        return len(self.layers)


def columns_within(
    instance: Instance, fisher_type: str, mc_samples: int, seed: int, dtype: torch.dtype, memory: int | None = None
) -> tuple[Sequence[Columns], Tensor | None]:
    """All columns if they take at most ``memory`` bytes, else a stream; None means the bytes of ``column_memory``.

    With them come the outputs (N, ..., C) of the passes that made all columns; None for a stream, which has made none.
    """
    budget = column_memory(instance.device) if memory is None else memory
    parts = segments(instance, instance.columns_per_sample(fisher_type, mc_samples), dtype.itemsize, budget)
    if len(parts) == 1:
        return with_outputs(instance, fisher_type, mc_samples, seed, dtype)
    return Stream(Source(instance, fisher_type, mc_samples, seed, dtype, parts), instance.layers), None


def segments(instance: Instance, R: int, itemsize: int, budget: int) -> list[list[Layer]]:
    """Consecutive layers whose slopes and inputs take at most ``budget`` bytes together (one layer at least)."""
    result: list[list[Layer]] = []
    room = 0
    for layer in instance.layers:
        size = instance.sizes[layer.name]
        numbers = R * size.outputs + size.inputs / max(size.kernel, 1)  # inputs as with a stride of one
        needed = int(instance.samples * size.groups * size.positions * numbers * itemsize)
        if not result or needed > room:
            result.append([])
            room = budget
        result[-1].append(layer)
        room -= needed
    return result
