"""Every network of the problem has the layer that it is named for, and its exact Fisher is that of dense Jacobians."""

from __future__ import annotations

from typing import get_args

import oracles
import pytest
import torch

import curvbench as cb
from curvbench import training
from curvbench.problems.layers import NETWORKS, QUARTERS, Layers, Network

SAMPLES = 3
OUTSIDE = {"batchnorm": "2.weight", "layernorm": "2.weight", "embedding": "1.weight"}


def instance(network: str) -> cb.Instance:
    problem = Layers(network=network, samples=SAMPLES)  # type: ignore[arg-type]
    model = training.snapshot(problem, 0, None, dtype=torch.float64)
    inputs, targets = training.batch(problem, problem.data(None), 0, dtype=torch.float64)
    return cb.Instance(model, inputs, targets)


def test_every_name_has_a_network() -> None:
    assert set(NETWORKS) == set(get_args(Network))
    with pytest.raises(ValueError, match=r"network must be one of linear, .*, got 'lstm'$"):
        Layers(network="lstm")  # type: ignore[arg-type]


@pytest.mark.parametrize("network", NETWORKS)
def test_the_exact_fisher_is_that_of_dense_jacobians(network: str) -> None:
    found = instance(network)
    terms = oracles.loss_terms(found.model, found.inputs, found.targets, "cross_entropy")
    expected = oracles.type2_fisher(terms, "cross_entropy")
    error = (cb.exact_fisher(found).to_dense() - expected).norm()
    assert 0 < expected.norm() and error <= 1e-12 * expected.norm()


@pytest.mark.parametrize("network", [name for name in NETWORKS if name.startswith("conv")])
def test_convolutions_are_what_their_names_say(network: str) -> None:
    layer = instance(network).layers[0]
    kind, _, option = network.partition("-")
    assert layer.kind == kind
    assert (max(layer.stride) > 1, max(layer.dilation) > 1) == (option == "stride", option == "dilation")
    assert layer.groups == {"groups": 2, "depthwise": {"conv1d": 8, "conv2d": 4}[kind]}.get(option, 1)


@pytest.mark.parametrize("network", NETWORKS)
def test_what_stands_outside(network: str) -> None:
    found = instance(network)
    assert (OUTSIDE[network] in found.uncovered) if network in OUTSIDE else found.uncovered == []


def test_kinds_beyond_convolutions() -> None:
    assert len(instance("attention").layers) == 5
    assert instance("sequence").terms == QUARTERS * SAMPLES
    assert instance("linear").terms == SAMPLES
