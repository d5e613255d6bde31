"""The exact Fisher of a network whose last linear layer has more outputs C than inputs d, from d columns per term.

With a factor S (C, R) of a term's Hessian H at the outputs, W^T S has rank d at most: an orthogonal mixture of the R
columns leaves d that reach the layers below, and R - d that are zero there. All other layers have the same Fisher from
these d as from all. The last layer has its block in closed form, and what d columns say of it besides.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.fisher import budget
from curvbench.fisher.columns import stored
from curvbench.fisher.exact import ExactFisher
from curvbench.fisher.head import HeadFisher, HeadScores, WithoutColumns, leading_eigenvalues
from curvbench.fisher.tied import columns_of, joined_roles
from curvbench.instance import Instance
from curvbench.instance.extent import Extent
from curvbench.instance.likelihood.hessians import Hessians
from curvbench.instance.many import below, compressible, hessians_at
from curvbench.instance.passes import full_precision
from curvbench.operators import Operator
from curvbench.spec import Layer, LayerSize

_COPIES = 4  # of W that the decomposition of a term takes
_ROWS_OF_C = 6  # numbers of a term per output that are kept or summed: probabilities, their sums, outputs


@dataclass(frozen=True, eq=False)
class CompressedFisher(WithoutColumns):
    """The exact type-2 Fisher in compressed columns.

    ``others``: of all layers but the last, with d columns per term. ``head``: the block of the last layer; None for a
    tied one, which is left out. ``cotangents`` (n, C, d): the compressed columns at the outputs, term by term.
    ``terms``: the number of loss terms. ``layers``: the covered layers. ``extent``: what of the model is covered.
    """

    others: ExactFisher
    head: HeadFisher | None
    cotangents: Tensor
    terms: int
    layers: tuple[Layer, ...]
    extent: Extent

    def __repr__(self) -> str:
        return f"CompressedFisher({self.size} parameters, {len(self.layers)} layers, {self.terms} terms; {self.extent})"

    @property
    def size(self) -> int:
        return sum(layer.size for layer in self.layers)

    @property
    def dtype(self) -> torch.dtype:
        return self.others.dtype

    @property
    def device(self) -> torch.device:
        return self.others.device

    def layer(self, name: str) -> ExactFisher | HeadFisher:
        """The exact diagonal block of one layer.

        Raises:
            ValueError: no such layer.
        """
        if self.head is not None and name == self.head.scores.layer.name:
            return self.head
        return self.others.layer(name)

    @cached_property
    def _own(self) -> Tensor:
        """The Gram matrix of the compressed columns in the last layer alone, with the index of ``others``."""
        assert self.head is not None
        n, _, d = self.cotangents.shape
        flat = self.cotangents.mT.flatten(0, 1)
        products = (flat @ flat.mT).double().reshape(n, d, n, d) * self.head.alike[:, None, :, None]
        N = self.others.grid[1]
        split = products.reshape(N, n // N, d, N, n // N, d).permute(1, 2, 0, 4, 5, 3)
        return split.reshape(n * d, n * d)

    def trace(self) -> float:
        return self.others.trace() + (self.head.trace() if self.head else 0.0)

    @cached_property
    def _norm(self) -> float:
        if self.head is None:
            return self.others.frobenius_norm()
        shared = self.others.gram()
        between = numerics.sum_squares(shared) + 2 * numerics.inner(shared, self._own)
        return (between / self.terms**2 + self.head.frobenius_norm() ** 2) ** 0.5

    def frobenius_norm(self) -> float:
        return self._norm

    def diagonal(self) -> Tensor:
        parts = {self.head.scores.layer.name: self.head.diagonal()} if self.head else {}
        parts |= {la.name: self.others.layer(la.name).diagonal() for la in self.others.layers}
        return torch.cat([parts[layer.name] for layer in self.layers])

    def _matmat(self, V: Tensor) -> Tensor:
        parts = dict(zip((la.name for la in self.layers), V.split([la.size for la in self.layers]), strict=True))
        along = self.others.project(torch.cat([parts[la.name] for la in self.others.layers]))
        products: dict[str, Tensor] = {}
        if self.head is not None:
            last = self.head.scores.layer
            products[last.name] = self.head.matmat(parts[last.name]) + self._last_combined(along) / self.terms
            along = along + self._last_projected(parts[last.name])
        of_others = self.others.combine(along).to(V.dtype) / self.terms
        sizes = [la.size for la in self.others.layers]
        products |= dict(zip((la.name for la in self.others.layers), of_others.split(sizes), strict=True))
        return torch.cat([products[la.name] for la in self.layers]).to(V.dtype)

    def _by_term(self, weights: Tensor) -> Tensor:
        """Weights (R, N, K) of the columns as (n, d, K)."""
        d, N = self.cotangents.shape[2], weights.shape[1]
        return weights.reshape(-1, d, N, weights.shape[2]).permute(2, 0, 1, 3).flatten(0, 1)

    def _last_combined(self, weights: Tensor) -> Tensor:
        """The weighted sums of the compressed columns in the last layer, (P_last, K)."""
        assert self.head is not None
        weights = self._by_term(weights)
        mixed = torch.einsum("ncr,nrk->nck", self.cotangents.to(weights.dtype), weights)
        return torch.einsum("nck,nd->cdk", mixed, self.head.scores.rows().to(weights.dtype)).flatten(0, 1)

    def _last_projected(self, V: Tensor) -> Tensor:
        """The inner products of the compressed columns with vectors (P_last, K) in the last layer, (R, N, K)."""
        assert self.head is not None
        rows, N = self.head.scores.rows().to(V.dtype), self.others.grid[1]
        responses = torch.einsum("cdk,nd->nck", V.unflatten(0, (-1, rows.shape[1])), rows)
        products = torch.einsum("ncr,nck->nrk", self.cotangents.to(V.dtype), responses)
        return products.unflatten(0, (N, -1)).permute(1, 2, 0, 3).flatten(0, 1)

    def _solve(self, V: Tensor, damping: float) -> Tensor:
        return super()._solve(V, damping) if self.head else self.others.solve(V, damping)

    def eigenvalues(self, k: int) -> Tensor:
        return leading_eigenvalues(self, k)

    def smallest_eigenvalue(self) -> float:
        if self.head is None:
            return self.others.smallest_eigenvalue()
        return self.head.smallest_eigenvalue()  # zero, or refused

    def _block(self, start: int, stop: int) -> Operator:
        for layer in self.layers:
            if (layer.start, layer.start + layer.size) == (start, stop):
                return self.layer(layer.name)
        return super()._block(start, stop)


@full_precision()
def compressed_fisher(instance: Instance) -> CompressedFisher:
    """The exact type-2 Fisher of an instance whose last layer is linear and has more outputs than inputs.

    Passes run in float64 where the model can, and the columns are stored in the instance's dtype. A last layer whose
    weight is used elsewhere too, as an embedding, is left out, and so is a bias of its own block.

    Raises:
        ValueError: the outputs are not those of a linear layer, it has too few of them or is alone, or the loss has no
            Hessians in closed form.
        MemoryError, torch.OutOfMemoryError: the matrix would not fit; the text says what would.
    """
    refuse_oversized(instance)
    passed = instance.to(torch.float64) if instance.runs_in_float64() else instance
    tape = passed.tape()
    role = tape.head
    if role is None:
        raise ValueError("columns are compressed only where a linear layer, called once, gives the outputs themselves")
    hessians = hessians_at(passed, tape.values)
    if hessians is None:
        raise ValueError(f"columns are compressed only for losses with a closed form, which {instance.loss} has not")
    W = tape.weight(role, passed.parameters)
    if instance.likelihood.rank(instance.classes) <= W.shape[1]:
        raise ValueError(f"{len(W)} outputs of {W.shape[1]} inputs leave nothing to compress: use exact_fisher")
    ends = {role, *tape.shifts_of_head}
    layers = [la for la in instance.layers if ends.isdisjoint(r.name for r in la.roles or (la,))]
    if not layers:
        raise ValueError("the last layer is the only one: there is nothing to compress")
    roles = {r.name: r for layer in layers for r in layer.roles or (layer,)}
    if not tape.can_begin_below(role, roles):
        raise ValueError("some columns are made one by one, which are not compressed: take fisher_type='mc'")
    M, at_inputs = _compressed(hessians, W, instance.dtype)
    slopes: dict[str, list[Tensor]] = {name: [] for name in roles}
    for block in below(passed, tape, role, at_inputs, roles):
        for name, B in block.items():
            slopes[name].append(B.to(instance.dtype))
    made = {
        name: columns_of(r, stored(tape.inputs[name], instance.dtype), torch.cat(slopes.pop(name)))
        for name, r in roles.items()
    }
    others = ExactFisher([joined_roles(layer, made) for layer in _placed(layers)], instance.terms)
    is_layer = role in (layer.name for layer in instance.layers)
    head = HeadFisher(HeadScores(tape.roles[role], tape.inputs[role], hessians), instance.terms) if is_layer else None
    covered = tuple(la for la in instance.layers if la in layers or la.name == role)
    return CompressedFisher(others, head, M, instance.terms, _placed(covered), _extent(instance, covered))


def _compressed(hessians: Hessians, W: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The compressed cotangents of all terms at the outputs (n, C, d), in ``dtype``, and at the inputs (n, d, d)."""
    at_outputs, at_inputs = [], []
    for term in range(hessians.count):
        M, at_input = hessians.compressed(term, W)
        at_outputs.append(M.to(dtype))
        at_inputs.append(at_input)
    return torch.stack(at_outputs), torch.stack(at_inputs)


