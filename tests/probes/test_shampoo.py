"""Shampoo against dense powers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from cases import instance_of, truth
from matrix_steps import Array, by_hand, flat, trained
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
    """Probe and state; an epsilon of zero leaves no inverse roots, so that the state is left unrefreshed."""
    probe = cb.probe("shampoo", **hyperparameters)
    state = probe.fit(instance_of(name))
    return probe, probe.refresh(state) if probe.epsilon else state


def drawn_means(name: str, count: int) -> list[Tensor]:
    terms = len(truth(name).terms)
    return [batch_gradient(instance_of(name), "bg", 0, t) / terms**0.5 for t in range(count)]


@pytest.mark.parametrize("decay", [1.0, 0.7])
@pytest.mark.parametrize("name", ["mlp_tanh", "nasty_cnn", "conv1d"])
@pytest.mark.parametrize("statistic", ["bg", "bg_data"])
@pytest.mark.parametrize("represents", ["root", "trace"])
def test_operator_is_made_of_the_mean_moments(name: str, statistic: str, decay: float, represents: str) -> None:
    """In the unit N; the root of each, or their product over a trace. The epsilon of the step is not in it."""
    probe, state = fitted(name, updates=3, statistic=statistic, epsilon=1e-3, decay=decay, represents=represents)
    gradients = drawn_means(name, 3) if statistic == "bg" else [truth(name).gradient] * 3
    weights = torch.tensor([decay**2, decay, 1.0]).double()
    weights = weights / weights.sum()
    streams = zip(*[group_matrices(instance_of(name).layers, g) for g in gradients], strict=True)
    blocks = []
    for stack in streams:
        left = sum(w * G @ G.T for w, G in zip(weights, stack, strict=True))
        right = sum(w * G.T @ G for w, G in zip(weights, stack, strict=True))
        root, trace = torch.kron(power(left, 0.5), power(right, 0.5)), torch.kron(left, right) / left.trace()
        blocks.append(len(truth(name).terms) * (root if represents == "root" else trace))
    assert relative(probe.operator(state).to_dense(), torch.block_diag(*blocks)) < 1e-7  # roots of rounding


def moment_of(gradients: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(gradients)).T @ torch.stack(list(gradients)) / len(gradients)


def test_the_trace_and_both_partial_traces_are_exact() -> None:
    """Of N E[v v^T] with ``trace``; the root is too large by the factor tr L^(1/2) tr R^(1/2) / tr L."""
    gradients, instance = drawn_means("mlp_tanh", 4), instance_of("mlp_tanh")
    found, root = (fitted("mlp_tanh", updates=4, statistic="bg", represents=r, epsilon=0.0) for r in ("trace", "root"))
    for block, other, layer in zip(
        found[0].operator(found[1]).blocks, root[0].operator(root[1]).blocks, instance.layers, strict=True
    ):
        _, M, D = layer.shape
        exact = instance.terms * moment_of([g[layer.slice] for g in gradients]).reshape(M, D, M, D)
        dense = block.to_dense().reshape(M, D, M, D)
        for sides in ("mdod->mo", "mdme->de"):
            assert relative(torch.einsum(sides, dense), torch.einsum(sides, exact)) < 1e-12
        assert other.trace() > 1.2 * block.trace()


def test_one_gradient_of_rank_one_is_exact() -> None:
    """With one sample every linear layer's gradient is a single outer product. Roots limit the tolerance."""
    probe, state = fitted("one_sample", updates=1, epsilon=0.0)
    g = truth("one_sample").gradient
    expected = oracles.keep(torch.outer(g, g), [layer.size for layer in instance_of("one_sample").layers])
    assert relative(probe.operator(state).to_dense(), expected) < 1e-7


