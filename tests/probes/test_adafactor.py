"""Adafactor against means of the dense Fisher's diagonal, and against torch.optim.Adafactor on the same matrices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import instance_of, truth
from kinds import kind
from streams import relative
from torch import Tensor, nn

import curvbench as cb
from curvbench.fisher.stochastic import batch_gradient

CASES = ("mlp_tanh", "nasty_cnn")


def group_diagonals(name: str, diagonal: Tensor) -> Iterator[Tensor]:
    for layer in instance_of(name).layers:
        yield from diagonal[layer.slice].reshape(layer.shape)


def product_of_means(delta: Tensor) -> Tensor:
    return torch.outer(delta.sum(1), delta.sum(0)) / delta.sum()


def diagonal_of(name: str, **options: Any) -> Tensor:
    return cb.fit(cb.probe("adafactor", **options), instance_of(name)).diagonal()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("fisher_type", ["type-2", "empirical"])
def test_columns_give_the_product_of_the_means_of_the_diagonal(name: str, fisher_type: str) -> None:
    judge = truth(name).fisher(fisher_type).diagonal()
    expected = [product_of_means(delta).flatten() for delta in group_diagonals(name, judge)]
    found = diagonal_of(name, fisher_type=fisher_type)
    assert relative(found, torch.cat(expected)) < 1e-13
    for delta, made in zip(group_diagonals(name, judge), group_diagonals(name, found), strict=True):
        for side in (0, 1):
            assert relative(made.sum(side), delta.sum(side)) < 1e-13


def divergence(delta: Tensor, other: Tensor) -> float:
    """The I-divergence; entries of zero add what the other has."""
    return float((torch.xlogy(delta, delta / other) - delta + other).sum())


def test_it_has_the_least_divergence_of_rank_one_and_not_the_least_distance() -> None:
    delta = next(group_diagonals("mlp_tanh", truth("mlp_tanh").fisher().diagonal()))
    found = next(group_diagonals("mlp_tanh", diagonal_of("mlp_tanh")))
    left, values, right = torch.linalg.svd(delta)
    nearest = values[0] * torch.outer(left[:, 0], right[0])
    assert (nearest - delta).norm() < 0.999 * (found - delta).norm()
    assert divergence(delta, nearest) > divergence(delta, found)
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        factors = [torch.randn(n, generator=draw).double().mul(0.01).exp() for n in delta.shape]
        assert divergence(delta, found * torch.outer(*factors)) > divergence(delta, found)


@pytest.mark.parametrize("statistic", ["bg", "bg_data"])
def test_gradients_give_the_average_with_falling_weights(statistic: str) -> None:
    name, average, terms = "nasty_cnn", torch.zeros(()), len(truth("nasty_cnn").terms)
    for t in range(3):
        g = batch_gradient(instance_of(name), statistic, 0, t) / terms**0.5  # type: ignore[arg-type]
        weight = (t + 1) ** -0.8
        average = (1 - weight) * average + weight * g.square()
    expected = torch.cat([product_of_means(terms * v).flatten() for v in group_diagonals(name, average)])
    found = diagonal_of(name, source="gradients", statistic=statistic, updates=3)
    assert relative(found, expected) < 1e-12


def matrix_net(scale: float) -> nn.Sequential:
    """Layers without biases, so that torch has the same matrices; the scale sets lengths of gradients."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4, bias=False), nn.Tanh(), nn.Linear(4, 3, bias=False)).double()
    with torch.no_grad():
        net[2].weight.mul_(scale)
    return net


def trained(net: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    for _ in range(6):
        x, y = torch.randn(8, 5, generator=draw).double(), torch.randint(3, (8,), generator=draw)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in net.parameters()])


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_a_training_is_that_of_torch(scale: float) -> None:
    """The bound of the learning rate by 1/sqrt(t) is not reached."""
    ours, theirs, start = (matrix_net(scale) for _ in range(3))
    probe = cb.probe("adafactor", source="gradients", clip=1.1)
    found = trained(ours, cb.NaturalGradient(ours, probe, lr=0.05))
    expected = trained(theirs, torch.optim.Adafactor(theirs.parameters(), lr=0.05, d=1.1))
    before = torch.cat([p.detach().flatten() for p in start.parameters()])
    assert relative(found - before, expected - before) < 1e-11


def test_parts_of_a_batch_make_the_step_of_the_whole() -> None:
    """The optimizer's step needs the summed gradient alone; with drawn labels every part has its own."""
    found = []
    for sizes in ([8], [3, 5]):
        net, draw = matrix_net(1.0), torch.Generator().manual_seed(1)
        optimizer = cb.NaturalGradient(net, cb.probe("adafactor", source="gradients"), lr=0.05)
        for _ in range(3):
            x, y = torch.randn(8, 5, generator=draw).double(), torch.randint(3, (8,), generator=draw)
            optimizer.zero_grad()
            for part, labels in zip(x.split(sizes), y.split(sizes), strict=True):
                (len(labels) / 8 * nn.functional.cross_entropy(net(part), labels)).backward()
            optimizer.step()
        found.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert relative(*found) < 1e-12
    assert cb.probe("adafactor", source="gradients", statistic="bg").combines_by is None
    assert cb.probe("ngplus", source="gradients").combines_by is None


@pytest.mark.parametrize("change", [{"clip": 1e3}, {"least_scale": 1.0}, {"decay_power": 0.5}], ids=str)
def test_every_part_of_the_step_counts(change: dict[str, float]) -> None:
    nets = [matrix_net(1.0) for _ in range(2)]
    probes = [cb.probe("adafactor", source="gradients", **options) for options in ({}, change)]
    found = [trained(net, cb.NaturalGradient(net, p, lr=0.05)) for net, p in zip(nets, probes, strict=True)]
    assert relative(*found) > 1e-3


def test_a_norm_has_its_whole_diagonal() -> None:
    instance = kind("normed")[3]
    found, exact = (cb.fit(cb.probe(name), instance).diagonal() for name in ("adafactor", "diag"))
    for layer in instance.layers:
        assert torch.allclose(found[layer.slice], exact[layer.slice]) == (layer.kind == "vector"), layer.name


def test_the_step_of_the_optimizer_is_no_matrix() -> None:
    probe, instance = cb.probe("adafactor", source="gradients"), instance_of("mlp_tanh")
    state = probe.fit(instance)
    assert probe.damped(state) is None and probe.damping_unit(instance.terms) is None
    step, longer = (probe.precondition(state, factor * instance.gradient()) for factor in (1.0, 3.0))
    assert relative(longer, step) < 1e-12, "longer than clip, the step has the length of the parameters"
