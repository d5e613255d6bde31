"""PSGD: both criteria against their stationarity conditions on dense matrices, and the probe's own steps."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import instance_of, truth
from judging import near
from torch import Tensor, nn

import curvbench as cb
from curvbench.fisher.stochastic import draw_seed
from curvbench.parts import whitening
from curvbench.probes.psgd import _NOISE

Pair = tuple[Tensor, Tensor]
GENERATOR = torch.Generator().manual_seed(3)
M, D = 3, 4
GRADIENTS = torch.randn(12, M, D, dtype=torch.float64, generator=GENERATOR) @ torch.diag(
    torch.tensor([2.0, 1.2, 0.8, 0.5], dtype=torch.float64)
)
MOMENT = torch.einsum("nia,njb->iajb", GRADIENTS, GRADIENTS) / len(GRADIENTS)


def root(matrix: Tensor, exponent: float = 0.5) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ (values**exponent).diag() @ vectors.T


def inv(matrix: Tensor) -> Tensor:
    return torch.linalg.inv(matrix)


def eq_point(four: Tensor) -> Pair:
    """L and R of the table: L^2 = E[G R^-1 G^T] / tr R, R^2 = E[G^T L^-1 G] / tr L."""
    R = torch.eye(four.shape[1], dtype=torch.float64)
    for _ in range(300):
        L = root(torch.einsum("iajb,ab->ij", four, inv(R)) / R.trace())
        R = root(torch.einsum("iajb,ij->ab", four, inv(L)) / L.trace())
    return L, R


def kl_point(four: Tensor) -> Pair:
    """L^2 = E[G R^-2 G^T] / D and its twin: the root of the KL-optimal Kronecker product."""
    outputs, inputs = four.shape[:2]
    R = torch.eye(inputs, dtype=torch.float64)
    for _ in range(300):
        L = root(torch.einsum("iajb,ab->ij", four, inv(R @ R)) / inputs)
        R = root(torch.einsum("iajb,ij->ab", four, inv(L @ L)) / outputs)
    return L, R


def upper(matrix: Tensor) -> Tensor:
    """The triangular Q with Q^T Q the inverse of a matrix, with a group axis."""
    return torch.linalg.cholesky(inv(matrix)).T[None]


def units() -> Tensor:
    """Draws Z with the second moments of normal ones: every matrix of one entry, times sqrt(M D)."""
    return torch.eye(M * D, dtype=torch.float64).reshape(-1, M, D) * (M * D) ** 0.5


Terms = tuple[Pair, Pair]


def mean_terms(roots: Pair, criterion: str, gradients: Tensor = GRADIENTS) -> Terms:
    """The expectations of the terms over all gradients, and over the draws."""
    if criterion == "EQ":
        pairs = itertools.product(gradients, units())
        made = [whitening.eq_terms(roots, V[None], Z[None]) for V, Z in pairs]
    else:
        made = [whitening.qeq_terms(roots, V[None]) for V in gradients]
    return tuple(
        tuple(torch.stack([one[side][k].expand(1, n, n) for one in made]).mean(0) for k in (0, 1))
        for side, n in ((0, gradients.shape[1]), (1, gradients.shape[2]))
    )  # type: ignore[return-value]


def unrest(terms: Terms) -> float:
    """|E - E'| / |E'| of the side with more, from E - E' and E + E'."""
    return max(float(2 * difference.norm() / (total - difference).norm()) for difference, total in terms)


POINTS: dict[str, Callable[[Tensor], Pair]] = {"EQ": eq_point, "QEQ": kl_point}


@pytest.mark.parametrize(("criterion", "other"), [("EQ", "QEQ"), ("QEQ", "EQ")])
def test_rests_at_its_own_point_alone(criterion: str, other: str) -> None:
    """The control is the point of the other criterion."""
    at_own, at_other = (tuple(map(upper, POINTS[name](MOMENT))) for name in (criterion, other))
    assert unrest(mean_terms(at_own, criterion)) <= 1e-11
    assert unrest(mean_terms(at_other, criterion)) >= 0.05


def closed_terms(roots: Pair, criterion: str) -> Terms:
    """``mean_terms`` of the gradients in closed form, because steps to the end take thousands."""
    (Q, K), (P_L, P_R) = (r[0] for r in roots), (r[0].T @ r[0] for r in roots)
    if criterion == "EQ":
        left = Q @ torch.einsum("iajb,ab->ij", MOMENT, P_R) @ Q.T, inv(Q @ Q.T) * inv(P_R).trace()
        right = K @ torch.einsum("iajb,ij->ab", MOMENT, P_L) @ K.T, inv(K @ K.T) * inv(P_L).trace()
    else:
        left = P_L @ torch.einsum("iajb,ab->ij", MOMENT, P_R @ P_R) @ P_L, D * torch.eye(M, dtype=torch.float64)
        right = P_R @ torch.einsum("iajb,ij->ab", MOMENT, P_L @ P_L) @ P_R, M * torch.eye(D, dtype=torch.float64)
    return tuple(((E - other)[None], (E + other)[None]) for E, other in (left, right))  # type: ignore[return-value]


@pytest.mark.parametrize("criterion", ["EQ", "QEQ"])
def test_mean_steps_from_the_identity_end_there(criterion: str) -> None:
    roots: Pair = tuple(torch.eye(n, dtype=torch.float64)[None] for n in (M, D))  # type: ignore[assignment]
    step = whitening.eq_step if criterion == "EQ" else whitening.qeq_step
    for k in range(300):
        terms = closed_terms(roots, criterion)
        if k == 3:
            assert all(
                near(a, b)
                for pair, other in zip(terms, mean_terms(roots, criterion), strict=True)
                for a, b in zip(pair, other, strict=True)
            )
        roots = step(roots[0], terms[0], 0.4), step(roots[1], terms[1], 0.4)
    found = torch.kron(*(whitening.inverse(Q)[0] for Q in roots))
    own, other = (torch.kron(*POINTS[name](MOMENT)) for name in (criterion, "QEQ" if criterion == "EQ" else "EQ"))
    assert near(found, own, 1e-3) and not near(found, other, 1e-2)
    assert criterion == "QEQ" or torch.equal(roots[0], roots[0].triu())


def test_eq_is_the_least_of_its_criterion() -> None:
    """E[v^T P v] = tr P^-1 at the optimum, and no perturbed Kronecker product has less."""
    L, R = eq_point(MOMENT)
    H = MOMENT.reshape(M * D, M * D)

    def value(P_L: Tensor, P_R: Tensor) -> float:
        P = torch.kron(P_L, P_R)
        return float((P @ H).trace() + inv(P).trace())

    P_L, P_R = inv(L), inv(R)
    assert float((torch.kron(P_L, P_R) @ H).trace()) == pytest.approx(float(torch.kron(L, R).trace()), rel=1e-10)
    best = value(P_L, P_R)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        moves = (torch.randn(n, n, dtype=torch.float64, generator=generator) * 0.05 for n in (M, D))
        turned = [
            (torch.eye(len(m)) + m) @ P @ (torch.eye(len(m)) + m).T for m, P in zip(moves, (P_L, P_R), strict=True)
        ]
        assert value(turned[0], turned[1]) > best


@pytest.mark.parametrize("criterion", ["EQ", "QEQ"])
def test_a_kronecker_moment_is_whitened_exactly(criterion: str) -> None:
    """Then both points are its roots."""
    S, T = (root(torch.cov(torch.randn(n, 9, dtype=torch.float64, generator=GENERATOR))) for n in (M, D))
    gradients = (S @ units() @ T) / 1.0
    four = torch.einsum("nia,njb->iajb", gradients, gradients) / len(gradients)
    L, R = POINTS[criterion](four)
    assert near(torch.kron(L @ L, R @ R), four.reshape(M * D, M * D), 1e-10)
    assert unrest(mean_terms((upper(L), upper(R)), criterion, gradients)) <= 1e-10


@pytest.mark.parametrize("criterion", ["EQ", "QEQ"])
def test_orthogonal_coordinates_do_not_matter(criterion: str) -> None:
    U, W = (torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=GENERATOR))[0] for n in (M, D))
    L, R = POINTS[criterion](MOMENT)
    turned = upper(U @ L @ U.T), upper(W @ R @ W.T)
    assert unrest(mean_terms(turned, criterion, U @ GRADIENTS @ W.T)) <= 1e-11


# --- the probe ---------------------------------------------------------------------------------------------


def linear_instance() -> cb.Instance:
    """One square layer whose mean gradient has full rank."""
    model = nn.Sequential(nn.Linear(3, 3, bias=False)).double()
    x = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    return cb.Instance(model, x, torch.randn_like(x), "gaussian")


def fitted(instance: cb.Instance, **options: Any) -> tuple[Any, Any]:
    probe = cb.probe("psgd", **options)
    return probe, probe.fit(instance)


def test_qeq_steps_of_one_gradient_are_orthogonal() -> None:
    """P_L V P_R = sqrt(D) polar(V), from A A^T = D I; so is no plain step."""
    instance = linear_instance()
    probe, state = fitted(instance, criterion="QEQ", updates=150)
    V = instance.gradient().reshape(3, 3)
    step = probe.precondition(state, V.flatten()).reshape(3, 3)
    u, _, v = torch.linalg.svd(V)
    assert near(step, 3**0.5 * u @ v, 1e-4)
    _, early = fitted(instance, criterion="QEQ", updates=3)
    assert not near(probe.precondition(early, V.flatten()).reshape(3, 3), 3**0.5 * u @ v, 0.1), "Q carries its start"


def from_below(S: Tensor) -> Tensor:
    row = S[int(S.norm(dim=1).argmax())]
    return (S @ row).norm() / row.norm()


@pytest.mark.parametrize("criterion", ["EQ", "QEQ"])
def test_an_update_is_the_printed_step(criterion: str) -> None:
    """The fourth one, when Q is no identity any more, with dense inverses."""
    instance, rate, noise = instance_of("mlp_tanh"), 0.2, 1e-3
    probe, state = fitted(instance, criterion=criterion, updates=3, rate=rate, noise=noise, seed=2)
    found = probe.update(state, instance)
    generator = torch.Generator().manual_seed(draw_seed(2, 3) ^ _NOISE)
    draws = torch.randn(2 if criterion == "EQ" else 1, instance.size, dtype=torch.float64, generator=generator)
    more, Z = draws[0], draws[-1]
    V = instance.gradient() + noise * more
    for layer, (Q, K), (Q_new, K_new) in zip(instance.layers, state.roots, found.roots, strict=True):
        Q, K, G, X = Q[0], K[0], V[layer.slice].reshape(layer.shape)[0], Z[layer.slice].reshape(layer.shape)[0]
        if criterion == "EQ":
            A, B = Q @ G @ K.T, inv(Q).T @ X @ inv(K)
            E, total = A @ A.T - B @ B.T, A @ A.T + B @ B.T
            assert near(Q_new[0], Q - rate * (E / from_below(total)).triu() @ Q, 1e-12)
            E, total = A.T @ A - B.T @ B, A.T @ A + B.T @ B
            assert near(K_new[0], K - rate * (E / from_below(total)).triu() @ K, 1e-12)
        else:
            A = Q.T @ Q @ G @ K.T @ K
            E = A @ A.T - A.shape[1] * torch.eye(len(A))
            assert near(Q_new[0], Q - rate * Q @ E / from_below(E + 2 * A.shape[1] * torch.eye(len(A))), 1e-12)
            E = A.T @ A - len(A) * torch.eye(A.shape[1])
            assert near(K_new[0], K - rate * K @ E / from_below(E + 2 * len(A) * torch.eye(A.shape[1])), 1e-12)
    assert found.taken == 4


def test_the_norm_is_estimated_from_below() -> None:
    matrices = torch.randn(50, 6, 6, dtype=torch.float64, generator=GENERATOR)
    ratio = whitening._norm(matrices @ matrices.mT) / torch.linalg.matrix_norm(matrices @ matrices.mT, 2)
    assert 0.7 <= float(ratio.min()) and float(ratio.max()) <= 1 + 1e-12


@pytest.mark.parametrize("criterion", ["EQ", "QEQ"])
@pytest.mark.parametrize("name", ["mlp_tanh", "nasty_cnn"])
def test_the_step_is_the_inverse_root_of_the_matrix(criterion: str, name: str) -> None:
    """sqrt(N) F^^(-1/2) g, and N multiplies the matrix."""
    instance = instance_of(name)
    probe, state = fitted(instance, criterion=criterion, updates=20, statistic="bg")
    dense, gradient = probe.operator(state).to_dense(), instance.gradient()
    step = probe.precondition(state, gradient)
    expected = len(truth(name).terms) ** 0.5 * root(dense, -0.5) @ gradient
    assert near(step, expected, 1e-8)


def test_the_mean_of_drawn_gradients_is_in_the_fisher_s_unit() -> None:
    """After many drawn labels the trace of F^ has the size of F's, and without N it has not."""
    instance = instance_of("mlp_tanh")
    probe, state = fitted(instance, criterion="QEQ", updates=100, statistic="bg")
    ratio = probe.operator(state).trace() / float(truth("mlp_tanh").fisher().trace())
    assert 0.4 < ratio < 2.5


