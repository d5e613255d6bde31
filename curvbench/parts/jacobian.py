"""The map from a layer's output to the input of the next layer, by products with its Jacobian.

``J`` is the Jacobian for one sample of all operations between two calls of layers: activation, BatchNorm, pooling, sums
with other branches, reshapes and so on. The next call is the first later one whose input depends on this call's output.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.instance import Instance
from curvbench.instance import layers as geometry
from curvbench.instance.tape import Tape

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


def _largest_power(dtype: torch.dtype) -> int:
    """The exponent of the smallest power of 2 that is too large for a dtype."""
    return math.frexp(torch.finfo(dtype).max)[1]


def _fraction(dtype: torch.dtype) -> int:
    """The bits of a number without its sign and its exponent."""
    return round(-math.log2(torch.finfo(dtype).eps))


def _other_digits(a: Tensor, b: Tensor) -> Tensor:
    """Where two tensors differ in more than the exponent, as integers."""
    exponent = (2 * _largest_power(a.dtype) - 1) << _fraction(a.dtype)
    bits = (tensor.view(_INTEGERS[a.element_size()]) for tensor in (a, b))
    return torch.bitwise_xor(*bits).bitwise_and_(~exponent)


def _have_same_digits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors (N, ...) differ nowhere but in the exponent, and have their zeros at the same places.

    Reductions of integers take a tenth of the seconds of ``any``.
    """
    found: list[Tensor] = []
    for p, q in zip(numerics.tiles(a), numerics.tiles(b), strict=True):
        found += torch.aminmax(_other_digits(p, q))
        found.append(torch.bitwise_xor(p.bool(), q.bool()).view(torch.uint8).amax())
    return not bool(torch.stack([value.bool() for value in found]).any())


