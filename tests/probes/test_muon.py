"""Muon against singular value decompositions, and in training against torch's Muon and AdamW."""

from __future__ import annotations

import copy
from typing import Any

import oracles
import pytest
import torch
from cases import instance_of
from streams import relative
from torch import Tensor, nn
from torch.nn import functional as F

import curvbench as cb
from curvbench.optim import NaturalGradient
from curvbench.parts.polar import newton_schulz, polar_factor
from curvbench.spec import Unsupported

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def polar(U: Tensor) -> Tensor:
    left, values, right = torch.linalg.svd(U, full_matrices=False)
    return left @ torch.diag((values > 1e-12 * values[0]).to(values)) @ right


def rounds(U: Tensor, count: int = 5) -> Tensor:
    """Newton-Schulz on the singular values alone."""
    left, values, right = torch.linalg.svd(U, full_matrices=False)
    values = values / (U.norm() + 1e-7)
    for _ in range(count):
        values = sum(c * values ** (2 * k + 1) for k, c in enumerate(COEFFICIENTS))  # type: ignore[assignment]
    return left @ torch.diag(values) @ right


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# --- the polar factor -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 5), (4, 7), (7, 4), (1, 6), (6, 1), (1, 1)])
def test_polar_factors_of_a_batch_are_those_of_svd(shape: tuple[int, int]) -> None:
    U = gaussian(3, *shape)
    for found, each in zip(polar_factor(U), U, strict=True):
        assert relative(found, polar(each)) <= 1e-12
    for found, each in zip(newton_schulz(U, 5), U, strict=True):
        assert relative(found, rounds(each)) <= 1e-12


def test_the_polar_factor_is_the_best_of_all_matrices_of_spectral_norm_one() -> None:
    U = gaussian(4, 6)
    best = float((U * polar_factor(U)).sum())
    assert best == pytest.approx(float(torch.linalg.matrix_norm(U, "nuc")), rel=1e-13)
    others = gaussian(500, 4, 6, seed=1)
    others /= torch.linalg.matrix_norm(others, 2)[:, None, None]
    reached = (others * U).sum((1, 2))
    assert float(reached.max()) < best < 4 * float(reached.max())
    assert float((U * newton_schulz(U, 5)).sum()) < best  # the rounds do not reach it


@pytest.mark.parametrize("multiple", [1e-30, -3.0, 1e30])
def test_length_of_the_matrix_does_not_matter(multiple: float) -> None:
    U = gaussian(4, 6)
    assert relative(polar_factor(multiple * U), polar_factor(U) * (1 if multiple > 0 else -1)) <= 1e-12


def test_rounds_do_not_tend_to_the_polar_factor() -> None:
    """Negative control: a test that took the one for the other would fail by a fifth."""
    U = gaussian(6, 9)
    for count in (5, 20):
        assert 0.05 < relative(newton_schulz(U, count), polar(U)) < 0.35


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_directions_without_gradient_stay_zero(dtype: torch.dtype) -> None:
    """Rows of a softmax layer's gradient sum to zero; singular values far apart are kept in float32 too."""
    left, right = torch.linalg.qr(gaussian(6, 6)).Q, torch.linalg.qr(gaussian(9, 9, seed=1)).Q[:6]
    left = left - left.mean(0)
    U = (left @ torch.diag(torch.tensor([1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-4]).double()) @ right).to(dtype)
    found = polar_factor(U).double()
    assert found.dtype == torch.float64 and float(found.sum(0).abs().max()) <= 0.05
    values = torch.linalg.svdvals(found)
    assert float((values[:5] - 1).abs().max()) <= (0.02 if dtype == torch.float32 else 1e-8)
    assert bool((polar_factor(torch.zeros(2, 3, 4, dtype=dtype)) == 0).all())


# --- the probe --------------------------------------------------------------------------------------------


def scale(kind: str, M: int, D: int) -> float:
    return {"original": max(1, M / D) ** 0.5, "match_rms_adamw": 0.2 * max(M, D) ** 0.5, "none": 1.0}[kind]


@pytest.mark.parametrize("name", ["mlp_tanh", "nasty_cnn"])
@pytest.mark.parametrize(
    ("options", "factor"),
    [
        ({}, polar),
        ({"nesterov": False, "momentum": 0.5, "scale": "none"}, polar),
        ({"polar_by": "newton-schulz", "scale": "match_rms_adamw"}, rounds),
        ({"polar_by": "newton-schulz", "ns_steps": 2}, lambda U: rounds(U, 2)),
    ],
)
def test_steps_are_polar_factors_of_the_momentum_matrix(name: str, options: dict[str, Any], factor: Any) -> None:
    """Batch after batch, per group of a convolution; Nesterov's momentum by its own formula."""
    probe, instance = cb.probe("muon", **options), instance_of(name)
    state, momentum = probe.init(instance), torch.zeros(instance.size).double()
    for seed in range(3):
        batch = instance.draw(3, seed=seed)
        state, g, mu = probe.update(state, batch), batch.gradient(), probe.momentum
        momentum = mu * momentum + (1 - mu) * g
        U = (1 - mu) * g + mu * momentum if probe.nesterov else momentum
        step = [
            scale(probe.scale, *matrix.shape) * factor(matrix)
            for layer in instance.layers
            for matrix in U[layer.slice].reshape(layer.shape)
        ]
        # squares of small singular values lose digits
        assert relative(probe.precondition(state, g), torch.cat([p.flatten() for p in step])) <= 1e-4