def test_seeds_draw_apart_from_labels() -> None:
    """With data labels the seed decides Z alone; QEQ draws none, but for the noise."""
    instance = instance_of("mlp_tanh")
    for criterion, differs in (("EQ", True), ("QEQ", False)):
        a, b = (fitted(instance, criterion=criterion, updates=3, seed=seed) for seed in (0, 1))
        assert (not near(a[0].operator(a[1]).to_dense(), b[0].operator(b[1]).to_dense(), 1e-3)) == differs


@pytest.mark.parametrize(("key", "value"), [("rate", 0.0), ("rate", 1.0), ("noise", -1.0), ("criterion", "KL")])
def test_bad_fields_are_refused(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=key) as caught:
        cb.probe("psgd", **{key: value})
    assert "\n" not in str(caught.value)


def test_a_large_side_is_its_diagonal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of a diagonal side are those of the diagonals of its terms."""
    monkeypatch.setattr("curvbench.parts.factors.LARGEST_SIDE", 5)
    for criterion in ("EQ", "QEQ"):
        probe, state = fitted(instance_of("mlp_tanh"), criterion=criterion, updates=4)
        first = state.roots[0]
        assert first[0].shape == first[1].shape == (1, 6)
        assert bool(torch.isfinite(probe.operator(state).to_dense()).all())
        assert float(probe.operator(state).smallest_eigenvalue()) > 0