@dataclass(frozen=True, eq=False)
class LocalMap:
    """The map from the output of a ``call`` to the input of the call ``reader`` in a recorded forward pass.

    ``ones`` is J^T 1, shaped like the call's output.
    """

    tape: Tape
    call: int
    reader: int
    ones: Tensor

    def pull(self, cotangent: Tensor) -> Tensor:
        """J^T cotangent, shaped like the call's output, for a cotangent shaped like the reader's input."""
        product = self.tape.pull_between(self.call, self.reader, cotangent)
        return torch.zeros_like(self.ones) if product is None else product

    @property
    def target(self) -> Tensor:
        """The reader's input, (N, ...)."""
        x = self.tape.calls[self.reader][0].read
        assert x is not None
        return x

    def is_one_to_one(self) -> bool:
        """Whether every number of the output feeds at most one number of the reader's input.

        Activations, BatchNorm in evaluation mode, sums with other branches, reshapes and pooling without overlap are
        one to one. For a number that feeds one, with derivative j and a power of 2 as weight w, J^T w = j w has the
        digits of J^T 1 = j. A number that feeds two has other digits if its two powers differ, by so little that the
        smaller product is not rounded away. Powers are in random order, and repeat where the inputs are more than the
        digits: then one such number in 23 is missed in float32, but hardly all of a layer.
        """
        generator, dtype = torch.Generator().manual_seed(0), self.target.dtype
        powers = torch.randperm(self.target[0].numel(), device="cpu", generator=generator) % _fraction(dtype)
        weights = torch.pow(2.0, powers.double()).to(self.target.device, dtype).view(self.target.shape[1:])
        weighted = self.pull(weights.expand_as(self.target))
        if _have_same_digits(weighted, self.ones):
            return True
        differs = (_other_digits(weighted, self.ones) != 0) | ((self.ones == 0) != (weighted == 0))
        size = self.ones.abs()  # a number below the smallest normal one has more digits when it is multiplied
        return not bool((differs & ~((size > 0) & (size < torch.finfo(dtype).tiny))).any())

    def energy(self, draws: int, seed: int = 0) -> Tensor:
        """E[(J^T e)^2] for e of mean 0 and covariance I, shaped like the output: sums of squares over the rows of J.

        The result is exact if the map is one to one, or if the reader's input has at most ``draws`` numbers per sample.
        Otherwise it is the unbiased mean over ``draws`` vectors of random signs.
        """
        if self.is_one_to_one():
            return self.ones.square()
        units = self.target[0].numel()
        vectors = self._unit_vectors(units) if units <= draws else self._signs(draws, seed)
        total = sum((self.pull(vector).square() for vector in vectors), torch.zeros_like(self.ones))
        return total if units <= draws else total / draws

    def _unit_vectors(self, units: int) -> Iterator[Tensor]:
        for k in range(units):
            vector = torch.zeros_like(self.target).flatten(1)
            vector[:, k] = 1
            yield vector.view_as(self.target)

    def _signs(self, draws: int, seed: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(draws):
            signs = 2 * torch.randint(2, self.target.shape, device="cpu", generator=generator) - 1
            yield signs.to(self.target.device, self.target.dtype)


def _products(tape: Tape) -> list[int]:
    """The calls that are products with a weight of a role, in the order of the pass."""
    return [n for n, (call, use) in enumerate(tape.calls) if call.is_matrix and not use.formed]


def local_map(tape: Tape, number: int) -> LocalMap | None:
    """The map from a call's output to the next call's input; None means that no later call depends on the output."""
    for reader in (n for n, (call, _) in enumerate(tape.calls) if n > number and call.is_matrix):
        x = tape.calls[reader][0].read
        ones = None
        if x is not None and x.is_floating_point():
            ones = tape.pull_between(number, reader, x.new_ones(()).expand_as(x))
        if ones is not None:
            return LocalMap(tape, number, reader, ones)
    return None


def energies(
    batch: Instance,
    tape: Tape,
    kind: str,
    mc_samples: int = 1,
    seed: int = 0,
    draws: int | None = None,
    likelihood_at_ends: bool = False,
) -> dict[str, Tensor]:
    """Per role that is a product the squares g^2 of the gradients at its output, (N, G, M, S), over pseudo-samples.

    ``kind``: ``lg`` is E[(J^T e)^2] with e of mean 0 and covariance I (see ``LocalMap.energy``; ``draws=None`` treats
    every map as one to one). ``lg_mc`` is the mean over ``mc_samples`` draws of e. Any other kind is a Fisher type,
    whose gradients are squared.
    ``likelihood_at_ends``: in ``lg`` and ``lg_mc`` a call that no later call reads has the squares of the type-2
    Fisher; without it J = I.
    """
    if kind in ("lg", "lg_mc"):
        ends = likelihood_at_ends
        local = _closed(tape, draws, seed, ends) if kind == "lg" else _sampled(tape, mc_samples, seed, ends)
        local |= _squares(batch, tape, [number for number in _products(tape) if number not in local])
        placed = tape.placed(local)
        return {name: geometry.slopes(tape.roles[name], squares) for name, squares in placed.items()}
    totals: dict[str, Tensor] = {}
    for slopes in batch.slopes(tape, kind, mc_samples, seed):
        totals = {name: b.square() + totals.get(name, 0) for name, b in slopes.items()}
    return totals


def _closed(tape: Tape, draws: int | None, seed: int, likelihood_at_ends: bool) -> dict[int, Tensor]:
    squares: dict[int, Tensor] = {}
    for number in _products(tape):
        between = local_map(tape, number)
        if between is not None:
            squares[number] = between.ones.square() if draws is None else between.energy(draws, seed)
        elif not likelihood_at_ends:
            squares[number] = tape.outputs.new_ones(tape.calls[number][0].shape)
    return squares


def _sampled(tape: Tape, draws: int, seed: int, likelihood_at_ends: bool) -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    squares: dict[int, Tensor] = {}
    for number in _products(tape):
        between = local_map(tape, number)
        if between is None and likelihood_at_ends:
            continue
        shape = tape.calls[number][0].shape
        total = tape.outputs.new_zeros(shape)
        shape = shape if between is None else between.target.shape
        for _ in range(draws):
            e = torch.randn(shape, device="cpu", generator=generator, dtype=torch.float64).to(total.device, total.dtype)
            total += (e if between is None else between.pull(e)).square()
        squares[number] = total / draws
    return squares


def _squares(batch: Instance, tape: Tape, numbers: Sequence[int]) -> dict[int, Tensor]:
    """Squares of the type-2 Fisher's gradients at the outputs of some calls."""
    squares = {number: tape.outputs.new_zeros(tape.calls[number][0].shape) for number in numbers}
    for cotangent in batch.cotangents(tape.outputs, "type-2") if numbers else ():
        for number, gradient in tape.at_calls(numbers, cotangent).items():
            squares[number] += gradient.square()
    return squares


def mixed_layer(tape: Tape) -> str | None:
    """The first layer whose map to the next layer is not one to one; None means that there is no such layer."""
    maps = (local_map(tape, number) for number in _products(tape))
    return next((tape.calls[m.call][1].role for m in maps if m is not None and not m.is_one_to_one()), None)
