"""SOAP and KL-SOAP against recursions in dense matrices, and where they are another method exactly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from cases import instance_of, truth
from matrix_steps import Array, by_hand, eigenvectors, flat, trained
from streams import relative
from torch import Tensor, nn

import curvbench as cb


def soap_step(G: Array, s: dict[str, Any], b1: float, b2: float, eps: float, every: int, longest: int) -> Array:
    """The authors' order, with the rotation of vec(G) as one Kronecker matrix."""
    keeps = [n > longest for n in G.shape]
    eyes = [np.eye(n) for n in G.shape]
    if not s:
        s |= {"t": 0, "L": (1 - b2) * G @ G.T, "R": (1 - b2) * G.T @ G, "m": 0 * G.ravel(), "v": 0 * G.ravel()}
        s["Q"] = [eye if keep else eigenvectors(S) for S, eye, keep in zip((s["L"], s["R"]), eyes, keeps, strict=True)]
        return 0 * G
    s["t"] += 1
    Q = np.kron(*s["Q"])
    s["m"] = b1 * s["m"] + (1 - b1) * G.ravel()
    s["v"] = b2 * s["v"] + (1 - b2) * (Q.T @ G.ravel()) ** 2
    scale = (1 - b2 ** s["t"]) ** 0.5 / (1 - b1 ** s["t"])
    step = scale * (Q @ (Q.T @ s["m"] / (s["v"] ** 0.5 + eps))).reshape(G.shape)
    s["L"], s["R"] = b2 * s["L"] + (1 - b2) * G @ G.T, b2 * s["R"] + (1 - b2) * G.T @ G
    if s["t"] % every == 0:
        v = s["v"].reshape(G.shape)
        for side, S in enumerate((s["L"], s["R"])):
            if keeps[side]:
                continue
            order = np.argsort(-np.diag(s["Q"][side].T @ S @ s["Q"][side]))
            v = np.take(v, order, axis=side)
            s["Q"][side] = np.linalg.qr(S @ s["Q"][side][:, order])[0]
        s["v"] = v.ravel()
    return step


def kl_soap_step(G: Array, s: dict[str, Any], b1: float, b2: float, eps: float, every: int) -> Array:
    M, D = G.shape
    if not s:
        s |= {"t": 0, "L": (1 - b2) / D * G @ G.T, "R": (1 - b2) / M * G.T @ G, "m": 0 * G, "v": 0 * G}
        s |= {"Q": [eigenvectors(s["L"]), eigenvectors(s["R"])], "l": [np.full(M, 0.1), np.full(D, 0.1)]}
        return 0 * G
    s["t"] += 1
    (P, Q), (a, b) = s["Q"], s["l"]
    Y = P.T @ G @ Q
    s["m"], s["v"] = b1 * s["m"] + (1 - b1) * G, b2 * s["v"] + (1 - b2) * Y**2
    step = P @ (P.T @ s["m"] @ Q / (s["v"] ** 0.5 + eps)) @ Q.T
    s["L"] = b2 * s["L"] + (1 - b2) / D * G @ np.linalg.inv(Q @ np.diag(b) @ Q.T) @ G.T
    s["R"] = b2 * s["R"] + (1 - b2) / M * G.T @ np.linalg.inv(P @ np.diag(a) @ P.T) @ G
    new = [(Y**2 / b).mean(1), (Y**2 / a[:, None]).mean(0)]
    s["l"] = [np.maximum(b2 * old + (1 - b2) * n, 1e-2) for old, n in zip((a, b), new, strict=True)]  # sides < 10
    if s["t"] % every == 0:
        s["Q"] = [np.linalg.qr(s["L"] @ P)[0], np.linalg.qr(s["R"] @ Q)[0]]
    return step


@pytest.mark.parametrize(("widths", "longest"), [((5, 5, 5), 100), ((3, 6, 3), 4)])
def test_training_steps_are_those_of_the_authors_order(widths: tuple[int, ...], longest: int) -> None:
    """Over two new bases. One-sided where a longer side keeps the identity, so that no basis is arbitrary."""
    probe = cb.probe("soap", beta1=0.9, beta2=0.8, epsilon=1e-3, basis_every=3, max_precond_dim=longest)
    found = trained(probe, *widths)
    expected = by_hand(lambda G, s: soap_step(G, s, 0.9, 0.8, 1e-3, 3, longest), *widths)
    late = by_hand(lambda G, s: soap_step(G, s, 0.9, 0.8, 1e-3, 4, longest), *widths)
    for p, q, other in zip(found, expected, late, strict=True):
        assert relative(p, q) < 1e-9
        assert relative(other, q) > 1e-6, "bases come when they are due"


def test_training_steps_of_kl_soap() -> None:
    probe = cb.probe("soap", basis="kl", beta1=0.9, beta2=0.8, epsilon=1e-3, basis_every=3)
    found = trained(probe, 5, 5, 5)
    expected = by_hand(lambda G, s: kl_soap_step(G, s, 0.9, 0.8, 1e-3, 3), 5, 5, 5)
    assert all(relative(p, q) < 1e-9 for p, q in zip(found, expected, strict=True))


def test_the_first_update_only_makes_bases() -> None:
    instance = instance_of("mlp_tanh")
    probe = cb.probe("soap", updates=1)
    state = probe.fit(instance)
    assert float(probe.precondition(state, instance.gradient()).norm()) == 0 == probe.operator(state).trace()
    assert all(
        float((Q.mT @ Q - torch.eye(Q.shape[-1])).norm()) < 1e-12 for la in state.layers for Q in la.turned.bases
    )


