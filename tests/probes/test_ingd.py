"""INGD against its printed recursion, and its fixed points against dense equations."""

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

DAMPING = 0.1


def eye(order: int) -> Tensor:
    return torch.eye(order).double()


def regular() -> cb.Instance:
    """One layer whose K-FAC factors are regular."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4)).double()
    return cb.Instance(model, torch.randn(12, 3).double(), torch.randn(12, 4).double(), "gaussian")


def factors() -> tuple[Tensor, Tensor]:
    """K-FAC's factors of ``regular`` with the labels of the data, by hand."""
    instance = regular()
    a = torch.cat([instance.inputs, torch.ones(12, 1).double()], 1)
    g = instance.outputs() - instance.targets
    return g.T @ g / 12, a.T @ a / 12


def followed(updates: int, **options: Any) -> tuple[Tensor, Tensor]:
    """The represented factors (C C^T)^-1 and (K K^T)^-1."""
    probe = cb.probe("ingd", updates=updates, damping=DAMPING, fisher_type="empirical", **options)
    (block,) = cb.fit(probe, regular()).blocks  # type: ignore[attr-defined]
    return block.left[0], block.right[0]


@pytest.mark.parametrize("kfac_like", [False, True])
@pytest.mark.parametrize("is_diagonal", [False, True])
def test_a_few_updates_are_the_printed_recursion(kfac_like: bool, is_diagonal: bool) -> None:
    B, A = factors()
    structure = (lambda m: m.diagonal().diag()) if is_diagonal else (lambda m: m)
    C, K, m_C, m_K = eye(4), eye(4), torch.zeros(4, 4).double(), torch.zeros(4, 4).double()
    for _ in range(3):
        H_C, H_K = C.T @ B @ C, K.T @ A @ K
        c, k = (1.0, 1.0) if kfac_like else (H_C.trace() / 4, H_K.trace() / 4)
        cc, kk = (1.0, 1.0) if kfac_like else ((C.T @ C).trace() / 4, (K.T @ K).trace() / 4)
        old = 0.0 if kfac_like else 0.7
        m_K, m_C = (
            (structure(c * H_K + DAMPING * cc * K.T @ K) - eye(4)) / 2 + old * m_K,
            (structure(k * H_C + DAMPING * kk * C.T @ C) - eye(4)) / 2 + old * m_C,
        )
        K, C = K - 0.05 * K @ m_K, C - 0.05 * C @ m_C
    given = "diagonal" if is_diagonal else "dense"
    options = {"inputs": given, "outputs": given, "kfac_like": kfac_like}
    found = followed(3, rate=0.05, factor_momentum=0.7, normalized=False, **options)
    for part, root in zip(found, (C, K), strict=True):
        assert relative(part.diag() if is_diagonal else part, torch.linalg.inv(root @ root.T)) < 1e-12


def test_it_ends_at_the_product_nearest_to_the_damped_kfac_in_divergence() -> None:
    """Both equations of the least KL divergence hold, and the sum itself is another matrix."""
    (B_0, A_0), (B, A) = factors(), followed(250)
    in_A, in_B = torch.linalg.inv(A), torch.linalg.inv(B)
    left = (B_0 * (A_0 @ in_A).trace() + DAMPING * in_A.trace() * eye(4)) / 4
    right = (A_0 * (B_0 @ in_B).trace() + DAMPING * in_B.trace() * eye(4)) / 4
    assert relative(B, left) < 1e-10 and relative(A, right) < 1e-10
    summed = torch.kron(B_0, A_0) + DAMPING * eye(16)
    assert relative(torch.kron(B, A), summed) > 1e-2


def test_kfac_like_ends_at_factored_damping_by_the_damping_itself() -> None:
    (B_0, A_0), (B, A) = factors(), followed(250, kfac_like=True)
    assert relative(B, B_0 + DAMPING * eye(4)) < 1e-10 and relative(A, A_0 + DAMPING * eye(4)) < 1e-10
    assert relative(A, A_0 + DAMPING**0.5 * eye(4)) > 1e-2


def test_without_damping_it_ends_at_kfac_and_a_diagonal_at_that_of_its_factors() -> None:
    for options in ({}, {"inputs": "diagonal", "outputs": "diagonal"}):
        probe = cb.probe("ingd", damping=0.0, updates=250, fisher_type="empirical", **options)
        B, A = ((f.diagonal().diag() if options else f) for f in factors())
        assert relative(cb.fit(probe, regular()).to_dense(), torch.kron(B, A)) < 1e-9


def test_large_factors_do_not_diverge() -> None:
    """Where the plain recursion does."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 3)).double()
    instance = cb.Instance(model, 30 + torch.randn(9, 8).double(), torch.randn(9, 3).double(), "gaussian")
    found, longer = (
        cb.fit(cb.probe("ingd", damping=1.0, updates=updates), instance).to_dense() for updates in (150, 200)
    )
    assert relative(found, longer) < 1e-4
    plain = cb.probe("ingd", damping=1.0, updates=5, normalized=False).fit(instance)
    assert not bool((plain[0].inputs.matrix.abs() < 1e6).all())


@pytest.mark.parametrize("name", ["mlp_tanh", "nasty_cnn"])
def test_the_step_inverts_the_represented_matrix(name: str) -> None:
    instance, probe = instance_of(name), cb.probe("ingd", damping=DAMPING, updates=10)
    state = probe.fit(instance)
    dense = probe.operator(state).to_dense()
    assert relative(dense @ probe.precondition(state, truth(name).gradient), truth(name).gradient) < 1e-10
    assert float(torch.linalg.eigvalsh(dense)[0]) > 0


def test_a_batch_size_draws_every_update() -> None:
    instance = instance_of("mlp_tanh")
    probe = cb.probe("ingd", updates=3, batch_size=3)
    state = None
    for count in range(3):
        state = probe.update(state, instance.draw(3, seed=count))
    assert torch.equal(probe.operator(state).to_dense(), cb.fit(probe, instance).to_dense())


def test_a_fit_makes_the_statistics_of_one_batch_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And an update outside of a fit always makes its own, so that its cost is whole."""
    made: list[cb.Instance] = []
    kind_of_probe = type(cb.probe("ingd"))
    products = kind_of_probe._products
    monkeypatch.setattr(kind_of_probe, "_products", lambda self, batch: made.append(batch) or products(self, batch))
    instance = regular()
    for options, count in (({}, 1), ({"batch_size": 4}, 5)):
        probe = cb.probe("ingd", updates=5, **options)
        state = probe.fit(instance)
        assert len(made) == count
        probe.update(probe.update(state, instance), instance)
        assert len(made) == count + 2
        made.clear()


def test_a_norm_has_its_damped_diagonal_and_a_lookup_a_diagonal_factor() -> None:
    normed, tied = kind("normed")[3], kind("embedded")[3]
    found = cb.fit(cb.probe("ingd", damping=DAMPING, updates=2), normed).to_dense()
    for layer in (layer for layer in normed.layers if layer.kind == "vector"):
        block = cb.exact_fisher(normed).to_dense()[layer.slice, layer.slice]
        assert relative(found[layer.slice, layer.slice], (block.diagonal() + DAMPING).diag()) < 1e-12
    blocks = cb.fit(cb.probe("ingd", updates=2), tied).blocks  # type: ignore[attr-defined]
    (lookup,) = (b for b, layer in zip(blocks, tied.layers, strict=True) if layer.kind == "lookup")
    assert lookup.right.ndim == 2
    assert oracles.relative(lookup.to_dense(), lookup.to_dense().T) < 1e-12
