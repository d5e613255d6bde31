"""Small models with every kind of parameter, each beside its own forward pass of one sample in elementary products.

A model's ``run`` hands each product to ``tap``, which notes its input rows and adds a zero to its output rows: the
gradient there is the product's output gradient. What is no product keeps its parameters, and plain autograd its score.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import oracles
import torch
from torch import Tensor, nn
from torch.nn import functional

import curvbench as cb

Tap = Callable[..., Tensor]


@dataclass
class Call:
    """One product of one sample: ``role`` is a block's name and whether it stands transposed; rows are positions."""

    role: tuple[str, bool]
    rows: Tensor
    zero: Tensor
    ones: bool


@dataclass
class Taps:
    """The products of one sample in order."""

    calls: list[Call] = field(default_factory=list)

    def __call__(self, name: str, a: Tensor, W: Tensor, b: Tensor | None = None, turned: bool = False) -> Tensor:
        """The rows a W^T + b, for a (S, D), W (M, D), b (M,)."""
        z = a @ W.detach().T + (0 if b is None else b.detach())
        zero = torch.zeros_like(z, requires_grad=True)
        self.calls.append(Call((name, turned), a, zero, b is not None))
        return z + zero


class Tied(nn.Module):
    """An embedding that is the output layer too, positions, and a scale of its own."""

    def __init__(self, words: int = 7) -> None:
        super().__init__()
        self.e = nn.Embedding(words, 4, padding_idx=0)
        self.pos = nn.Parameter(torch.randn(3, 4))
        self.l, self.h = nn.Linear(4, 4), nn.Linear(4, words, bias=False)
        self.h.weight = self.e.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.h(torch.tanh(self.l(self.e(ids) + self.pos)))

    def run(self, ids: Tensor, tap: Tap) -> Tensor:
        x = tap("e", one_hot(ids, self.e), self.e.weight.T, turned=True)
        return tap("e", torch.tanh(tap("l", x + self.pos, self.l.weight, self.l.bias)), self.e.weight)


class Repeated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(torch.tanh(self.a(x)))))

    def run(self, x: Tensor, tap: Tap) -> Tensor:
        rows = x[None]
        for _ in range(2):
            rows = torch.tanh(tap("a", rows, self.a.weight, self.a.bias))
        return tap("b", rows, self.b.weight, self.b.bias)


class Embedded(nn.Module):
    """Some words occur in no sample, and one has no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.n, self.h = nn.Embedding(9, 4, padding_idx=1), nn.LayerNorm(4), nn.Linear(4, 3)
        lively(self.n)

    def forward(self, ids: Tensor) -> Tensor:
        return self.h(torch.tanh(self.n(self.e(ids))))

    def run(self, ids: Tensor, tap: Tap) -> Tensor:
        x = tap("e", one_hot(ids, self.e), self.e.weight.T)
        return tap("h", torch.tanh(self.n(x)), self.h.weight, self.h.bias)


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.n = nn.Linear(5, 4, bias=False), nn.BatchNorm1d(4)
        self.b, self.m, self.h = nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3)
        self.scale = nn.Parameter(torch.randn(5))
        self.n.running_mean, self.n.running_var = torch.randn(4) / 3, torch.rand(4) + 0.5
        lively(self.n)
        lively(self.m)

    def forward(self, x: Tensor) -> Tensor:
        return self.h(self.scale * torch.tanh(self.m(self.b(torch.tanh(self.n(self.a(x)))))))

    def run(self, x: Tensor, tap: Tap) -> Tensor:
        rows = tap("b", torch.tanh(self.n(tap("a", x[None], self.a.weight))), self.b.weight, self.b.bias)
        return tap("h", self.scale * torch.tanh(self.m(rows)), self.h.weight, self.h.bias)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l, self.h = nn.LSTM(3, 2, batch_first=True), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.h(self.l(x)[0][:, -1])

    def run(self, x: Tensor, tap: Tap) -> Tensor:
        h, c = x.new_zeros(2, 1, 2)
        for gates in tap("l.weight_ih_l0", x, self.l.weight_ih_l0, self.l.bias_ih_l0).split(1):
            own = tap("l.weight_hh_l0", h, self.l.weight_hh_l0, self.l.bias_hh_l0)
            i, f, g, o = (gates + own).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return tap("h", h, self.h.weight, self.h.bias)


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.t, self.h = nn.ConvTranspose2d(3, 2, 2, stride=2, padding=1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.h(torch.tanh(self.t(x)).flatten(1))

    def run(self, x: Tensor, tap: Tap) -> Tensor:
        rows = tap("t", x.flatten(1).T, self.t.weight.flatten(1).T)
        image = functional.fold(rows.T[None], (2, 2), 2, stride=2, padding=1)[0] + self.t.bias[:, None, None]
        return tap("h", torch.tanh(image).reshape(1, -1), self.h.weight, self.h.bias)


def one_hot(ids: Tensor, embedding: nn.Embedding) -> Tensor:
    """Rows of the identity (S, V); the padding's row is zero, because it has no gradient."""
    rows = functional.one_hot(ids, embedding.num_embeddings).double()
    return rows * (ids != embedding.padding_idx)[:, None]


def lively(norm: nn.Module) -> None:
    """Give a norm other scales and shifts than the defaults."""
    nn.init.uniform_(norm.weight, 0.5, 2.0)
    nn.init.normal_(norm.bias)


