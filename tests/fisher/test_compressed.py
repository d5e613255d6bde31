"""The exact Fisher from as many columns per term as the last layer has inputs, against dense matrices."""

from __future__ import annotations

from typing import Any

import oracles
import pytest
import torch
from judging import by_parameters, near
from likelihoods import drawn
from torch import Tensor, nn
from wide import CASES, C, D, Tied, instance_of, labels

import curvbench as cb
from curvbench.fisher import compressed_fisher
from curvbench.operators import LowRank


def dense_of(name: str) -> Tensor:
    """The dense Fisher over the entries of all parameters, from autograd's Jacobians."""
    make, x, y, loss = CASES[name]
    torch.manual_seed(0)
    return oracles.type2_fisher(oracles.batch_terms(make().double(), x, y, loss), loss)


@pytest.mark.parametrize("name", CASES)
def test_every_number_is_that_of_the_dense_matrix(name: str) -> None:
    instance, expected = instance_of(name), dense_of(name)
    fisher = compressed_fisher(instance)
    found = fisher.to_dense()
    assert near(by_parameters(instance, found), expected, 1e-12)
    assert fisher.others.grid[0] == instance.terms_per_sample * D < instance.columns_per_sample("type-2")
    assert near(fisher.diagonal(), found.diagonal(), 1e-12)
    assert fisher.trace() == pytest.approx(float(expected.trace()), rel=1e-12)
    assert fisher.frobenius_norm() == pytest.approx(float(expected.norm()), rel=1e-12)
    assert near(fisher.eigenvalues(3), torch.linalg.eigvalsh(expected).flip(0)[:3], 1e-10)
    for la in instance.layers:
        block, layer = found[la.slice, la.slice], fisher.layer(la.name)
        assert near(layer.to_dense(), block, 1e-12)
        assert layer.trace() == pytest.approx(float(block.trace()), rel=1e-12)
        assert layer.frobenius_norm() == pytest.approx(float(block.norm()), rel=1e-12)
        assert near(layer.eigenvalues(2), torch.linalg.eigvalsh(block).flip(0)[:2], 1e-10)


@pytest.mark.parametrize("name", ["tokens", "nearly certain", "squares"])
def test_a_damped_solve_is_that_of_the_dense_matrix(name: str) -> None:
    fisher = compressed_fisher(instance_of(name))
    V, eye = drawn(fisher.size, 2), torch.eye(fisher.size, dtype=torch.float64)
    for damping in (1.0, 1e-3):
        assert near(fisher.solve(V, damping), torch.linalg.solve(fisher.to_dense() + damping * eye, V), 1e-8)
    last = fisher.layer("last")
    own = torch.eye(last.size, dtype=torch.float64)
    v = V[: last.size, 0]
    assert near(last.solve(v, 0.1), torch.linalg.solve(last.to_dense() + 0.1 * own, v), 1e-10)
    with pytest.raises(ValueError, match="a damping above zero"):
        fisher.solve(V, 0.0)


@pytest.mark.parametrize("name", ["tokens", "nearly certain"])
def test_float32_loses_what_storing_loses(name: str) -> None:
    exact, fisher = compressed_fisher(instance_of(name)), compressed_fisher(instance_of(name, torch.float32))
    rounded = cb.exact_fisher(instance_of(name, torch.float32))
    assert fisher.frobenius_norm() == pytest.approx(rounded.frobenius_norm(), rel=1e-6)
    assert fisher.trace() == pytest.approx(rounded.trace(), rel=1e-6)
    assert fisher.dtype == torch.float32 and exact.dtype == torch.float64


@pytest.mark.parametrize("name", ["tokens", "nearly certain", "squares"])
def test_vectors_of_either_precision_are_multiplied(name: str) -> None:
    fisher, expected = compressed_fisher(instance_of(name, torch.float32)), compressed_fisher(instance_of(name))
    V = drawn(fisher.size, 2)
    for dtype in (torch.float32, torch.float64):
        product = fisher.matmat(V.to(dtype))
        assert product.dtype == dtype and near(product.double(), expected.matmat(V), 1e-5)
        last = fisher.layer("last")
        assert near(last.matmat(V[: last.size].to(dtype)).double(), expected.layer("last").matmat(V[: last.size]), 1e-5)


@pytest.mark.parametrize("probe", ["identity", "diag", "kfac", "ekfac", "tkfac", "unit", "kpsvd", "eigen", "adafisher"])
def test_inner_products_are_those_with_all_columns(probe: str) -> None:
    instance = instance_of("tokens")
    operator = cb.fit(cb.probe(probe), instance)
    expected = cb.exact_fisher(instance).inner(operator)
    assert compressed_fisher(instance).inner(operator) == pytest.approx(expected, rel=1e-10)


def test_an_inner_product_without_a_closed_form_is_refused() -> None:
    instance = instance_of("tokens")
    with pytest.raises(ValueError, match="no inner product in closed form"):
        compressed_fisher(instance).inner(cb.exact_fisher(instance))
    with pytest.raises(ValueError, match="the operator 3"):
        compressed_fisher(instance).inner(LowRank(torch.ones(3, 1), torch.ones(1), 0.0))


@pytest.mark.parametrize("bias", [False, True])
def test_a_tied_last_layer_is_left_out_and_the_others_are_exact(bias: bool) -> None:
    instance = cb.Instance(Tied(bias).double(), labels(3, 4).clamp_min(0), labels(3, 4))
    fisher, exact = compressed_fisher(instance), cb.exact_fisher(instance)
    assert [la.name for la in fisher.layers] == ["middle"]
    assert near(fisher.to_dense(), exact.layer("middle").to_dense(), 1e-12)
    assert fisher.frobenius_norm() == pytest.approx(exact.layer("middle").frobenius_norm(), rel=1e-12)
    assert "'embedding.weight'" in repr(fisher) and "fisher_type='mc'" in repr(fisher)
    assert ("'bias'" in repr(fisher)) == bias
    with pytest.raises(ValueError, match="no covered layer 'embedding'"):
        fisher.layer("embedding")


REFUSALS: dict[str, tuple[nn.Module, Any]] = {
    "gives the outputs themselves": (nn.Sequential(nn.Linear(3, 2), nn.Linear(2, C), nn.Hardtanh()), "cross_entropy"),
    "nothing to compress: use exact_fisher": (nn.Sequential(nn.Linear(3, C), nn.Linear(C, C)), "cross_entropy"),
    "is the only one": (nn.Linear(3, C), "cross_entropy"),
    "closed form, which .* has not": (
        nn.Sequential(nn.Linear(3, 2), nn.Linear(2, C)),
        lambda f, y: nn.functional.cross_entropy(f, y),
    ),
}


@pytest.mark.parametrize("reason", REFUSALS)
def test_what_cannot_be_compressed_is_refused(reason: str) -> None:
    model, loss = REFUSALS[reason]
    with pytest.raises(ValueError, match=reason):
        compressed_fisher(cb.Instance(model.double(), drawn(4, 3), torch.arange(4), loss))


def test_what_does_not_fit_is_refused_with_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    instance = instance_of("tokens")
    monkeypatch.setattr("curvbench.fisher.budget.available_bytes", lambda device: 1000)
    monkeypatch.setattr(cb.Instance, "tape", None)  # before any pass
    with pytest.raises(MemoryError, match=r"8 compressed columns need .*; not even one sample would fit, or a Monte"):
        compressed_fisher(instance)
    with pytest.raises(
        MemoryError, match=r"20 columns need .*, or curvbench\.fisher\.compressed_fisher with 8 columns"
    ):
        cb.exact_fisher(instance)