def layers_of(name: str, **options: Any) -> Iterator[tuple[Any, Tensor, tuple[Tensor, ...]]]:
    """Per layer the represented block, the exact one, and the bases."""
    instance = instance_of(name)
    probe = cb.probe("soap", statistic="columns", **options)
    state = probe.fit(instance)
    blocks = probe.operator(state).blocks
    for layer, block, (turned, *_) in zip(instance.layers, blocks, state.layers, strict=True):
        yield block.to_dense(), truth(name).fisher()[layer.slice, layer.slice], turned.bases


@pytest.mark.parametrize("name", ["mlp_tanh", "nasty_cnn", "conv1d"])
def test_exact_squares_make_the_projection_on_matrices_diagonal_in_the_bases(name: str) -> None:
    for found, exact, _ in layers_of(name, updates=2):
        scale = float(exact.norm())
        assert abs(float(found.trace() - exact.trace())) < 1e-12 * scale * len(exact)
        assert abs(float(((exact - found) * found).sum())) < 1e-12 * scale**2


def test_squares_of_other_bases_are_no_projection() -> None:
    """Negative control: the same squares on the coordinates, as after a new basis, with which v is not rotated."""
    for found, exact, (P, Q) in layers_of("mlp_tanh", updates=2):
        turned = torch.kron(P[0], Q[0])
        stale = (turned.T @ found @ turned).diagonal().diag()
        assert abs(float(((exact - stale) * stale).sum())) > 1e-3 * float(exact.norm()) ** 2


def test_exact_squares_have_the_moments_partial_traces_and_beat_their_product() -> None:
    for layer, (found, exact, (P, Q)) in zip(
        instance_of("mlp_tanh").layers, layers_of("mlp_tanh", updates=2), strict=True
    ):
        _, M, D = layer.shape
        F = exact.reshape(M, D, M, D)
        L, R = torch.einsum("mdod->mo", F), torch.einsum("mdme->de", F)
        inside = torch.kron(P[0], Q[0]).T @ found @ torch.kron(P[0], Q[0])
        rows = inside.diagonal().reshape(M, D).sum(1)
        assert relative(rows, (P[0].T @ L @ P[0]).diagonal()) < 1e-10
        assert float((found - exact).norm()) <= float((torch.kron(L, R) / L.trace() - exact).norm()) * (1 + 1e-12)


def repeated(**options: Any) -> tuple[Any, Tensor]:
    """The step after one full-rank gradient several times, and that gradient as a matrix."""
    model, x, y = flat(5, 5)
    instance = cb.Instance(model, x, y, "gaussian")
    probe = cb.probe("soap", updates=8, **options)
    return probe.precondition(probe.fit(instance), instance.gradient()).reshape(5, 5), instance.gradient().reshape(5, 5)


@pytest.mark.parametrize("basis", ["shampoo", "kl"])
def test_one_repeated_gradient_gives_its_polar_factor(basis: str) -> None:
    """As Shampoo's L^(-1/4) G R^(-1/4), and Muon's step; KL-SOAP up to its lack of bias corrections."""
    step, G = repeated(basis=basis, epsilon=1e-8)
    u, _, v = torch.linalg.svd(G)
    scale = float((step * (u @ v)).sum()) / 5
    assert relative(step, scale * u @ v) < 1e-4, "epsilon over the least singular value"
    if basis == "shampoo":
        assert scale == pytest.approx(1, abs=1e-4)
        values, left = torch.linalg.eigh(G @ G.T)
        inverse = left @ torch.diag(values**-0.25) @ left.T
        values, right = torch.linalg.eigh(G.T @ G)
        assert relative(step, inverse @ G @ right @ torch.diag(values**-0.25) @ right.T) < 1e-4


def test_without_bases_it_is_adam() -> None:
    """Whose epsilon stands beside the corrected root, and whose first step is SOAP's second call."""
    instance = instance_of("conv1d")
    probe = cb.probe("soap", updates=4, max_precond_dim=1, beta1=0.9, beta2=0.99, epsilon=1e-2)
    adam = cb.probe("adam", updates=3, beta1=0.9, beta2=0.99, epsilon=1e-2 / (1 - 0.99**3) ** 0.5)
    steps = [p.precondition(p.fit(instance), instance.gradient()) for p in (probe, adam)]
    assert relative(*steps) < 1e-12
    assert relative(probe.operator(probe.fit(instance)).to_dense(), cb.fit(adam, instance).to_dense()) < 1e-12
    turned = cb.probe("soap", updates=4, beta1=0.9, beta2=0.99, epsilon=1e-2)
    assert relative(turned.precondition(turned.fit(instance), instance.gradient()), steps[1]) > 0.1


def test_drawn_labels_scatter_around_the_columns() -> None:
    """The unit of both is that of F: the traces agree within five standard errors of the draws."""
    instance = instance_of("mlp_tanh")
    exact = float(truth("mlp_tanh").fisher().trace())
    traces = torch.tensor(
        [cb.fit(cb.probe("soap", statistic="bg", updates=2, seed=s), instance).trace() for s in range(60)]
    )
    assert abs(float(traces.mean()) - exact) < 5 * float(traces.std()) / 60**0.5
    assert cb.fit(cb.probe("soap", statistic="columns", updates=2), instance).trace() == pytest.approx(exact, rel=1e-12)


def test_a_side_too_long_for_memory_is_refused_in_one_line() -> None:
    model = nn.Embedding(50_000, 2)
    instance = cb.Instance(nn.Sequential(model, nn.Flatten()), torch.tensor([[0], [1]]), torch.tensor([0, 1]))
    assert cb.probe("soap").unsupported(instance) is None, "the longer side keeps the identity"
    reason = cb.probe("soap", max_precond_dim=60_000).unsupported(instance)
    assert reason is not None and "GiB" in reason and "\n" not in reason


def test_epsilon_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="epsilon"):
        cb.probe("soap", epsilon=0.0)