@dataclass(frozen=True)
class Block:
    """What the oracle knows of a block of shape (M, D).

    ``roles``: raw material per orientation, the upright one first. ``scores`` (b, M D): a row per pseudo-sample.
    """

    shape: tuple[int, int]
    roles: dict[bool, oracles.Factors]
    scores: Tensor
    terms: int

    @property
    def matrix(self) -> Tensor:
        """The exact block."""
        return self.scores.T @ self.scores / self.terms


def ids(words: int, length: int) -> Tensor:
    return torch.randint(words, (5, length), generator=torch.Generator().manual_seed(0))


KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, Tensor]], dict[str, list[str]]]] = {
    "tied": (Tied, lambda: (ids(6, 3), ids(7, 3)), {"l": ["l"], "e": ["e"], "pos": ["pos"]}),
    "tied_square": (lambda: Tied(4), lambda: (ids(4, 3), ids(4, 3)), {"l": ["l"], "e": ["e"], "pos": ["pos"]}),
    "repeated": (Repeated, lambda: (torch.randn(5, 4), ids(3, 1)[:, 0]), {"a": ["a"], "b": ["b"]}),
    "embedded": (Embedded, lambda: (ids(7, 3), ids(3, 3)), {"h": ["h"], "e": ["e"], "n": ["n.weight", "n.bias"]}),
    "normed": (
        Normed,
        lambda: (torch.randn(6, 5), torch.randint(3, (6,))),
        {
            "a": ["a"],
            "b": ["b"],
            "h": ["h"],
            "scale": ["scale"],
            "n": ["n.weight", "n.bias"],
            "m": ["m.weight", "m.bias"],
        },
    ),
    "recurrent": (
        Recurrent,
        lambda: (torch.randn(5, 4, 3), ids(3, 1)[:, 0]),
        {n: [n] for n in ("l.weight_ih_l0", "l.weight_hh_l0", "h")},
    ),
    "transposed": (
        Transposed,
        lambda: (torch.randn(5, 3, 2, 2), ids(3, 1)[:, 0]),
        {"t": ["t"], "h": ["h"], "t.bias": ["t.bias"]},
    ),
}
"""Per case its model, its batch, and its blocks in order, a vector's with the parameters of its columns."""


@functools.cache
def kind(name: str) -> tuple[nn.Module, Tensor, Tensor, cb.Instance]:
    """A case's model, inputs, targets and instance, made once in float64; no test may change them."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            build, batch, _ = KINDS[name]
            model, (x, y) = build().eval(), batch()
        finally:
            torch.set_default_dtype(before)
    return model, x, y, cb.Instance(model, x, y)


def passes(name: str) -> list[tuple[Tensor, list[Call]]]:
    """Per sample its outputs (T, C) and its products."""
    model, inputs, _, _ = kind(name)
    made = []
    for x in inputs:
        taps = Taps()
        made.append((model.run(x, taps), taps.calls))  # type: ignore[operator]
    return made


@functools.cache
def blocks(name: str, fisher_type: str = "type-2") -> dict[str, Block]:
    """The blocks of a case in the order of the parameter vector, from taps and plain autograd."""
    model, _, targets, _ = kind(name)
    found: dict[str, Any] = {label: ({}, []) for label in KINDS[name][2]}
    terms = targets.numel()
    for n, (outputs, calls) in enumerate(passes(name)):
        for output, target in zip(outputs, targets[n].reshape(-1), strict=True):
            for column in oracles.columns(output, target, "cross_entropy", fisher_type):
                _take(model, found, n, terms, calls, output @ column, KINDS[name][2])
    return {
        label: Block(_shape(rows[0]), roles, torch.stack([r.flatten() for r in rows]), terms)
        for label, (roles, rows) in found.items()
    }


def _shape(score: Tensor) -> tuple[int, int]:
    return score.shape[0], score.shape[1]


def _take(
    model: nn.Module,
    found: dict[str, Any],
    n: int,
    terms: int,
    calls: list[Call],
    scalar: Tensor,
    names: dict[str, Any],
) -> None:
    """Add one pseudo-sample to every block."""
    gradients = torch.autograd.grad(scalar, [c.zero for c in calls], retain_graph=True, materialize_grads=True)
    for label, (roles, rows) in found.items():
        own = [(c, g) for c, g in zip(calls, gradients, strict=True) if c.role[0] == label]
        if not own:
            leaves = [model.get_parameter(p) for p in names[label]]
            columns = torch.autograd.grad(scalar, leaves, retain_graph=True, materialize_grads=True)
            rows.append(torch.stack([c.flatten() for c in columns], 1))
            continue
        score = 0
        for turned in sorted({c.role[1] for c, _ in own}):
            inputs = torch.cat([with_ones(c) for c, _ in own if c.role[1] == turned])
            gradient = torch.cat([g for c, g in own if c.role[1] == turned])
            part = roles.setdefault(turned, oracles.Factors([], [], [], terms))
            part.inputs.extend([inputs] * (n + 1 - len(part.inputs)))
            part.gradients.append(gradient)
            part.owner.append(n)
            W = gradient.T @ inputs
            score = score + (W.T if turned else W)
        rows.append(score)


def with_ones(call: Call) -> Tensor:
    """The input rows of a product, (S, D), a 1 for the bias last."""
    rows = call.rows.detach()
    return torch.cat([rows, torch.ones(len(rows), 1).to(rows)], 1) if call.ones else rows
