"""Every network of the problem has the layer that it is named for."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

import curvbench as cb
from curvbench import training
from curvbench.problems.layers import NETWORKS, QUARTERS, Layers, Network

SAMPLES = 3


def instance(network: str) -> cb.Instance:
    problem = Layers(network=network, samples=SAMPLES)  # type: ignore[arg-type]
    model = training.snapshot(problem, 0, None, dtype=torch.float64)
    inputs, targets = training.batch(problem, problem.data(None), 0, dtype=torch.float64)
    return cb.Instance(model, inputs, targets)


def test_every_name_has_a_network() -> None:
    assert set(NETWORKS) == set(get_args(Network))
    with pytest.raises(ValueError, match=r"network must be one of linear, .*, got 'perceptron'$"):
        Layers(network="perceptron")  # type: ignore[arg-type]


OF_PATCHES = ("conv3d", "conv1d-transposed", "conv2d-transposed")  # their blocks take patches as inputs


@pytest.mark.parametrize("network", OF_PATCHES)
def test_convolutions_of_other_kinds_are_matrices(network: str) -> None:
    assert instance(network).layers[0].kind == "matrix"


@pytest.mark.parametrize("network", [name for name in NETWORKS if name.startswith("conv") and name not in OF_PATCHES])
def test_convolutions_are_what_their_names_say(network: str) -> None:
    layer = instance(network).layers[0]
    kind, _, option = network.partition("-")
    assert layer.kind == kind
    assert (max(layer.stride) > 1, max(layer.dilation) > 1) == (option == "stride", option == "dilation")
    assert layer.groups == {"groups": 2, "depthwise": {"conv1d": 8, "conv2d": 4}[kind]}.get(option, 1)


@pytest.mark.parametrize(
    ("network", "name", "kind", "shape"),
    [
        ("batchnorm", "2", "vector", (1, 4, 2)),
        ("layernorm", "2", "vector", (1, 8, 2)),
        ("embedding", "1", "lookup", (1, 2, 4)),
    ],
)
def test_kinds_beyond_products(network: str, name: str, kind: str, shape: tuple[int, int, int]) -> None:
    (layer,) = [layer for layer in instance(network).layers if layer.name == name]
    assert (layer.kind, layer.shape) == (kind, shape)


def test_kinds_beyond_convolutions() -> None:
    assert len(instance("attention").layers) == 5
    assert instance("sequence").terms == QUARTERS * SAMPLES
    assert instance("linear").terms == SAMPLES
