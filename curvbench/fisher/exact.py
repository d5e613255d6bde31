"""The exact Fisher as an operator by the smaller one of two matrices: the Gram matrix of its columns, or F itself.

F = (1/terms) V V^T with R N score columns. |F| = |G| / terms, tr F = tr G / terms, and the nonzero eigenvalues of F
are those of G / terms, with G = V^T V (Pearlmutter-type products and the push-through identity do the rest). Where
there are fewer parameters than columns, V V^T stands for G.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, get_args
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.fisher import budget
from curvbench.fisher.columns import Columns
from curvbench.fisher.contraction import Order, cross_gram, gram
from curvbench.fisher.inner import inner
from curvbench.fisher.scores import Scores
from curvbench.fisher.stream import Stream, columns_within, with_outputs
from curvbench.instance import Instance
from curvbench.instance.extent import Extent
from curvbench.instance.likelihood import gradient_coefficients
from curvbench.instance.many import compressible
from curvbench.instance.passes import full_precision
from curvbench.operators import Operator
from curvbench.operators.base import largest
from curvbench.spec import Layer, Precision
from curvbench.spec.geometry import canonical_type
from curvbench.words import refuse_type

_ROWS = 2**20  # of eigenvectors that are changed at the same time
_KEPT_BYTES = 2**23  # of one layer's inner products with another matrix: a thousand columns


@dataclass(frozen=True, eq=False)
class ExactFisher(Operator):
    """The exact Fisher of all covered layers, or of one of them as ``layer(name)`` gives it.

    ``coefficients`` (R, N) combine the columns to the batch's mean gradient; None means that no coefficients are known.
    ``extent``: what of the model's parameters is covered; None means that it is unknown. ``by_columns``: whether solves
    and spectra take the Gram matrix even where F itself is smaller, as in methods that are defined by it.
    """

    columns: Sequence[Columns]
    terms: int
    coefficients: Tensor | None = None
    order: Order | None = None
    extent: Extent | None = None
    by_columns: bool = False

    def __repr__(self) -> str:
        covered = f"; {self.extent}" if self.extent else ""
        return f"ExactFisher({self.size} parameters, {len(self.layers)} layers, {self.terms} terms{covered})"

    @property
    def coverage(self) -> float:
        """The share of the model's trainable parameters; NaN means that it is unknown."""
        return self.extent.share if self.extent else math.nan

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers in the order of ``columns``."""
        return self.columns.layers if isinstance(self.columns, Stream) else tuple(c.layer for c in self.columns)

    @property
    def size(self) -> int:
        return sum(layer.size for layer in self.layers)

    @property
    def dtype(self) -> torch.dtype:
        return self.columns.source.dtype if isinstance(self.columns, Stream) else self.columns[0].slopes.dtype

    @property
    def device(self) -> torch.device:
        return (
            self.columns.source.instance.device if isinstance(self.columns, Stream) else self.columns[0].slopes.device
        )

    @cached_property
    def layer_grams(self) -> list[Tensor]:
        """The Gram matrix of each layer's columns, (R N, R N) in float64."""
        budget.refuse_large_grams(len(self.layers), math.prod(self.grid), self.device)
        return [gram(c, self.order) for c in self.columns]

    @property
    def is_streamed(self) -> bool:
        """Whether the columns are computed anew for every pass over them."""
        return isinstance(self.columns, Stream)

    @property
    def grid(self) -> tuple[int, int]:
        """R and N: the shape of one weight for every score column."""
        if not isinstance(self.columns, Stream):
            R, N = self.columns[0].slopes.shape[:2]
            return R, N
        source = self.columns.source
        return source.instance.columns_per_sample(source.fisher_type, source.mc_samples), source.instance.samples

    @cached_property
    def _gram(self) -> Tensor:
        first, *others = self.layer_grams
        total = first.clone() if others else first
        for other in others:
            total += other
        _refuse_not_finite(total)
        return total

    def gram(self) -> Tensor:
        """V^T V, (R N, R N) in float64, index r N + n."""
        return self._gram

    @property
    def has_few_parameters(self) -> bool:
        """Whether V V^T takes the place of the Gram matrix, because it is smaller."""
        return not self.by_columns and self._is_smaller

    @property
    def _is_smaller(self) -> bool:
        """Whether V V^T is smaller than the Gram matrix."""
        return self.size < math.prod(self.grid)

    @cached_property
    def outer(self) -> Tensor:
        """V V^T, (P, P) in float64, which is F times its terms; for few parameters."""
        rows = [c.matrices().transpose(1, 2).flatten(0, 1).flatten(1) for c in self.columns]
        V = torch.cat(rows, dim=1).T.double()
        total = V @ V.mT
        _refuse_not_finite(total)
        return total

    @property
    def _squares(self) -> Tensor:
        """The smaller one of V V^T and V^T V, or the Gram matrix ``by_columns``."""
        return self.outer if self.has_few_parameters else self.gram()

    @cached_property
    def spectrum(self) -> Tensor:
        """The min(P, R N) largest eigenvalues, descending, because all others are zero."""
        return numerics.eigvalsh(self.outer if self.has_few_parameters else self.gram()).flip(0) / self.terms

    @cached_property
    def layer_spectra(self) -> list[Tensor]:
        """The min(P, R N) largest eigenvalues of each layer's block, descending."""
        return [layer.spectrum for layer in self._layers]

    @cached_property
    def leading(self) -> tuple[Tensor, Tensor]:
        """The ``budget.LEADING`` largest eigenvalues, (K,) in float64, and their eigenvectors (P, K), without zeros."""
        values = self.spectrum[: budget.LEADING]
        values = values[values > len(self.spectrum) * torch.finfo(self.dtype).eps * values[0]]
        if self.has_few_parameters:
            return values, numerics.eigh(self.outer)[1].flip(1)[:, : len(values)].to(self.dtype)
        mixtures = numerics.eigh(self.gram())[1].flip(1)[:, : len(values)] / (self.terms * values).sqrt()
        vectors = self.combine(mixtures.reshape(*self.grid, -1))
        # Rounding leaves a part along larger eigenvectors in a smaller one, which a triangle takes away.
        triangle = numerics.cholesky((vectors.mT @ vectors).double())
        for some in vectors.split(_ROWS):
            some.copy_(torch.linalg.solve_triangular(triangle.mT.to(some), some, upper=True, left=False))
        return values, vectors

    @cached_property
    def _diagonal(self) -> Tensor:
        return torch.cat([c.squares().flatten() for c in self.columns]).div(self.terms).to(self.dtype)

    def project(self, V: Tensor) -> Tensor:
        """Inner products of the columns with vectors (P, K), (R, N, K)."""
        parts = V.split([layer.size for layer in self.layers])
        return torch.stack([c.project(part) for c, part in zip(self.columns, parts, strict=True)]).sum(0)

    def combine(self, weights: Tensor) -> Tensor:
        """Weighted sums of the columns, (P, K), for weights (R, N, K)."""
        return torch.cat([c.combine(weights) for c in self.columns])

    def _matmat(self, V: Tensor) -> Tensor:
        return self.combine(self.project(V)) / self.terms

    def factorize(self, damping: float) -> Tensor:
        """The Cholesky factor of G / terms + damping I in float64, or of F + damping I, for ``solve_factorized``.

        Raises:
            ValueError: damping not above zero.
        """
        if not damping > 0:
            raise ValueError("the exact Fisher of a batch is singular: give a damping above zero")
        return numerics.damped_cholesky(self._squares / self.terms, damping)

    def _is_of_parameters(self, factor: Tensor) -> bool:
        """Whether a result of ``factorize`` is the factor of F + damping I itself."""
        return self.has_few_parameters and len(factor) == self.size

    def solve_factorized(self, V: Tensor, damping: float, factor: Tensor) -> Tensor:
        """(F + damping I)^-1 V for a stack (P, K), by Woodbury where there are more parameters than columns.

        ``natural_gradient`` loses fewer digits for the batch's own gradient.
        """
        if self._is_of_parameters(factor):
            return numerics.cholesky_solve(V.double(), factor).to(V.dtype)
        return (V - self.combine(_solve_small(factor, self.project(V) / self.terms))) / damping

    def _solve(self, V: Tensor, damping: float) -> Tensor:
        return self.solve_factorized(V, damping, self.factorize(damping))

    def _inverse(self, damping: float) -> FisherInverse:
        if not damping > 0:
            raise ValueError("the exact Fisher of a batch is singular: give a damping above zero")
        return FisherInverse(self, damping)

    def natural_gradient(self, gradient: Tensor, damping: float, factor: Tensor | None = None) -> Tensor:
        """(F + damping I)^-1 gradient for a vector (P,), exact at any damping above zero.

        ``factor``: the result of ``factorize`` at this damping; None means that it is computed. The part of the
        gradient along the batch's own gradient V a takes push-through, V (G/terms + damping)^-1 a, which loses no
        digits. Only the rest takes Woodbury; it is rounding if the gradient is the batch's own.

        Raises:
            ValueError: damping not above zero.
        """
        factor = self.factorize(damping) if factor is None else factor
        if self.coefficients is None or self._is_of_parameters(factor):
            return self.solve_factorized(gradient[:, None], damping, factor)[:, 0]
        a = self.coefficients[..., None].double()
        batch_gradient = self.combine(a)[:, 0]
        square = max(numerics.inner(batch_gradient, batch_gradient), torch.finfo(torch.float64).tiny)
        share = numerics.inner(gradient, batch_gradient) / square
        pushed = self.combine(_solve_small(factor, a * share))[:, 0]
        rest = gradient - share * batch_gradient
        return pushed + self.solve_factorized(rest[:, None], damping, factor)[:, 0]

    def natural_gradients(self, gradient: Tensor, dampings: Sequence[float]) -> Tensor:
        """``natural_gradient`` at several dampings, (P, K), from one Gram matrix and one pass over the columns.

        Raises:
            ValueError: a damping not above zero.
        """
        factors = [self.factorize(damping) for damping in dampings]
        if self._is_of_parameters(factors[0]):
            pairs = zip(dampings, factors, strict=True)
            return torch.cat([self.solve_factorized(gradient[:, None], *pair) for pair in pairs], dim=1)
        a, rest = self._split(gradient)
        along = self.project(rest[:, None]).double() / self.terms
        solved = [_solve_small(factor, a - along / damping) for factor, damping in zip(factors, dampings, strict=True)]
        shares = rest[:, None] / torch.tensor(dampings, dtype=torch.float64, device=rest.device)
        return self.combine(torch.cat(solved, dim=2)) + shares.to(rest.dtype)

    def _split(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (R, N, 1) of the columns for the gradient's part along the batch's own, and the rest of it (P,).

        Without coefficients all of the gradient is the rest, and the weights are one zero.
        """
        if self.coefficients is None:
            return torch.zeros((), dtype=torch.float64, device=self.device), gradient
        a = self.coefficients[..., None].double()
        own = self.combine(a)[:, 0]
        share = numerics.inner(gradient, own) / max(numerics.inner(own, own), torch.finfo(torch.float64).tiny)
        return a * share, gradient - share * own

    def stacks(self) -> Iterator[Tensor]:
        """The formed columns of one sample at a time, (P, R), for operators without a closed form."""
        for sample in self._by_sample():
            yield torch.cat([c.matrices()[0].transpose(0, 1).flatten(1) for c in sample], dim=1).T

    def _by_sample(self) -> Iterator[tuple[Columns, ...]]:
        if isinstance(self.columns, Stream):
            source = self.columns.source
            for n in range(source.instance.samples):
                yield source.collect(self.layers, slice(n, n + 1))
        else:
            for n in range(self.columns[0].slopes.shape[1]):
                yield tuple(c.part(slice(n, n + 1)) for c in self.columns)

    def quadratic(self, v: Tensor) -> float:
        """v^T F v for a vector (P,)."""
        return numerics.sum_squares(self.project(v[:, None])) / self.terms

    def inner(self, operator: Operator) -> float:
        """The Frobenius inner product <F, operator>, in closed form where the operator's family has one.

        Raises:
            ValueError: sizes differ.
        """
        size = operator.shape[0]  # not ``size``, because any object with an operator's methods will do
        if size != self.size:
            raise ValueError(f"the Fisher has size {self.size}, the operator {size}: fit it on the same instance")
        return inner(operator, self)

    @cached_property
    def _trace(self) -> float:
        return float(self._squares.trace()) / self.terms

    @cached_property
    def _norm(self) -> float:
        return numerics.sum_squares(self._squares) ** 0.5 / self.terms

    def trace(self) -> float:
        return self._trace

    def frobenius_norm(self) -> float:
        return self._norm

    def diagonal(self) -> Tensor:
        return self._diagonal

    def eigenvalues(self, k: int) -> Tensor:
        largest = self.spectrum[: min(k, self.size)]
        zeros = min(k, self.size) - len(largest)
        return torch.cat([largest, largest.new_zeros(zeros)]) if zeros else largest

    def smallest_eigenvalue(self) -> float:
        return float(self.spectrum[self.size - 1]) if len(self.spectrum) >= self.size else 0.0

    def layer(self, name: str) -> ExactFisher:
        """The diagonal block of one layer.

        Raises:
            ValueError: no such layer.
        """
        names = [layer.name for layer in self.layers]
        if name not in names:
            raise ValueError(f"no covered layer {name!r}: the covered layers are {', '.join(names)}")
        return self._layers[names.index(name)]

    @cached_property
    def _layers(self) -> list[ExactFisher]:
        return [self._single(i) for i in range(len(self.layers))]

    def cache(self) -> dict[str, Any]:
        """The tensors that take long to compute, for ``restore``."""
        squares = "outer" if self.has_few_parameters else "layer_grams"
        names = (squares, "layer_spectra", "_diagonal", "spectrum", "leading")
        return {name: getattr(self, name) for name in names}

    def restore(self, cache: dict[str, Any]) -> None:
        """Take over the tensors that another process has computed for the same columns."""
        self.__dict__.update(cache)

    def _single(self, index: int) -> ExactFisher:
        extent = self.extent and self.extent.part(self.layers[index].size)
        single = replace(self, columns=self.columns[index : index + 1], extent=extent)
        layer = self.layers[index]
        if "layer_grams" in self.__dict__:
            single.__dict__["layer_grams"] = [self.layer_grams[index]]
        if "layer_spectra" in self.__dict__:
            single.__dict__["spectrum"] = self.layer_spectra[index]
        own = slice(layer.start - self.layers[0].start, layer.start - self.layers[0].start + layer.size)
        if "_diagonal" in self.__dict__:
            single.__dict__["_diagonal"] = self._diagonal[own]
        if "outer" in self.__dict__:
            single.__dict__["outer"] = self.outer[own, own]
        return single

    def _block(self, start: int, stop: int) -> Operator:
        first = 0
        for layer in self.layers:
            if (first, first + layer.size) == (start, stop):
                return self.layer(layer.name)
            first += layer.size
        return super()._block(start, stop)


@dataclass(frozen=True, eq=False)
class FisherInverse(Operator):
    """(F + damping I)^-1 by Woodbury."""

    fisher: ExactFisher
    damping: float

    @property
    def size(self) -> int:
        return self.fisher.size

    @property
    def dtype(self) -> torch.dtype:
        return self.fisher.dtype

    @property
    def device(self) -> torch.device:
        return self.fisher.device

    def _matmat(self, V: Tensor) -> Tensor:
        return self.fisher.solve_factorized(V, self.damping, self.factor)

    def _solve(self, V: Tensor, damping: float) -> Tensor:
        """With C = F + self.damping I: C V, and (1 - (I + damping C)^-1) V / damping."""
        if damping == 0:
            return self.fisher._matmat(V) + self.damping * V
        return (V - self.fisher.solve(V, self.damping + 1 / damping) / damping) / damping

    @cached_property
    def factor(self) -> Tensor:
        """The Cholesky factor that products take."""
        return self.fisher.factorize(self.damping)

    @property
    def _values(self) -> Tensor:
        """The eigenvalues of the inverse for the range of F, (min(P, R N),); all others are 1 / damping."""
        return 1 / (self.fisher.spectrum + self.damping)

    @property
    def _rest(self) -> int:
        """The dimension of the complement of that range."""
        return self.size - len(self.fisher.spectrum)

    def trace(self) -> float:
        return float(self._values.sum()) + self._rest / self.damping

    def log_determinant(self) -> float:
        return float(self._values.log().sum()) - self._rest * math.log(self.damping)

    def frobenius_norm(self) -> float:
        return (numerics.sum_squares(self._values) + self._rest / self.damping**2) ** 0.5

    def diagonal(self) -> Tensor:
        if self.fisher._is_of_parameters(self.factor):
            return torch.cholesky_inverse(self.factor).diagonal().to(self.dtype)
        eye = torch.eye(len(self.factor), dtype=self.factor.dtype, device=self.device)
        mixtures = torch.linalg.solve_triangular(self.factor.mT, eye, upper=True).reshape(*self.fisher.grid, -1)
        taken = torch.zeros(self.size, dtype=self.dtype, device=self.device)
        for some in mixtures.split(64, dim=2):  # combinations (P, 64) at the same time
            taken += self.fisher.combine(some).square().sum(1)
        return (1 - taken / self.fisher.terms) / self.damping

    def eigenvalues(self, k: int) -> Tensor:
        return largest(torch.cat([self._values, self._values.new_full((min(k, self._rest),), 1 / self.damping)]), k)

    def smallest_eigenvalue(self) -> float:
        return float(self._values[0])


def _solve_small(factor: Tensor, right: Tensor) -> Tensor:
    """The solution (R, N, K) of the system in the columns, for right-hand sides (R, N, K), in float64."""
    return numerics.cholesky_solve(right.double().flatten(0, 1), factor).reshape(right.shape)


@inner.register(ExactFisher)
def _(operator: ExactFisher, fisher: Scores) -> float:
    if not isinstance(fisher, ExactFisher):
        return inner.dispatch(object)(operator, fisher)
    if operator is fisher:
        return fisher.frobenius_norm() ** 2
    if operator._is_smaller and fisher._is_smaller:
        return numerics.inner(operator.outer, fisher.outer) / (operator.terms * fisher.terms)
    return numerics.sum_squares(_overlaps(operator, fisher))


@inner.register(FisherInverse)
def _(operator: FisherInverse, fisher: Scores) -> float:
    """By Woodbury (tr F - |L^-1 V^T W|^2) / damping for the columns W of F and the operator's V, over their terms."""
    if not isinstance(fisher, ExactFisher):
        return inner.dispatch(object)(operator, fisher)
    if operator.fisher._is_of_parameters(operator.factor):
        return numerics.inner(fisher.outer, torch.cholesky_inverse(operator.factor)) / fisher.terms
    solved = torch.linalg.solve_triangular(operator.factor, _overlaps(operator.fisher, fisher), upper=False)
    return (fisher.trace() - numerics.sum_squares(solved)) / operator.damping


_PRODUCTS: WeakKeyDictionary[Columns, tuple[ref[Columns], Tensor]] = WeakKeyDictionary()
"""The last inner products of an operator's columns, which error and divergence ask for in several scopes."""


def _overlaps(first: ExactFisher, second: ExactFisher) -> Tensor:
    """The inner products of the columns of two matrices, each over the root of its terms, in float64."""
    if first is second:
        return first.gram() / first.terms
    pairs = zip(first.columns, second.columns, strict=True)
    products = sum(_products(a, b, second.order) for a, b in pairs)
    return products / (first.terms * second.terms) ** 0.5


def _products(a: Columns, b: Columns, order: Order | None) -> Tensor:
    """``cross_gram`` in the dtype of ``b``; a small matrix is kept while ``a`` exists."""
    partner, kept = _PRODUCTS.get(a, (None, None))
    if kept is not None and partner is not None and partner() is b:
        return kept
    products = cross_gram(a.to(b.slopes.dtype), b, order)
    if products.nbytes <= _KEPT_BYTES:
        _PRODUCTS[a] = ref(b), products
    return products


@full_precision()
def exact_fisher(
    instance: Instance,
    fisher_type: str = "type-2",
    mc_samples: int = 1,
    seed: int = 0,
    contraction: Order | None = None,
    precision: Precision = "mixed",
    memory: int | None = None,
) -> ExactFisher:
    """The exact Fisher of the parameters that an instance covers.

    Args:
        instance: the model, batch and loss.
        fisher_type: ``type-2`` (the reference), ``mc`` or ``empirical``.
        mc_samples: label draws per sample for ``mc``.
        seed: seed of the draws.
        contraction: ``direct`` or ``kernel`` for every layer; None means the order with fewer FLOPs in each layer.
        precision: ``mixed`` runs the network on float64 values, stores in the instance's dtype and sums in float64; the
            graph of a float32 instance, and with it the backward passes, stay in float32 where they can
            (``curvbench.instance.shadow``). ``native`` runs the network in the instance's dtype too (a float32 pass
            flips the sign of a few ReLU units, which is nearly the whole error of a float32 Fisher); ``float64`` runs,
            stores and multiplies in float64.
        memory: bytes that stored columns may take; None means a third of the device's free bytes. Columns that need
            more are made again, a segment of layers at a time, whenever they are read: passes are repeated, and only
            the Gram matrices bound the number of samples.

    Raises:
        ValueError: unknown ``fisher_type``, ``contraction`` or ``precision``.
        MemoryError, torch.OutOfMemoryError: the matrix would not fit; the text says what would.
    """
    refuse_type("instance", instance, Instance, "give curvbench.Instance(model, inputs, targets)")
    fisher_type = canonical_type(fisher_type)
    _refuse_choice("contraction", contraction, (None, "direct", "kernel"))
    _refuse_choice("precision", precision, get_args(Precision))
    stored = torch.float64 if precision == "float64" else instance.dtype
    R, sizes = instance.columns_per_sample(fisher_type, mc_samples), list(instance.sizes.values())
    other = _compressed(instance) if fisher_type == "type-2" else ""
    budget.refuse_oversized(sizes, instance.samples, R, stored.itemsize, instance.device, has_gram=False, other=other)
    if precision == "mixed" and not instance.has_float64_values():
        raise ValueError(
            "the model runs neither in float64 nor on float64 values, which precision='mixed' needs: use "
            "precision='native'"
        )
    if precision == "float64" and not instance.runs_in_float64():
        raise ValueError(
            "the model cannot run in float64, which precision='float64' needs: use precision='mixed' or "
            "precision='native'"
        )
    passed = _passed(instance, precision)
    columns, outputs = columns_within(passed, fisher_type, mc_samples, seed, stored, memory)
    return ExactFisher(
        columns, instance.terms, coefficients(passed, fisher_type, outputs), contraction, instance.extent
    )


def _passed(instance: Instance, precision: Precision) -> Instance:
    """The instance whose passes a precision has."""
    if precision == "native":
        return instance
    return instance.in_float64_values() if precision == "mixed" else instance.to(torch.float64)


def _compressed(instance: Instance) -> str:
    """The remedy of compressed columns, where the shapes of the layers allow it."""
    last = compressible(instance)
    if last is None:
        return ""
    count = instance.terms_per_sample * last.inputs
    return f"curvbench.fisher.compressed_fisher with {count} columns per sample"


def batch_fisher(instance: Instance, fisher_type: str, mc_samples: int = 1, seed: int = 0) -> ExactFisher:
    """The Fisher of a training step's batch: passes and columns in the instance's dtype, all columns stored.

    Methods solve with its Gram matrix, also where there are fewer parameters than columns.
    """
    columns, outputs = with_outputs(instance, fisher_type, mc_samples, seed, instance.dtype)
    weights = coefficients(instance, fisher_type, outputs)
    return ExactFisher(columns, instance.terms, weights, extent=instance.extent, by_columns=True)


def coefficients(instance: Instance, fisher_type: str, outputs: Tensor | None = None) -> Tensor | None:
    """Weights (R, N) that combine the columns to the mean gradient; None means that the labels are sampled."""
    if fisher_type == "type-2":
        outputs = numerics.widened(instance.outputs() if outputs is None else outputs)
        return gradient_coefficients(instance.likelihood, outputs, instance.targets)
    if fisher_type == "empirical":
        shape = (instance.terms_per_sample, instance.samples)
        return torch.full(shape, 1 / instance.terms, dtype=instance.dtype, device=instance.device)
    return None


def _refuse_not_finite(squares: Tensor) -> None:
    if not math.isfinite(squares.trace()):
        raise ValueError("the score columns' squares are not finite: scale the inputs, or use precision='float64'")


def _refuse_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
