"""Shampoo against dense powers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import oracles
import pytest
import torch
from cases import instance_of, truth
from streams import relative
from torch import Tensor, nn
from zoo.case import Net

import curvbench as cb
from curvbench.fisher.stochastic import batch_gradient
from curvbench.spec import Layer


def power(matrix: Tensor, exponent: float) -> Tensor:
    values, basis = torch.linalg.eigh(matrix)
    return basis @ torch.diag(values.clamp_min(0) ** exponent) @ basis.T


def group_matrices(layers: Sequence[Layer], gradient: Tensor) -> list[Tensor]:
    """One (M, D) matrix per group of each layer, in the order of the parameter vector."""
    return [matrix for layer in layers for matrix in gradient[layer.slice].reshape(layer.shape)]


def fitted(name: str, **hyperparameters: Any) -> tuple[Any, Any]:
    """Probe and state; a start of zero has no inverse roots, so it is left unrefreshed."""
    probe = cb.probe("shampoo", **hyperparameters)
    state = probe.fit(instance_of(name))
    return probe, probe.refresh(state) if probe.epsilon else state


def drawn_means(name: str, count: int) -> list[Tensor]:
    terms = len(truth(name).terms)
    return [batch_gradient(instance_of(name), "bg", 0, t) / terms**0.5 for t in range(count)]


@pytest.mark.parametrize("name", ["mlp_tanh", "nasty_cnn", "conv1d"])
@pytest.mark.parametrize("statistic", ["bg", "bg_data"])
def test_operator_is_the_product_of_roots_of_the_summed_moments(name: str, statistic: str) -> None:
    probe, state = fitted(name, updates=3, statistic=statistic, epsilon=1e-3)
    gradients = drawn_means(name, 3) if statistic == "bg" else [truth(name).gradient] * 3
    streams = zip(*[group_matrices(instance_of(name).layers, g) for g in gradients], strict=True)
    blocks = []
    for matrices in streams:
        left, right = (1e-3 * torch.eye(n, dtype=torch.float64) for n in matrices[0].shape)
        for G in matrices:
            left, right = left + G @ G.T, right + G.T @ G
        blocks.append(torch.kron(power(left, 0.5), power(right, 0.5)))
    assert relative(probe.operator(state).to_dense(), torch.block_diag(*blocks)) < 1e-10


def test_one_gradient_of_rank_one_is_exact() -> None:
    """With one sample every linear layer's gradient is a single outer product. Roots limit the tolerance."""
    probe, state = fitted("one_sample", updates=1, epsilon=0.0)
    g = truth("one_sample").gradient
    expected = oracles.keep(torch.outer(g, g), [layer.size for layer in instance_of("one_sample").layers])
    assert relative(probe.operator(state).to_dense(), expected) < 1e-7


def test_it_bounds_the_summed_outer_products_up_to_a_rank() -> None:
    """Then r L^(1/2) (x) R^(1/2) lies above the sum, r the largest rank of a gradient; without r it need not."""
    probe, state = fitted("mlp_tanh", updates=4, statistic="bg", epsilon=0.0)
    bound = probe.operator(state)
    for layer, block in zip(instance_of("mlp_tanh").layers, bound.blocks, strict=True):
        parts = [g[layer.slice] for g in drawn_means("mlp_tanh", 4)]
        total = torch.stack(parts).T @ torch.stack(parts)
        rank = max(int(torch.linalg.matrix_rank(p.reshape(layer.shape)[0])) for p in parts)
        gap = torch.linalg.eigvalsh(rank * block.to_dense() - total)
        assert float(gap[0]) > -1e-10 * float(gap[-1])


def test_the_bound_needs_the_rank() -> None:
    """Negative control, one gradient c I of order 3: the operator is c^2 I, and |vec(c I)|^2 is 3 c^2."""
    model = nn.Sequential(nn.Linear(3, 3, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(3))
    inputs = torch.eye(3).double()
    instance = cb.Instance(model, inputs, torch.zeros(3, 3).double(), loss="gaussian")
    probe = cb.probe("shampoo", updates=1, epsilon=0.0)
    g = instance.gradient()
    dense = probe.operator(probe.fit(instance)).to_dense()
    assert float(torch.linalg.eigvalsh(dense - torch.outer(g, g))[0]) < -1e-3
    assert float(torch.linalg.eigvalsh(3 * dense - torch.outer(g, g))[0]) > -1e-12


@pytest.mark.parametrize(("exponent", "expected"), [("paper", -0.5), ("ports", -1.0)])
def test_the_step_is_a_power_of_the_operator(exponent: str, expected: float) -> None:
    for name in ("mlp_tanh", "nasty_cnn"):
        probe, state = fitted(name, updates=2, exponent=exponent)
        v = torch.randn(instance_of(name).size).double()
        assert relative(probe.precondition(state, v), power(probe.operator(state).to_dense(), expected) @ v) < 1e-9


def test_the_two_exponents_differ_in_direction() -> None:
    g = truth("mlp_tanh").gradient
    steps = [p.precondition(s, g) for p, s in (fitted("mlp_tanh", exponent=e) for e in ("paper", "ports"))]
    assert float(torch.cosine_similarity(*steps, dim=0)) < 0.99


def test_without_a_start_a_singular_root_is_refused() -> None:
    probe, state = fitted("dead_unit", updates=1, epsilon=0.0)
    with pytest.raises(ValueError, match="singular"):
        probe.refresh(state)


@pytest.mark.parametrize("cut", [False, True])
def test_positions_have_the_factors_of_their_own_shape(cut: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions (3, 4) that all samples share are a vector of 12 entries in the Fisher, and a matrix for Shampoo."""
    if cut:
        monkeypatch.setattr("curvbench.parts.factors.LARGEST_SIDE", 3)
    torch.manual_seed(0)
    net = Net(
        lambda m, x: m.last(torch.tanh(x + m.place)).mean(1), place=torch.randn(3, 4), last=nn.Linear(4, 3)
    ).double()
    instance = cb.Instance(net, torch.randn(5, 3, 4).double(), torch.randint(3, (5,)))
    (block,) = [layer for layer in instance.layers if layer.kind == "vector"]
    probe = cb.probe("shampoo", updates=1, epsilon=1e-3)
    V = instance.gradient()[block.slice].reshape(3, 4)
    L, R = V @ V.T + 1e-3 * torch.eye(3).double(), V.T @ V + 1e-3 * torch.eye(4).double()
    R = R.diagonal().diag() if cut else R
    found = probe.operator(probe.fit(instance)).to_dense()[block.slice, block.slice]
    assert relative(found, torch.kron(power(L, 0.5), power(R, 0.5))) < 1e-10
