"""KL-Shampoo against a recursion in dense matrices, and its fixed point against the divergence it minimizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cases import instance_of
from matrix_steps import Array, by_hand, eigenvectors, flat, trained
from streams import relative
from torch import Tensor

import curvbench as cb
from curvbench.fisher import collect
from curvbench.spec import Unsupported


def step_by_hand(G: Array, s: dict[str, Any], b1: float, b2: float, eps: float, every: int, least: float) -> Array:
    """The authors' order: the step has bases and eigenvalues from before its gradient."""
    M, D = G.shape
    if not s:
        s |= {"t": 0, "L": (1 - b2) / D * G @ G.T, "R": (1 - b2) / M * G.T @ G, "m": 0 * G}
        s |= {"Q": (eigenvectors(s["L"]), eigenvectors(s["R"])), "l": (np.full(M, 0.1), np.full(D, 0.1))}
        return 0 * G
    s["t"] += 1
    (P, Q), (a, b) = s["Q"], s["l"]
    s["m"] = b1 * s["m"] + (1 - b1) * G
    inverse = 1 / np.sqrt(np.outer(a, b))
    step = P @ (P.T @ s["m"] @ Q * inverse / (1 + eps * inverse)) @ Q.T
    s["L"] = b2 * s["L"] + (1 - b2) / D * G @ np.linalg.inv(Q @ np.diag(b) @ Q.T) @ G.T
    s["R"] = b2 * s["R"] + (1 - b2) / M * G.T @ np.linalg.inv(P @ np.diag(a) @ P.T) @ G
    squares = (P.T @ G @ Q) ** 2
    new = (squares / b).mean(1), (squares / a[:, None]).mean(0)
    s["l"] = tuple(np.maximum(b2 * old + (1 - b2) * n, least) for old, n in zip((a, b), new, strict=True))
    if s["t"] % every == 0:
        s["Q"] = (np.linalg.qr(s["L"] @ P)[0], np.linalg.qr(s["R"] @ Q)[0])
    return step


@pytest.mark.parametrize("clamp", [True, False])
def test_training_steps_are_those_of_the_authors_order(clamp: bool) -> None:
    """Over two new bases. A side of five rows keeps its eigenvalues above 1 / 100 if they are clamped."""
    probe = cb.probe("klshampoo", statistic="bg_data", beta2=0.7, epsilon=1e-3, basis_every=3, clamp=clamp)
    found = trained(probe, 5, 5, 5, rate=0.01)
    expected = by_hand(lambda G, s: step_by_hand(G, s, 0.9, 0.7, 1e-3, 3, clamp / 100), 5, 5, 5, rate=0.01)
    other = by_hand(lambda G, s: step_by_hand(G, s, 0.9, 0.7, 1e-3, 3, (not clamp) / 100), 5, 5, 5, rate=0.01)
    assert all(relative(p, q) < 1e-9 for p, q in zip(found, expected, strict=True))
    assert any(relative(p, q) > 1e-6 for p, q in zip(other, expected, strict=True))


@pytest.fixture
def columns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """At frozen parameters every update reads the same columns."""
    found: dict[int, Any] = {}
    monkeypatch.setattr(
        "curvbench.parts.matrix_moments.collect",
        lambda batch, kind: found.get(id(batch)) or found.setdefault(id(batch), collect(batch, kind)),
    )


def factors(state: Any) -> list[tuple[Tensor, Tensor]]:
    """B_L and B_R per layer, from bases and eigenvalues."""
    return [
        tuple((Q[0] * values[0]) @ Q[0].T for Q, values in zip(t.bases, t.values, strict=True))
        for t, *_ in state.layers
    ]


def excess(left: Tensor, right: Tensor, F: Tensor) -> float:
    """How far both factors are from the stationary point of the divergence for a second moment F (M, D, M, D)."""
    M, D = len(left), len(right)
    other_left = torch.einsum("mdoe,de->mo", F, torch.linalg.inv(right)) / D
    other_right = torch.einsum("mdoe,mo->de", F, torch.linalg.inv(left)) / M
    return max(relative(other_left, left), relative(other_right, right))


