"""Many cotangents: their passes in blocks, and a last linear layer whose moments take no cotangents at all.

Both begin at ``MANY`` cotangents, above which the calls of the passes take longer than their work.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from curvbench.instance import layers as geometry
from curvbench.instance.instance import Instance
from curvbench.instance.likelihood.hessians import Hessians
from curvbench.instance.tape import Tape
from curvbench.numerics import widened
from curvbench.spec.geometry import canonical_type

MANY = 128
BLOCK_BYTES = 2**24  # output gradients of a block: a small part of the memory of the pass itself
_COPIES = 3  # of them in a pass: as autograd gives them, as the layer before reads them, and as they are used


class Head(NamedTuple):
    """A last linear layer with many outputs: its role, and the Hessians of the loss terms at its outputs."""

    role: str
    hessians: Hessians


def head(instance: Instance, tape: Tape, fisher_type: str) -> Head | None:
    """The linear layer whose outputs are the model's, if it has many and the loss has Hessians in closed form."""
    if canonical_type(fisher_type) != "type-2" or instance.likelihood.rank(instance.classes) < MANY:
        return None
    role = tape.head
    hessians = None if role is None else hessians_at(instance, tape.values)
    return None if role is None or hessians is None else Head(role, hessians)


class Compressible(NamedTuple):
    """A layer with more outputs than inputs at the end of a network: its name, and the number of its inputs."""

    name: str
    inputs: int


def compressible(instance: Instance) -> Compressible | None:
    """The layer whose columns ``fisher.compressed`` may compress, as shapes tell before any pass."""
    ends = [la for la in instance.layers if la.outputs == instance.classes and la.kind in ("linear", "tied")]
    if not ends or len(instance.layers) == 1:
        return None
    inputs = ends[-1].inputs - ends[-1].bias
    return Compressible(ends[-1].name, inputs) if inputs < instance.likelihood.rank(instance.classes) else None


def hessians_at(instance: Instance, outputs: Tensor, samples: slice = slice(None)) -> Hessians | None:
    """The Hessians of the loss terms of some samples at their outputs (N, ..., C); None without a closed form."""
    return instance.likelihood.hessians(widened(outputs), instance.targets[samples])


def blocks(
    instance: Instance, tape: Tape, fisher_type: str, mc_samples: int, seed: int, last: Head | None = None
) -> Iterator[dict[str, Tensor]]:
    """Block by block of K cotangents the output gradients (K, N, G, M, S) of all recorded roles but that of ``last``.

    A block is one backward pass. It has a single cotangent if there are few, or if the pass has no batched derivative.
    With a last layer of D inputs, fewer than the cotangents of a term, D mixtures of these stand for all: sums of their
    squares and products stay the same.
    """
    names = [name for name in tape.roles if last is None or name != last.role]
    if not names:
        return
    if last is not None and tape.can_begin_below(last.role, names):
        W = tape.weight(last.role, instance.parameters)
        if W.shape[1] < instance.likelihood.rank(instance.classes):
            at_inputs = [last.hessians.compressed(term, W)[1] for term in range(last.hessians.count)]
            yield from below(instance, tape, last.role, torch.stack(at_inputs), names)
            return
    size = _block_size(instance, tape, names, instance.columns_per_sample(canonical_type(fisher_type), mc_samples))
    yield from pulled(tape, instance.cotangents(tape.values, fisher_type, mc_samples, seed), names, size)


def below(
    instance: Instance, tape: Tape, role: str, at_inputs: Tensor, names: Collection[str]
) -> Iterator[dict[str, Tensor]]:
    """The blocks of some roles for cotangents at the input of the last layer ``role``.

    ``at_inputs`` (n, D, K): K cotangents of each term, which are zero at the other terms' positions.
    """
    by_sample = at_inputs.to(tape.outputs.dtype).unflatten(0, (instance.samples, -1))
    N, T, D, K = by_sample.shape
    size = _block_size(instance, tape, names, max(T * K, MANY))
    for t in range(T):
        for some in by_sample[:, t].permute(2, 0, 1).split(size):
            cotangents = some.new_zeros(len(some), N, T, D)
            cotangents[:, :, t] = some
            gradients = tape.pull_block(cotangents, names, role)
            yield {
                name: geometry.slopes(tape.roles[name], gradients[name]).unflatten(0, (len(some), -1)) for name in names
            }


def pulled(tape: Tape, cotangents: Iterator[Tensor], names: Collection[str], size: int) -> Iterator[dict[str, Tensor]]:
    """The blocks for cotangents (N, ..., C) that come one by one, ``size`` at a time; the last pass frees the graph."""
    block = list(islice(cotangents, size))
    while block:
        following = list(islice(cotangents, size))
        if len(block) == 1:
            gradients = tape.pull(block[0].to(tape.outputs.dtype), bool(following), names)
        else:
            gradients = tape.pull_block(torch.stack(block).to(tape.outputs.dtype), names)
        roles = {name: tape.roles[name] for name in names}
        yield {
            name: geometry.slopes(role, gradients[name]).unflatten(0, (len(block), -1)) for name, role in roles.items()
        }
        block = following


def _block_size(instance: Instance, tape: Tape, names: Collection[str], cotangents: int) -> int:
    if cotangents < MANY or not tape.has_batched_passes(names):
        return 1
    numbers = tape.outputs.numel() + sum(tape.shape(name).numel() for name in names)
    return max(1, BLOCK_BYTES // (_COPIES * numbers * tape.outputs.element_size()))