def _placed(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """The layers one after the other."""
    starts = accumulate((layer.size for layer in layers), initial=0)
    return tuple(replace(layer, start=start) for layer, start in zip(layers, starts, strict=False))


def _extent(instance: Instance, covered: Sequence[Layer]) -> Extent:
    names = {name for layer in covered for name in layer.parameters}
    tied = {name for layer in instance.layers for name in layer.parameters} - names
    why = dict.fromkeys(sorted(tied), "its columns are not compressed: take fisher_type='mc' for it")
    return instance.extent._replace(
        size=sum(layer.size for layer in covered), left_out={**instance.extent.left_out, **why}
    )


def needed_bytes(sizes: Sequence[LayerSize], samples: int, positions: int, d: int, outputs: int, itemsize: int) -> int:
    """Bytes of a compressed Fisher: the plan of the other layers, cotangents, and one term's decomposition."""
    terms = samples * positions
    own = terms * outputs * (d * itemsize + _ROWS_OF_C * 8) + _COPIES * outputs * d * 8
    return own + budget.planned_bytes(sizes, samples, positions * d, itemsize)


def refuse_oversized(instance: Instance) -> None:
    """Raise an out-of-memory error before anything is computed; the text says what would fit."""
    last = compressible(instance)
    if last is None:
        return
    sizes = [size for name, size in instance.sizes.items() if name != last.name]
    place = instance.terms_per_sample, last.inputs, instance.classes, instance.dtype.itemsize
    needed, free = needed_bytes(sizes, instance.samples, *place), budget.available_bytes(instance.device)
    if needed <= free:
        return
    fits = bisect_right(range(1, instance.samples + 1), free, key=lambda n: needed_bytes(sizes, n, *place))
    advice = f"{fits} samples would fit" if fits else "not even one sample would fit"
    raise (MemoryError if instance.device.type == "cpu" else torch.OutOfMemoryError)(
        f"{instance.samples} samples of {place[0] * place[1]} compressed columns need {needed / 1e9:.1f} GB, "
        f"{free / 1e9:.1f} GB are free; {advice}, or a Monte-Carlo Fisher: exact_fisher(fisher_type='mc')"
    )