def small() -> tuple[cb.Instance, list[Tensor]]:
    """A network, and of each layer its second moment of a mean gradient with drawn labels, F / N."""
    instance = cb.Instance(*flat(3, 2, 2), loss="gaussian")
    F = cb.exact_fisher(instance).to_dense() / instance.terms
    return instance, [F[la.slice, la.slice].reshape(2 * la.shape[1:]) for la in instance.layers]


def test_the_fixed_point_is_stationary_for_the_divergence(columns_once: None) -> None:
    """With the expectation over drawn labels, so that no noise is left; Shampoo's product is not stationary."""
    instance, moments = small()
    probe = cb.probe("klshampoo", statistic="columns", beta2=0.5, basis_every=1, clamp=False, updates=250)
    state = probe.fit(instance)
    for F, pair, block in zip(moments, factors(state), probe.operator(state).blocks, strict=True):
        assert excess(*pair, F) < 1e-8
        assert relative(block.to_dense(), instance.terms * torch.kron(*pair)) < 1e-12
        exact = instance.terms * F.reshape(len(block.to_dense()), -1)
        assert float(torch.linalg.solve(block.to_dense(), exact).trace()) == pytest.approx(len(exact), rel=1e-8)
    L, R = torch.einsum("mdod->mo", moments[0]), torch.einsum("mdme->de", moments[0])
    assert excess(L, R / L.trace(), moments[0]) > 1e-2


def test_a_moment_that_is_a_kronecker_product_is_found(columns_once: None) -> None:
    """One layer with a Gaussian likelihood: F is I (x) E[a a^T] exactly."""
    instance = cb.Instance(*flat(4, 3), loss="gaussian")
    probe = cb.probe("klshampoo", statistic="columns", beta2=0.5, basis_every=1, clamp=False, updates=200)
    assert relative(cb.fit(probe, instance).to_dense(), cb.exact_fisher(instance).to_dense()) < 1e-8


def test_without_the_means_over_the_other_side_the_factors_drift_apart() -> None:
    """Negative control: moments that are sums have no fixed point for M != D, only their product has."""
    (_, moments), sizes = small(), []
    left, right, F = torch.eye(2).double(), torch.eye(3).double(), moments[0]
    for _ in range(60):
        new = (
            torch.einsum("mdoe,de->mo", F, torch.linalg.inv(right)),
            torch.einsum("mdoe,mo->de", F, torch.linalg.inv(left)),
        )
        left, right = (left + new[0]) / 2, (right + new[1]) / 2
        sizes.append(float((left.norm() / right.norm()).log()))
    growth = sizes[-1] - sizes[-2]
    assert growth == pytest.approx(sizes[-11] - sizes[-12], rel=1e-3) and growth > 0.1


def test_one_gradient_repeated_is_refused() -> None:
    """In a measurement; a training gives its own batches."""
    with pytest.raises(Unsupported, match="one and the same gradient") as caught:
        cb.probe("klshampoo", statistic="bg_data").fit(instance_of("mlp_tanh"))
    assert "\n" not in str(caught.value)
    assert (
        cb.fit(cb.probe("klshampoo", statistic="bg_data", batch_size=4, updates=3), instance_of("mlp_tanh")).trace() > 0
    )


def test_a_side_too_long_keeps_the_coordinates(columns_once: None) -> None:
    """With eigenvalues of its own: the diagonal of the whitened moment."""
    instance, _ = small()
    probe = cb.probe("klshampoo", statistic="columns", beta2=0.5, clamp=False, max_precond_dim=2, updates=200)
    turned, *_ = probe.fit(instance).layers[0]
    assert turned.bases[1] is None and turned.moments[1] is None and turned.values[1].shape == (1, 3)
    F = cb.exact_fisher(instance).to_dense()[:6, :6].reshape(2, 3, 2, 3) / instance.terms
    left = (turned.bases[0][0] * turned.values[0][0]) @ turned.bases[0][0].T
    expected = torch.einsum("mdoe,mo->de", F, torch.linalg.inv(left)).diagonal() / 2
    assert relative(turned.values[1][0], expected) < 1e-8
