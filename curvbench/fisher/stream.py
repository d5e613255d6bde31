"""Passes through the network that make score columns: all at once, some cotangents at a time, or a segment of layers.

A segment is made again whenever it is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import overload

import torch
from torch import Tensor

from curvbench.fisher.budget import GRAPH_BYTES, column_memory
from curvbench.fisher.columns import Columns, stored
from curvbench.fisher.head import HeadScores, LayerScores
from curvbench.fisher.tied import columns_of, joined_roles
from curvbench.instance import Instance
from curvbench.instance.many import Head, blocks, head, hessians_at, pulled
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


def collect_closed(instance: Instance, fisher_type: str, mc_samples: int = 1, seed: int = 0) -> tuple[LayerScores, ...]:
    """``collect`` for all layers and samples, but a last linear layer with many outputs has no columns."""
    return _collected(instance, fisher_type, mc_samples, seed, instance.dtype, instance.layers, closed=True)[0]


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
    found, outputs = _collected(instance, fisher_type, mc_samples, seed, dtype, layers, samples, graph_bytes)
    return tuple(c for c in found if isinstance(c, Columns)), outputs


def _collected(
    instance: Instance,
    fisher_type: str,
    mc_samples: int,
    seed: int,
    dtype: torch.dtype,
    layers: Sequence[Layer],
    samples: slice = slice(None),
    graph_bytes: int = GRAPH_BYTES,
    closed: bool = False,
) -> tuple[tuple[LayerScores, ...], Tensor]:
    """The columns and the outputs of ``with_outputs``; ``closed``: those of a last layer as ``collect_closed`` says."""
    outputs: list[Tensor] = []
    roles, last = roles_of(layers), None
    inputs: dict[str, list[Tensor]] = {name: [] for name in roles}
    slopes: dict[str, list[Tensor]] = {name: [] for name in roles}
    names = {layer.name for layer in layers}
    for _, tape, head_here, passed in _passes(
        instance, fisher_type, mc_samples, seed, names, samples, graph_bytes, closed
    ):
        last = head_here
        outputs.append(tape.values)
        of_part: dict[str, list[Tensor]] = {name: [] for name in roles}
        for block in passed:
            for name, slope in block.items():
                of_part[name].append(slope.to(dtype))
        for name in roles:
            inputs[name].append(stored(tape.inputs[name], dtype))
            if parts := of_part.pop(name):
                slopes[name].append(torch.cat(parts) if len(parts) > 1 else parts[0].contiguous())
    joint = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    made: dict[str, Columns] = {}
    for name, role in roles.items():
        if last is None or name != last.role:
            made[name] = columns_of(role, _joined(inputs, role, 0), _joined(slopes, role, 1))
    if last is None:
        return tuple(joined_roles(layer, made) for layer in layers), joint
    hessians = hessians_at(instance, joint, samples)
    assert hessians is not None, "a part of the batch had them"
    scores = HeadScores(roles[last.role], _joined(inputs, roles[last.role], 0), hessians)
    return tuple(scores if layer.name == last.role else joined_roles(layer, made) for layer in layers), joint


def groups(
    instance: Instance, fisher_type: str, mc_samples: int = 1, seed: int = 0, group_bytes: int = GROUP_BYTES
) -> Iterator[tuple[Columns, ...]]:
    """The columns of all layers, some cotangents at a time, whose slopes take ``group_bytes``; 16 cotangents at least.

    Sums over columns need no more memory that way, where all columns would take R times as much.
    """
    for group in _groups(instance, fisher_type, mc_samples, seed, group_bytes, closed=False):
        yield tuple(c for c in group if isinstance(c, Columns))


def closed_groups(
    instance: Instance, fisher_type: str, mc_samples: int = 1, seed: int = 0
) -> Iterator[tuple[LayerScores, ...]]:
    """``groups`` in which a last linear layer with many outputs comes once for its samples, without columns."""
    return _groups(instance, fisher_type, mc_samples, seed, GROUP_BYTES, closed=True)


def _groups(
    instance: Instance, fisher_type: str, mc_samples: int, seed: int, group_bytes: int, closed: bool
) -> Iterator[tuple[LayerScores, ...]]:
    names = {layer.name for layer in instance.layers}
    passes = _passes(instance, fisher_type, mc_samples, seed, names, slice(None), GRAPH_BYTES, closed)
    for some, tape, last, passed in passes:
        if last is not None:
            yield (HeadScores(tape.roles[last.role], tape.inputs[last.role], last.hessians),)
        one = some.samples * _outputs(instance) * instance.dtype.itemsize
        for group in _joined_blocks(passed, max(_LEAST_GROUP, group_bytes // one)):
            made = {name: columns_of(tape.roles[name], tape.inputs[name], slopes) for name, slopes in group.items()}
            yield tuple(
                joined_roles(layer, made) for layer in instance.layers if last is None or layer.name != last.role
            )


def _joined_blocks(blocks: Iterator[dict[str, Tensor]], count: int) -> Iterator[dict[str, Tensor]]:
    """Blocks (K, N, G, M, S) by role, joined to blocks of at least ``count`` cotangents but for the last one."""
    waiting: list[dict[str, Tensor]] = []
    for block in blocks:
        waiting.append(block)
        if sum(len(next(iter(b.values()))) for b in waiting) >= count:
            yield _one_block(waiting)
            waiting = []
    if waiting:
        yield _one_block(waiting)


def _one_block(blocks: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([block.pop(name) for block in blocks]) for name in list(blocks[0])}


def _passes(
    instance: Instance,
    fisher_type: str,
    mc_samples: int,
    seed: int,
    names: set[str],
    samples: slice,
    graph_bytes: int,
    closed: bool,
) -> Iterator[tuple[Instance, Tape, Head | None, Iterator[dict[str, Tensor]]]]:
    """Part by part of the samples: the instance, its recorded pass, and the slopes by role, blocks of cotangents.

    ``closed``: the last layer comes as a ``Head`` where it has one, and has no slopes then.
    """
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
        last = head(some, tape, fisher_type) if closed else None
        last = last if last is not None and last.role in names else None  # a role of a tied block is no layer
        if cotangents is None:
            yield some, tape, last, blocks(some, tape, fisher_type, mc_samples, seed, last)
        else:
            yield some, tape, None, pulled(tape, iter(cotangents[:, part]), tape.roles, 1)


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
