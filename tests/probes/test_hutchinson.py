"""Hutchinson's diagonal and AdaHessian against dense matrices, over all signs of a small network."""

from __future__ import annotations

from itertools import product as pairs_of
from typing import Any

import pytest
import torch
from cases import CASES, instance_of, truth
from streams import relative
from torch import Tensor, nn

import curvbench as cb
from curvbench.parts import hutchinson
from curvbench.parts.hutchinson import diagonal_draw, no_product, signs


def tiny() -> cb.Instance:
    """Nine parameters, so that there are 512 vectors of signs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3)).double()
    return cb.Instance(model, torch.randn(5, 2).double(), torch.tensor([0, 1, 2, 0, 1]))


def hessian_of(instance: cb.Instance) -> Tensor:
    return torch.stack([instance.hessian_product(unit) for unit in torch.eye(instance.size).double()])


def all_signs(size: int) -> Tensor:
    return torch.tensor(list(pairs_of((-1.0, 1.0), repeat=size)), dtype=torch.float64)


def test_draws_are_signs_of_their_own() -> None:
    instance = tiny()
    draws = torch.stack([signs(instance, 0, number) for number in range(64)])
    assert bool((draws.abs() == 1).all()) and len(draws.unique(dim=0)) > 50
    assert torch.equal(draws[3], signs(instance, 0, 3)) and not torch.equal(draws[0], signs(instance, 1, 0))


@pytest.mark.parametrize("name", ["mlp_tanh", "nasty_cnn", "tokens"])
def test_the_estimate_is_the_clamped_mean_of_the_draws(name: str) -> None:
    instance, F = instance_of(name), truth(name).fisher()
    drawn = [signs(instance, 3, number) for number in range(4)]
    expected = sum(z * (F @ z) for z in drawn) / 4
    probe = cb.probe("hutchinson", draws=4, seed=3)
    state = probe.fit(instance)
    assert relative(state, expected) < 1e-11
    assert relative(probe.operator(state).diagonal(), expected.clamp_min(0)) < 1e-11
    assert bool((expected < 0).any()), "a test of the clamp"


def test_mean_and_variance_over_all_signs() -> None:
    """Exactly: the diagonal, and the rest of each row; clamping makes the mean too large."""
    F = cb.exact_fisher(tiny()).to_dense()
    Z = all_signs(len(F))
    draws = Z * (Z @ F)
    assert relative(draws.mean(0), F.diagonal()) < 1e-13
    assert relative(draws.var(0, correction=0), F.square().sum(1) - F.diagonal().square()) < 1e-12
    assert bool((draws.clamp_min(0).mean(0) > 1.01 * F.diagonal()).all())
    (probe_draw,) = (diagonal_draw(tiny(), "fisher", 0, number) for number in range(1))
    assert float((draws - probe_draw).norm(dim=1).min()) < 1e-12, "the draw of the code is one of them"


@pytest.mark.parametrize("curvature", ["hessian", "fisher"])
def test_adahessian_is_its_recursion(curvature: str) -> None:
    name, (b1, b2) = "mlp_tanh", (0.8, 0.9)
    instance = instance_of(name)
    matrix = hessian_of(instance) if curvature == "hessian" else truth(name).fisher()
    first, second = torch.zeros(instance.size).double(), torch.zeros(instance.size).double()
    for t in range(3):
        z = signs(instance, 7, t)
        first = b1 * first + (1 - b1) * truth(name).gradient
        second = b2 * second + (1 - b2) * (z * (matrix @ z)).square()
    options: dict[str, Any] = {"beta1": b1, "beta2": b2, "seed": 7, "updates": 3, "curvature": curvature}
    probe = cb.probe("adahessian", **options)
    state = probe.fit(instance)
    root = (second / (1 - b2**3)).sqrt()
    assert relative(probe.operator(state).diagonal(), root) < 1e-10
    step = first / (1 - b1**3) / (root + 1e-4)
    assert relative(probe.precondition(state, instance.gradient()), step) < 1e-9


def test_the_squares_estimate_lengths_of_rows_and_not_the_diagonal() -> None:
    """Exactly over all signs; the negative control is the diagonal."""
    H = hessian_of(tiny())
    Z = all_signs(len(H))
    root = (Z * (Z @ H)).square().mean(0).sqrt()
    assert relative(root, H.norm(dim=1)) < 1e-13
    assert float((root / H.diagonal().abs()).median()) > 1.2
    probe = cb.probe("adahessian", updates=60, beta2=1 - 1e-4)
    assert relative(cb.fit(probe, tiny()).diagonal(), root) < 0.3


def test_kernels_share_their_mean() -> None:
    """Of the absolute values, and a bias has its own."""
    case = CASES["nasty_cnn"]
    model, inputs, targets = case.build()
    instance = cb.Instance(model, inputs, targets, case.loss, parameters="weights")
    probe = cb.probe("adahessian", updates=1, curvature="fisher")
    found = instance.unpack(cb.fit(probe, instance).diagonal())
    plain = instance.unpack(diagonal_draw(instance, "fisher", 0, 0).abs())
    for key, value in plain.items():
        if value.ndim == 4:
            value = value.mean((2, 3), keepdim=True).expand_as(value)
        assert relative(found[key], value) < 1e-9, key


def test_a_model_without_the_products_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> Tensor:
        raise RuntimeError("no derivative of this\nand more")

    monkeypatch.setattr(hutchinson, "product", refused)
    for curvature, what in (("fisher", "has no forward-mode derivative"), ("hessian", "cannot be differentiated")):
        reason = no_product(tiny(), curvature)  # type: ignore[arg-type]
        assert reason is not None and what in reason and "no derivative of this" in reason and "\n" not in reason
    assert cb.probe("hutchinson").unsupported(tiny()) and cb.probe("adahessian").unsupported(tiny())
