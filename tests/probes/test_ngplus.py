"""NG+ against dense moments of score matrices, and against the recursion of the public code."""

from __future__ import annotations

from typing import Any

import oracles
import pytest
import torch
from cases import instance_of, truth
from kinds import kind
from streams import relative
from torch import Tensor, nn

import curvbench as cb
from curvbench.fisher.stochastic import batch_gradient
from curvbench.spec import Layer

CASES = ("mlp_tanh", "nasty_cnn", "tokens")


def blocks_of(name: str, fisher_type: str = "type-2") -> list[tuple[Layer, Tensor]]:
    """Every group's block of the dense Fisher, with its layer."""
    dense, found = truth(name).fisher(fisher_type), []
    for layer in instance_of(name).layers:
        sizes = [layer.size // layer.groups] * layer.groups
        found += [(layer, b) for b in oracles.diagonal_blocks(dense[layer.slice, layer.slice], sizes)]
    return found


def eye(order: int) -> Tensor:
    return torch.eye(order).double()


def projected(layer: Layer, block: Tensor, smaller: bool) -> Tensor:
    """The least-squares fit of X (x) I, or of I (x) X, from the partial traces of a dense block."""
    left, right = oracles.partial_traces(block, layer.outputs, layer.inputs)
    if smaller and layer.inputs < layer.outputs:
        return torch.kron(eye(layer.outputs), right / layer.outputs)
    return torch.kron(left / layer.inputs, eye(layer.inputs))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("side", ["outputs", "smaller"])
def test_columns_give_the_projection_on_one_side(name: str, side: str) -> None:
    """Orthogonality says it: the error has no part in any X (x) I."""
    found = cb.fit(cb.probe("ngplus", side=side), instance_of(name)).to_dense()
    pairs = blocks_of(name)
    assert relative(found, torch.block_diag(*[projected(*pair, side == "smaller") for pair in pairs])) < 1e-12
    parts = oracles.diagonal_blocks(found, [len(block) for _, block in pairs])
    for (layer, block), part in zip(pairs, parts, strict=True):
        assert abs(float(part.trace() / block.trace()) - 1) < 1e-12
        if side == "outputs":
            rest = oracles.partial_traces(block - part, layer.outputs, layer.inputs)[0]
            assert float(rest.abs().max()) <= 1e-12 * float(block.trace())


@pytest.mark.parametrize("name", CASES)
def test_the_best_kronecker_product_is_nearer(name: str) -> None:
    dense = {probe: cb.fit(cb.probe(probe), instance_of(name)).to_dense() for probe in ("kpsvd", "ngplus")}
    for layer in instance_of(name).layers:
        part = truth(name).fisher()[layer.slice, layer.slice]
        distances = {probe: float((found[layer.slice, layer.slice] - part).norm()) for probe, found in dense.items()}
        if layer.groups == 1:
            assert distances["kpsvd"] < distances["ngplus"] < float(part.norm())


@pytest.mark.parametrize("rule", ["exact", "paper", "code"])
@pytest.mark.parametrize("damping", [1e-2, 1e-7])
def test_dampings(rule: str, damping: float) -> None:
    """Of (L + mu I)^-1 V for every group's matrix V, written out."""
    name, instance = "nasty_cnn", instance_of("nasty_cnn")
    probe = cb.probe("ngplus", damping_rule=rule, damping=damping)
    v = torch.randn(instance.size, generator=torch.Generator().manual_seed(1)).double()
    step = probe.precondition(probe.refresh(probe.fit(instance)), v)
    rows, place = [], 0
    for layer in instance.layers:
        own = [block for other, block in blocks_of(name) if other is layer]
        lefts = [oracles.partial_traces(block, layer.outputs, layer.inputs)[0] for block in own]
        largest = max(float(left.abs().max()) for left in lefts)
        added = {"exact": layer.inputs * damping, "paper": damping, "code": min(damping, max(largest, 1e-3)) ** 0.5}
        for left in lefts:
            V = v[place : place + layer.outputs * layer.inputs].reshape(layer.outputs, layer.inputs)
            solved = torch.linalg.solve(left + added[rule] * eye(layer.outputs), V)
            rows.append((layer.inputs if rule == "exact" else 1) * solved.flatten())
            place += V.numel()
    assert relative(step, torch.cat(rows)) < 1e-8


@pytest.mark.parametrize("statistic", ["bg", "bg_data"])
def test_gradients_give_the_corrected_average(statistic: Any) -> None:
    name, terms = "mlp_tanh", len(truth("mlp_tanh").terms)
    probe = cb.probe("ngplus", source="gradients", statistic=statistic, updates=3, decay=0.6)
    gradients = [batch_gradient(instance_of(name), statistic, 0, t) / terms**0.5 for t in range(3)]
    weights = [0.4 * 0.6 ** (2 - t) / (1 - 0.6**3) for t in range(3)]
    dense = terms * sum(w * torch.outer(g, g) for w, g in zip(weights, gradients, strict=True))
    layers = instance_of(name).layers
    expected = [projected(layer, dense[layer.slice, layer.slice], False) for layer in layers]
    assert relative(cb.fit(probe, instance_of(name)).to_dense(), torch.block_diag(*expected)) < 1e-12


def test_momentum_is_the_recursion_of_the_public_code() -> None:
    """One layer without bias, one gradient again and again; the average tends to 100 V V^T."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3, bias=False)).double()
    instance = cb.Instance(model, torch.randn(6, 4).double(), torch.arange(6) % 3)
    V = instance.gradient().reshape(3, 4)
    m, average = V.clone(), 1e-8 * eye(3)
    for _ in range(40):
        m = 0.9 * m + V
        average = 0.99 * average + 0.01 * m @ m.T
    probe = cb.probe("ngplus", source="momentum", damping_rule="code", updates=40)
    state = probe.refresh(probe.fit(instance))
    assert relative(probe.operator(state).to_dense(), torch.kron(6 * average / 4, eye(4))) < 1e-12
    added = min(1e-3, max(float(average.abs().max()), 1e-3)) ** 0.5
    step = torch.linalg.solve(average + added * eye(3), V).flatten()
    assert relative(probe.precondition(state, instance.gradient()), step) < 1e-11
    longer = cb.probe("ngplus", source="momentum", updates=400).fit(instance).moments[0].matrix[0]
    assert relative(longer, 100 * (1 - 0.99**400) * V @ V.T) < 0.03


def test_a_norm_has_its_exact_diagonal_and_positions_have_their_own_matrix() -> None:
    for case in ("normed", "tied"):
        instance = kind(case)[3]
        found = cb.fit(cb.probe("ngplus"), instance).to_dense()
        exact = cb.exact_fisher(instance).to_dense()
        for layer in (layer for layer in instance.layers if layer.kind == "vector"):
            block, part = exact[layer.slice, layer.slice], found[layer.slice, layer.slice]
            shape = instance.parameters[layer.parameters[0]].shape
            if len(shape) == 1:
                assert relative(part, block.diagonal().diag()) < 1e-12
            else:
                left = oracles.partial_traces(block, *shape)[0]
                assert relative(part, torch.kron(left / shape[1], eye(shape[1]))) < 1e-12
