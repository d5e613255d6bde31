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
from curvbench.fisher.columns import Columns
from curvbench.instance import Instance
from curvbench.instance.refusals import refuse_other_outputs
from curvbench.instance.tape import Tape
from curvbench.spec import Layer

GROUP_BYTES = 2**24
_FEW = 16  # cotangents that share the patches of a layer: above the classes of most problems
_TENSORS_PER_OUTPUT = 6  # activations, normalizations and gradients around a layer, in sizes of its output


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

    Backward passes stop at the first of the layers; of the samples only ``graph_bytes`` worth are recorded at a time.
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
    """What ``collect`` gives, and the outputs (N, ..., C) of the same passes."""
    layers = layers or instance.layers
    outputs: list[Tensor] = []
    inputs: dict[str, list[Tensor]] = {layer.name: [] for layer in layers}
    slopes: dict[str, list[Tensor]] = {layer.name: [] for layer in layers}
    names = {layer.name for layer in layers}
    for _, tape, pulled in _passes(instance, fisher_type, mc_samples, seed, names, samples, graph_bytes):
        outputs.append(tape.outputs.detach())
        found: dict[str, list[Tensor]] = {name: [] for name in names}
        for values in pulled:
            for name, value in values.items():
                found[name].append(value.to(dtype, copy=True))
        for name in names:
            inputs[name].append(tape.inputs[name].to(dtype))
            slopes[name].append(torch.stack(found.pop(name)))
    columns = tuple(Columns(layer, _joined(inputs, layer, 0), _joined(slopes, layer, 1)) for layer in layers)
    return columns, outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def groups(
    instance: Instance, fisher_type: str, mc_samples: int = 1, seed: int = 0, group_bytes: int = GROUP_BYTES
) -> Iterator[tuple[Columns, ...]]:
    """The same columns of all layers, so many cotangents at a time that their slopes take ``group_bytes``, or a few.

    For sums over columns, of which all would take as much more memory as there are outputs.
    """
    names = {layer.name for layer in instance.layers}
    for some, tape, pulled in _passes(instance, fisher_type, mc_samples, seed, names, slice(None), GRAPH_BYTES):
        one = some.samples * _outputs(instance) * instance.dtype.itemsize
        while group := list(islice(pulled, max(_FEW, group_bytes // one))):
            joined = {name: torch.stack([values.pop(name) for values in group]) for name in names}
            yield tuple(Columns(layer, tape.inputs[layer.name], joined.pop(layer.name)) for layer in instance.layers)


def _passes(
    instance: Instance,
    fisher_type: str,
    mc_samples: int,
    seed: int,
    names: set[str],
    samples: slice,
    graph_bytes: int,
) -> Iterator[tuple[Instance, Tape, Iterator[dict[str, Tensor]]]]:
    """Some of the samples, their recorded pass and what is pulled back through it, in each turn."""
    parts = _parts(instance, samples, graph_bytes)
    cotangents = outputs = None
    if parts != [slice(0, instance.samples)]:
        outputs = instance.outputs()
        if fisher_type == "mc":  # draws are those of the whole batch, however cut
            cotangents = torch.stack(list(instance.cotangents(outputs, "mc", mc_samples, seed)))
    for part in parts:
        some = instance if outputs is None else instance.part(part)
        tape = some.tape(names)
        if outputs is not None:
            refuse_other_outputs(tape.outputs, outputs[part])
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
    return [slice(first, min(first + step, stop)) for first in range(start, stop, step)]


def _joined(parts: dict[str, list[Tensor]], layer: Layer, dimension: int) -> Tensor:
    """The parts of a layer, which are let go."""
    tensors = parts.pop(layer.name)
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dimension)


@dataclass(eq=False)
class Source:
    """How to make columns: the arguments of ``collect``, and which layers are held at the same time."""

    instance: Instance
    fisher_type: str
    mc_samples: int
    seed: int
    dtype: torch.dtype
    segments: Sequence[Sequence[Layer]]
    held: dict[str, Columns] = field(default_factory=dict)

    def columns(self, layer: Layer) -> Columns:
        """The columns of a layer; those of another segment are let go first."""
        if layer.name not in self.held:
            self.held = {}
            segment = next(s for s in self.segments if layer in s)
            self.held = {c.layer.name: c for c in self.collect(segment)}
        return self.held[layer.name]

    def collect(self, layers: Sequence[Layer], samples: slice = slice(None)) -> tuple[Columns, ...]:
        """The columns of some layers and samples, not held."""
        return collect(self.instance, self.fisher_type, self.mc_samples, self.seed, self.dtype, layers, samples)


@dataclass(frozen=True, eq=False)
class Stream(Sequence[Columns]):
    """The columns of some layers, made when they are read: one segment's fit into memory at a time.

    Read in the order of the layers: going back makes a segment again.
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
) -> Sequence[Columns]:
    """All columns if they take at most ``memory`` bytes (default: ``column_memory``), else a stream of them."""
    budget = column_memory(instance.device) if memory is None else memory
    found = segments(instance, instance.columns_per_sample(fisher_type, mc_samples), dtype.itemsize, budget)
    if len(found) == 1:
        return collect(instance, fisher_type, mc_samples, seed, dtype)
    return Stream(Source(instance, fisher_type, mc_samples, seed, dtype, found), instance.layers)


def segments(instance: Instance, columns: int, itemsize: int, budget: int) -> list[list[Layer]]:
    """Consecutive layers whose slopes and inputs take at most ``budget`` bytes together (one layer at least)."""
    result: list[list[Layer]] = []
    room = 0
    for layer in instance.layers:
        size = instance.sizes[layer.name]
        numbers = columns * size.outputs + size.inputs / max(size.kernel, 1)  # inputs: of a stride of one
        needed = int(instance.samples * size.groups * size.positions * numbers * itemsize)
        if not result or needed > room:
            result.append([])
            room = budget
        result[-1].append(layer)
        room -= needed
    return result
