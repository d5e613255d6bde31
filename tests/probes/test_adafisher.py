"""AdaFisher against the diagonals of dense K-FAC factors, and its training against a loop by hand."""

from __future__ import annotations

from collections.abc import Iterator

import oracles
import pytest
import torch
from cases import instance_of, truth
from kinds import kind
from streams import relative
from torch import Tensor, nn

import curvbench as cb

CASES = ("mlp_tanh", "nasty_cnn", "tokens")


def diagonals(name: str, fisher_type: str) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Per layer the diagonals of the factors B and A of every group."""
    for groups in truth(name).factors(fisher_type).values():
        factors = [oracles.kfac_factors(part) for part in groups]
        yield [(b.diagonal(), a.diagonal()) for b, a in factors]


def mapped(values: Tensor, every: list[Tensor]) -> Tensor:
    whole = torch.cat(every)
    return (values - whole.min()) / (whole.max() - whole.min())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("fisher_type", ["type-2", "empirical"])
def test_without_the_map_it_is_the_diagonal_of_kfac(name: str, fisher_type: str) -> None:
    parts = [torch.outer(b, a).flatten() for layer in diagonals(name, fisher_type) for b, a in layer]
    found = cb.fit(cb.probe("adafisher", norm="none", fisher_type=fisher_type), instance_of(name))
    assert relative(found.to_dense(), torch.cat(parts).diag()) < 1e-12
    kfac = cb.fit(cb.probe("kfac", fisher_type=fisher_type), instance_of(name))
    assert relative(found.diagonal(), kfac.diagonal()) < 1e-12


@pytest.mark.parametrize("name", ["mlp_tanh", "tokens"])
def test_the_map_takes_every_diagonal_to_the_unit_interval(name: str) -> None:
    parts = [
        torch.outer(mapped(b, [pair[0] for pair in layer]), mapped(a, [pair[1] for pair in layer])).flatten()
        for layer in diagonals(name, "type-2")
        for b, a in layer
    ]
    found = cb.fit(cb.probe("adafisher"), instance_of(name)).diagonal()
    assert relative(found, torch.cat(parts)) < 1e-11
    assert float(found.max()) == 1 and int((found == 0).sum()) >= 6


def test_the_map_forgets_the_unit() -> None:
    """The control: gradients twice as large change the plain diagonal alone."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 3)).double(), torch.randn(6, 4).double()
    targets = model(x).detach() + torch.randn(6, 3).double()
    far = 2 * targets - model(x).detach()
    near, wide = (cb.Instance(model, x, y, "gaussian") for y in (targets, far))
    for norm, factor in (("minmax", 1.0), ("none", 4.0)):
        probe = cb.probe("adafisher", norm=norm, fisher_type="empirical")
        assert relative(cb.fit(probe, wide).diagonal(), factor * cb.fit(probe, near).diagonal()) < 1e-12


def test_no_other_diagonal_of_rank_one_is_better_than_the_singular_pair() -> None:
    """An order of errors: the exact diagonal, its leading singular pair, then this product."""
    instance, F = instance_of("mlp_tanh"), truth("mlp_tanh").fisher()
    found = cb.fit(cb.probe("adafisher", norm="none"), instance).diagonal()
    for layer in instance.layers:
        exact = F.diagonal()[layer.slice].reshape(layer.shape)[0]
        left, values, right = torch.linalg.svd(exact)
        best = (exact - values[0] * torch.outer(left[:, 0], right[0])).norm()
        assert best <= (exact - found[layer.slice].reshape(exact.shape)).norm()


def test_a_training_divides_the_average_of_gradients() -> None:
    """The bias-corrected average over F^ + damping, without a root."""
    torch.manual_seed(0)
    ours, theirs = (nn.Sequential(nn.Linear(4, 3, bias=False)).double() for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    probe = cb.probe("adafisher", damping=0.1, fisher_type="empirical")
    optimizer = cb.NaturalGradient(ours, probe, lr=0.05, momentum=0.9)
    average, W = torch.zeros(3, 4).double(), theirs[0].weight.detach()
    for t in range(1, 4):
        x, y = torch.randn(5, 4).double(), torch.randint(3, (5,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(ours(x), y).backward()
        optimizer.step()
        g = torch.softmax(x @ W.T, 1) - nn.functional.one_hot(y, 3)
        average = 0.9 * average + 0.1 * g.T @ x / 5
        b, a = g.square().mean(0), x.square().mean(0)
        F = torch.outer((b - b.min()) / (b.max() - b.min()), (a - a.min()) / (a.max() - a.min()))
        W = W - 0.05 * average / (1 - 0.9**t) / (F + 0.1)
    assert relative(ours[0].weight.detach(), W) < 1e-12


def test_a_norm_has_its_exact_diagonal() -> None:
    instance = kind("normed")[3]
    found, exact = (
        cb.fit(cb.probe(name, **options), instance).diagonal()
        for name, options in (("adafisher", {"norm": "none"}), ("diag", {}))
    )
    for layer in (layer for layer in instance.layers if layer.kind == "vector"):
        assert relative(found[layer.slice], exact[layer.slice]) < 1e-12


def test_rounding_is_not_mapped() -> None:
    """Both gradients of two classes have one square, so that nothing but rounding tells their means apart."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2)).double()
    instance = cb.Instance(model, torch.randn(7, 3).double(), torch.arange(7) % 2)
    assert not cb.fit(cb.probe("adafisher"), instance).diagonal().any()
    assert cb.fit(cb.probe("adafisher", norm="none"), instance).diagonal().all()
