"""The map from a layer's output to the input of the next covered layer: its Jacobian, seen through products only.

``J`` is that Jacobian for one sample: activation, BatchNorm, pooling, sums with other branches, reshapes and whatever
else lies between. The next layer is the first one called later whose input depends on this layer's output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.fisher import ExactFisher
from curvbench.instance import Instance
from curvbench.instance import layers as geometry
from curvbench.instance.refusals import deep_rounding
from curvbench.instance.tape import Tape
from curvbench.parts.factors import second_moment
from curvbench.spec import Layer


@dataclass(frozen=True, eq=False)
class LocalMap:
    """The map from the output of ``layer`` to the input of ``reader`` in a recorded forward pass.

    ``ones`` is J^T 1, shaped like the layer's output.
    """

    tape: Tape
    layer: str
    reader: str
    ones: Tensor

    def pull(self, cotangent: Tensor) -> Tensor:
        """J^T cotangent: shaped like the reader's input -> shaped like the layer's output."""
        found = self.tape.pull_between(self.layer, self.reader, cotangent)
        return torch.zeros_like(self.ones) if found is None else found

    @property
    def target(self) -> Tensor:
        """The reader's input, (N, ...)."""
        return self.tape.inputs[self.reader]

    def is_one_to_one(self) -> bool:
        """Whether every number of the output feeds at most one number of the reader's input.

        So it is for activations, BatchNorm in evaluation mode, sums with other branches, reshapes and pooling without
        overlap. For a number that feeds two, with derivatives j and k and weights w, (J^T w)^2 - (J^T 1)(J^T w^2) is
        -j k (w_j - w_k)^2, which vanishes only with j k.
        """
        generator = torch.Generator().manual_seed(0)
        w = 1 + torch.rand(self.target.shape[1:], generator=generator, dtype=torch.float64)
        w = w.to(self.target.device, self.target.dtype).expand_as(self.target)
        product, square = self.ones * self.pull(w.square()), self.pull(w).square()
        scale = torch.maximum(product.abs(), square)
        return bool(((square - product).abs() <= deep_rounding(w.dtype) * scale).all())

    def energy(self, draws: int, seed: int = 0) -> Tensor:
        """E[(J^T e)^2] for e of mean 0 and covariance I: sums of squares over the columns of J, like the output.

        Exact where the map is one to one and where the reader's input has at most ``draws`` numbers per sample; else
        the unbiased mean over ``draws`` vectors of random signs.
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
            signs = 2 * torch.randint(2, self.target.shape, generator=generator) - 1
            yield signs.to(self.target.device, self.target.dtype)


def local_map(tape: Tape, layer: str) -> LocalMap | None:
    """The map from a layer's output to the next layer's input; None where no later layer depends on it."""
    called = list(tape.inputs)
    for reader in called[called.index(layer) + 1 :]:
        ones = tape.pull_between(layer, reader, torch.ones_like(tape.inputs[reader]))
        if ones is not None:
            return LocalMap(tape, layer, reader, ones)
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
    """Per layer the squares g^2 of the gradients at its output, (N, G, M, S), summed over pseudo-samples.

    ``lg``: E[(J^T e)^2] with e of mean 0 and covariance I (see ``LocalMap.energy``; without ``draws`` every map is
    taken to be one to one); ``lg_mc``: its mean over ``mc_samples`` draws; else those of the Fisher of that name.
    In the local ones a layer that no other reads has J = I, or with
    ``likelihood_at_ends`` the squares of the type-2 Fisher.
    """
    if kind in ("lg", "lg_mc"):
        found = (
            _closed(tape, draws, seed, likelihood_at_ends)
            if kind == "lg"
            else _sampled(tape, mc_samples, seed, likelihood_at_ends)
        )
        found |= _squares(batch, tape, [name for name in tape.inputs if name not in found])
        return {layer.name: geometry.slopes(layer, found[layer.name]) for layer in batch.layers}
    totals: dict[str, Tensor] = {}
    for slopes in batch.slopes(tape, kind, mc_samples, seed):
        totals = {name: b.square() + totals.get(name, 0) for name, b in slopes.items()}
    return totals


def _closed(tape: Tape, draws: int | None, seed: int, likelihood_at_ends: bool) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name in tape.inputs:
        between = local_map(tape, name)
        if between is not None:
            found[name] = between.ones.square() if draws is None else between.energy(draws, seed)
        elif not likelihood_at_ends:
            found[name] = tape.outputs.new_ones(tape.shapes[name])
    return found


def _sampled(tape: Tape, draws: int, seed: int, likelihood_at_ends: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Tensor] = {}
    for name in tape.inputs:
        between = local_map(tape, name)
        if between is None and likelihood_at_ends:
            continue
        total = tape.outputs.new_zeros(tape.shapes[name])
        shape = tape.shapes[name] if between is None else between.target.shape
        for _ in range(draws):
            e = torch.randn(shape, generator=generator, dtype=torch.float64).to(total.device, total.dtype)
            total += (e if between is None else between.pull(e)).square()
        found[name] = total / draws
    return found


def _squares(batch: Instance, tape: Tape, layers: Sequence[str]) -> dict[str, Tensor]:
    """Of the type-2 Fisher at the outputs of some layers."""
    found = {name: tape.outputs.new_zeros(tape.shapes[name]) for name in layers}
    for cotangent in batch.cotangents(tape.outputs, "type-2") if layers else ():
        for name, gradient in tape.pull(cotangent, keep=True, layers=layers).items():
            found[name] += gradient.square()
    return found


def mixed_layer(tape: Tape) -> str | None:
    """The first layer with an output that feeds several numbers of the next layer's input, or None."""
    maps = (local_map(tape, name) for name in tape.inputs)
    return next((m.layer for m in maps if m is not None and not m.is_one_to_one()), None)


def rated(
    steps: Sequence[Tensor], gradients: Sequence[Tensor], scores: Sequence[ExactFisher], terms: int, mu: float
) -> list[Tensor]:
    """LNGD's Eq. 12: every layer's step p times <p, g> / (p^T F p + mu), F its empirical Fisher; 0 where that is 0.

    Without ``scores`` with the estimate of p^T F p that is printed, <p, g>^2 / terms.
    """
    gains = [numerics.inner(p, g) for p, g in zip(steps, gradients, strict=True)]
    printed = [gain**2 / terms for gain in gains]
    curved = [f.quadratic(p) for f, p in zip(scores, steps, strict=True)] if scores else printed
    return [(g / (c + mu) if c + mu > 0 else 0.0) * p for p, g, c in zip(steps, gains, curved, strict=True)]


def factors(layer: Layer, x: Tensor, energy: Tensor, terms: int) -> tuple[Tensor, Tensor]:
    """Phi (G, D, D) = sum |g|^2 a a^T / terms and psi (G, M) = sum |a|^2 g^2, scaled to sum 1, over all positions.

    ``x`` is the layer's input, ``energy`` (N, G, M, S) holds g^2. Where every g or a is zero, psi is uniform.
    """
    X = geometry.patches(layer, x)
    moment = second_moment(X * energy.sum(2, keepdim=True).sqrt(), bands=3)  # weights that vary share no shifts
    shares = torch.einsum("ngms,ngs->gm", energy, X.square().sum(2))
    total = shares.sum(-1, keepdim=True)
    psi = torch.where(total > 0, shares / total, torch.full_like(shares, 1 / layer.outputs))
    return moment / terms, psi