@pytest.mark.parametrize("updates", [1, 4])
@pytest.mark.parametrize("nesterov", [True, False])
def test_the_matrix_is_the_projection_of_the_gradient_s_outer_product(updates: int, nesterov: bool) -> None:
    """On X (x) I, or I (x) X where M > D; the average is corrected for its start. The step is its inverse root of U."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    instance, N = cb.Instance(model, torch.randn(7, 2).double(), torch.arange(7) % 3), 7
    g = instance.gradient()
    probe = cb.probe("muon", updates=updates, nesterov=nesterov, scale="none")
    state = probe.fit(instance)
    dense = probe.operator(state).to_dense()
    assert {la.outputs > la.inputs for la in instance.layers} == {True, False}
    for layer in instance.layers:
        (V,), (_, M, D) = g[layer.slice].reshape(layer.shape), layer.shape
        outer = N * torch.outer(V.flatten(), V.flatten()).reshape(M, D, M, D)
        left = torch.kron(outer.diagonal(dim1=1, dim2=3).sum(-1) / D, torch.eye(D).double())
        right = torch.kron(torch.eye(M).double(), outer.diagonal(dim1=0, dim2=2).sum(-1) / M)
        block = dense[layer.slice, layer.slice]
        assert relative(block, right if M > D else left) <= 1e-12
        assert float(block.trace()) == pytest.approx(N * float(V.square().sum()))
        values, basis = torch.linalg.eigh(block)
        kept = values > 1e-12 * values[-1]
        root = basis[:, kept] @ torch.diag(values[kept].rsqrt()) @ basis[:, kept].T
        step = probe.precondition(state, g)[layer.slice]
        assert float(torch.cosine_similarity(step, root @ V.flatten(), dim=0)) >= 1 - 1e-9
    assert relative(dense, oracles.keep(dense, [layer.size for layer in instance.layers])) == 0


def test_a_model_without_matrices_is_refused_in_one_line() -> None:
    model = nn.Sequential(nn.Embedding(5, 3), nn.LayerNorm(3)).double()
    instance = cb.Instance(model, torch.arange(5), torch.arange(5) % 3)
    reason = cb.probe("muon").unsupported(instance)
    assert reason and "no weight of a linear layer or a convolution" in reason and "\n" not in reason
    with pytest.raises(Unsupported, match="muon makes matrices orthogonal"):
        cb.fit(cb.probe("muon"), instance)


# --- training ---------------------------------------------------------------------------------------------


class Words(nn.Module):
    """Tokens to classes: a table, a norm, and weights wide and high, without biases, as torch's Muon wants them."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(7, 4), nn.LayerNorm(4)
        self.up, self.down = nn.Linear(4, 9, bias=False), nn.Linear(9, 3, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(self.norm(self.table(tokens).mean(1)))))


BATCHES = [(torch.randint(7, (8, 3), generator=g), torch.arange(8) % 3) for g in [torch.Generator().manual_seed(1)] * 5]


def train(model: nn.Module, *optimizers: Any) -> None:
    for x, y in BATCHES:
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        for optimizer in optimizers:
            optimizer.step()


def moved(model: nn.Module, start: nn.Module, name: str) -> Tensor:
    return (dict(model.named_parameters())[name] - dict(start.named_parameters())[name]).detach()


class ByHand(torch.optim.Optimizer):
    """Muon by singular value decompositions."""

    def __init__(self, weights: list[nn.Parameter], lr: float, factor: Any) -> None:
        super().__init__(weights, {"lr": lr})
        self.factor = factor

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for p in self.param_groups[0]["params"]:
            old = self.state[p].get("m", torch.zeros_like(p))
            m = self.state[p]["m"] = 0.95 * old + 0.05 * p.grad
            step = self.factor(0.05 * p.grad + 0.95 * m) * max(1, p.shape[0] / p.shape[1]) ** 0.5
            p.sub_(self.param_groups[0]["lr"] * step)


@pytest.mark.parametrize("by", ["exact", "newton-schulz", "torch"])
def test_matrices_take_muon_and_the_rest_adamw(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand, and torch's Muon, whose rounds in bfloat16 are told to stay in float64 here."""
    torch.manual_seed(0)
    start = Words().double()
    model, judge = copy.deepcopy(start), copy.deepcopy(start)
    weights, rest = [judge.up.weight, judge.down.weight], [*judge.table.parameters(), *judge.norm.parameters()]
    if by == "torch":
        monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
        kind = getattr(torch.optim, "Muon", None) or pytest.skip("torch.optim.Muon came with torch 2.9")
        muon = kind(weights, 0.02, weight_decay=0.0)
    else:
        muon = ByHand(weights, 0.02, polar if by == "exact" else rounds)
    train(judge, muon, torch.optim.AdamW(rest, 3e-3, weight_decay=0.0))
    probe = cb.probe("muon", polar_by="exact" if by == "exact" else "newton-schulz")
    train(model, NaturalGradient(model, probe, 0.02, others_lr=3e-3))
    for name, _ in start.named_parameters():
        distance = relative(moved(model, start, name), moved(judge, start, name))
        assert distance <= (1e-3 if by == "torch" else 1e-6), name
    if by == "newton-schulz":
        other = copy.deepcopy(start)
        train(other, NaturalGradient(other, cb.probe("muon"), 0.02, others_lr=3e-3))
        assert relative(moved(other, start, "up.weight"), moved(judge, start, "up.weight")) > 0.08