def test_it_bounds_the_second_moment_up_to_a_rank() -> None:
    """Then r N L^(1/2) (x) R^(1/2) lies above N E[v v^T], r the largest rank of a gradient; without r it need not."""
    probe, state = fitted("mlp_tanh", updates=4, statistic="bg", epsilon=0.0)
    bound = probe.operator(state)
    for layer, block in zip(instance_of("mlp_tanh").layers, bound.blocks, strict=True):
        parts = [g[layer.slice] for g in drawn_means("mlp_tanh", 4)]
        total = instance_of("mlp_tanh").terms * moment_of(parts)
        rank = max(int(torch.linalg.matrix_rank(p.reshape(layer.shape)[0])) for p in parts)
        gap = torch.linalg.eigvalsh(rank * block.to_dense() - total)
        assert float(gap[0]) > -1e-10 * float(gap[-1])


def test_the_bound_needs_the_rank() -> None:
    """Negative control, one gradient c I of order 3: the operator is 3 c^2 I for 3 terms, N |vec(c I)|^2 is 9 c^2."""
    model = nn.Sequential(nn.Linear(3, 3, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(3))
    inputs = torch.eye(3).double()
    instance = cb.Instance(model, inputs, torch.zeros(3, 3).double(), loss="gaussian")
    probe = cb.probe("shampoo", updates=1, epsilon=0.0)
    g = instance.gradient()
    dense = probe.operator(probe.fit(instance)).to_dense()
    assert float(torch.linalg.eigvalsh(dense - 3 * torch.outer(g, g))[0]) < -1e-3
    assert float(torch.linalg.eigvalsh(3 * dense - 3 * torch.outer(g, g))[0]) > -1e-12


@pytest.mark.parametrize("decay", [1.0, 0.7])
@pytest.mark.parametrize("exponent", [0.25, 0.5, 0.125])
def test_the_step_is_made_of_powers_of_the_moments(exponent: float, decay: float) -> None:
    """Sums for decay 1, corrected averages else; epsilon is added before the power."""
    for name in ("mlp_tanh", "nasty_cnn"):
        probe, state = fitted(name, updates=2, exponent=exponent, decay=decay, epsilon=1e-3)
        v, count = torch.randn(instance_of(name).size).double(), 2 if decay == 1 else 1
        pairs = [group_matrices(instance_of(name).layers, vector) for vector in (truth(name).gradient, v)]
        steps = []
        for G, V in zip(*pairs, strict=True):
            left, right = (count * S + 1e-3 * torch.eye(len(S)).double() for S in (G @ G.T, G.T @ G))
            steps.append((power(left, -exponent) @ V @ power(right, -exponent)).flatten())
        assert relative(probe.precondition(state, v), torch.cat(steps)) < 1e-10


def test_the_step_is_the_inverse_root_of_the_matrix() -> None:
    """Of gradients of full rank, up to the unit N and the number of sums."""
    instance = cb.Instance(*flat(5, 5, 5), loss="gaussian")
    for exponent, decay in ((0.25, 1.0), (0.25, 0.9), (0.5, 1.0)):
        probe = cb.probe("shampoo", updates=3, epsilon=1e-14, exponent=exponent, decay=decay)
        state = probe.refresh(probe.fit(instance))
        inverse = power(probe.operator(state).to_dense() / instance.terms, -0.5) @ instance.gradient()
        step = probe.precondition(state, instance.gradient())
        scale = 3 ** (-2 * exponent) if decay == 1 else 1.0
        assert relative(step, scale * inverse) < 1e-3, "epsilon over the least eigenvalue"


@pytest.mark.parametrize(("options", "power_of_scale"), [({}, 1), ({"represents": "trace"}, 1), ({"exponent": 0.5}, 2)])
def test_only_one_exponent_has_the_unit_of_a_second_moment(options: dict[str, Any], power_of_scale: int) -> None:
    """Negative control: with the exponent of many ports, four times the moments are 16 times the root's matrix."""
    probe, state = fitted("mlp_tanh", updates=2, **options)
    larger = state._replace(sums=[tuple((4 * L, 4 * R) for L, R in parts) for parts in state.sums])
    ratio = probe.operator(larger).trace() / probe.operator(state).trace()
    assert ratio == pytest.approx(4**power_of_scale, rel=1e-6)


def test_one_repeated_gradient_gives_its_polar_factor() -> None:
    instance = cb.Instance(*flat(5, 5), loss="gaussian")
    probe = cb.probe("shampoo", updates=4, epsilon=1e-14, decay=0.9)
    step = probe.precondition(probe.refresh(probe.fit(instance)), instance.gradient()).reshape(5, 5)
    u, _, v = torch.linalg.svd(instance.gradient().reshape(5, 5))
    assert relative(step, u @ v) < 1e-6


def test_exponents_differ_in_direction() -> None:
    g = truth("mlp_tanh").gradient
    steps = [p.precondition(s, g) for p, s in (fitted("mlp_tanh", exponent=e) for e in (0.25, 0.5))]
    assert float(torch.cosine_similarity(*steps, dim=0)) < 0.99


@pytest.mark.parametrize(("old", "new"), [("paper", 0.25), ("ports", 0.5)])
def test_the_names_of_exponents_are_told_by_their_numbers(old: str, new: float) -> None:
    with pytest.raises(ValueError, match=f"give exponent={new} for '{old}'") as caught:
        cb.probe("shampoo", exponent=old)
    assert "\n" not in str(caught.value)


def pieces(name: str, vector: Tensor, block: int) -> list[Tensor]:
    """The sub-matrices of all layers and groups."""
    matrices = group_matrices(instance_of(name).layers, vector)
    return [part for V in matrices for rows in V.split(block) for part in rows.split(block, dim=1)]


@pytest.mark.parametrize("name", ["mlp_tanh", "nasty_cnn"])
def test_blocks_have_moments_of_their_own(name: str) -> None:
    probe, state = fitted(name, updates=1, block=3, epsilon=1e-3)
    v = torch.randn(instance_of(name).size).double()
    step = probe.precondition(state, v)
    for G, V, found in zip(*(pieces(name, x, 3) for x in (truth(name).gradient, v, step)), strict=True):
        left, right = (S + 1e-3 * torch.eye(len(S)).double() for S in (G @ G.T, G.T @ G))
        assert relative(found, power(left, -0.25) @ V @ power(right, -0.25)) < 1e-9
    damped = probe.damped(state)
    assert relative(damped.matvec(step), v) < 1e-9
    mask = sum(torch.outer(*2 * [(g != 0).double()]) for g in indicators(name, 3))
    dense = probe.operator(state).to_dense()
    assert torch.equal(dense * mask, dense) and float(dense.norm()) > 0
    whole, whole_state = fitted(name, updates=1, epsilon=1e-3)
    assert relative(whole.precondition(whole_state, v), step) > 1e-3


def indicators(name: str, block: int) -> list[Tensor]:
    """Per sub-matrix the vector that is 1 at its entries."""
    count = len(pieces(name, torch.zeros(instance_of(name).size), block))
    found = []
    for chosen in range(count):
        vector = torch.zeros(instance_of(name).size).double()
        pieces(name, vector, block)[chosen].fill_(1.0)
        found.append(vector)
    return found


def test_a_longer_side_keeps_the_identity() -> None:
    """One-sided: (3, 6) keeps the columns, (6, 3) the rows."""
    instance = cb.Instance(*flat(6, 3, 6), loss="gaussian")
    probe = cb.probe("shampoo", updates=1, block=4, one_sided=True, epsilon=1e-6)
    step = probe.precondition(probe.refresh(probe.fit(instance)), instance.gradient())
    (G, H), (p, q) = (group_matrices(instance.layers, x) for x in (instance.gradient(), step))
    assert relative(p, power(G @ G.T + 1e-6 * torch.eye(3).double(), -0.25) @ G) < 1e-10
    assert relative(q, H @ power(H.T @ H + 1e-6 * torch.eye(3).double(), -0.25)) < 1e-10
    with pytest.raises(ValueError, match="give block"):
        cb.probe("shampoo", one_sided=True)


GRAFTS = {
    "sgd": lambda g, s, t: g,
    "adagrad": lambda g, s, t: g / (s["sum"].sqrt() + 1e-8),
    "rmsprop": lambda g, s, t: g / (s["mean"].sqrt() + 1e-8),
    "adam": lambda g, s, t: g / ((s["mean"] / (1 - 0.8**t)).sqrt() + 1e-8),
}


@pytest.mark.parametrize("graft", GRAFTS)
def test_grafting_keeps_the_direction_of_a_block_and_takes_a_length(graft: str) -> None:
    name, t = "mlp_tanh", 3
    options = {"updates": t, "statistic": "bg", "decay": 0.8, "block": 3}
    (plain, plain_state), (probe, state) = fitted(name, **options), fitted(name, **options, graft=graft)
    g, squares = truth(name).gradient, [d.square() for d in drawn_means(name, t)]
    s = {"sum": sum(squares), "mean": sum(0.2 * 0.8 ** (t - 1 - i) * q for i, q in enumerate(squares))}
    like = GRAFTS[graft](g, s, t)
    steps = plain.precondition(plain_state, g), probe.precondition(state, g), like
    for p, q, length in zip(*(pieces(name, x, 3) for x in steps), strict=True):
        assert float(torch.cosine_similarity(p.flatten(), q.flatten(), dim=0)) > 1 - 1e-12
        assert float(q.norm()) == pytest.approx(float(length.norm()), rel=1e-10)
    assert float(torch.cosine_similarity(*steps[:2], dim=0)) < 0.9999, "the network's direction changes"
    assert probe.damped(state) is None
    twice, both = probe.precondition(state, 2 * g), probe.precondition(state, g + drawn_means(name, 1)[0])
    assert relative(twice, 2 * steps[1]) < 1e-12
    assert relative(both, steps[1] + probe.precondition(state, drawn_means(name, 1)[0])) > 1e-3


@pytest.mark.parametrize("graft", ["rmsprop", "adam"])
def test_averages_of_squares_need_a_decay(graft: str) -> None:
    with pytest.raises(ValueError, match="decay below 1"):
        cb.probe("shampoo", graft=graft)


def shampoo_step(
    G: Array, s: dict[str, Any], decay: float, eps: float, every: int, momentum: float, graft: bool
) -> Array:
    """With roots from the last multiple of ``every``, and Adam's length per matrix."""
    s["t"] = t = s.get("t", 0) + 1
    for key, new in (("L", G @ G.T), ("R", G.T @ G), ("v", G**2)):
        s[key] = decay * s.get(key, 0 * new) + (1 - decay) * new
    s["m"] = momentum * s.get("m", 0 * G) + (1 - momentum) * G
    mean, c = s["m"] / (1 - momentum**t), 1 - decay**t
    if t % every == 0:
        roots = [np.linalg.eigh(s[key] / c + eps * np.eye(len(s[key]))) for key in "LR"]
        s["roots"] = [(Q * values**-0.25) @ Q.T for values, Q in roots]
    like = mean / (np.sqrt(s["v"] / c) + 1e-8) if graft else mean
    if "roots" not in s:
        return like
    step = s["roots"][0] @ mean @ s["roots"][1]
    return step * np.linalg.norm(like) / np.linalg.norm(step) if graft else step


@pytest.mark.parametrize("graft", [False, True])
@pytest.mark.parametrize("every", [1, 3])
def test_training_steps_are_those_of_public_code_s_order(every: int, graft: bool) -> None:
    """The averaged gradient is preconditioned; until the first root a step is the gradient's, or the grafted one."""
    probe = cb.probe("shampoo", decay=0.8, epsilon=1e-6, root_every=every, graft="adam" if graft else "none")
    found = trained(probe, 5, 4, 6, rate=0.02, momentum=0.9)
    expected = by_hand(lambda G, s: shampoo_step(G, s, 0.8, 1e-6, every, 0.9, graft), 5, 4, 6, rate=0.02)
    assert all(relative(p, q) < 1e-9 for p, q in zip(found, expected, strict=True))
    if every == 1 and not graft:
        late = trained(probe, 5, 4, 6, rate=0.02, momentum=0.9, refresh_every=2)
        assert any(relative(p, q) > 1e-6 for p, q in zip(late, expected, strict=True))


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
    L, R = V @ V.T, V.T @ V
    R = R.diagonal().diag() if cut else R
    found = probe.operator(probe.fit(instance)).to_dense()[block.slice, block.slice]
    assert relative(found, 5 * torch.kron(power(L, 0.5), power(R, 0.5))) < 1e-7
