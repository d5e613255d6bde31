"""Files of shapes: the shipped ones have the published sizes, every fault is one line, and what is written is read."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from networks import NETWORKS

import curvbench as cb
from curvbench.meters.cost import Stepper, flop_rows
from curvbench.prediction import files

PUBLISHED = {
    **{"resnet50": 25_557_032, "vit-b16": 86_567_656, "gpt2": 124_439_808, "llama3-8b": 8_030_261_248},
    **{"resnet18-cifar100": 11_220_132, "resnet50-cifar100": 23_705_252, "transformer-big": 289_951_744},
    **{"t5-small": 60_506_624, "t5-small-lora": 294_912, "transformer-multi30k": 59_463_680},
    **{"resnet18-cifar10": 11_173_962, "resnet32-cifar10": 464_154},
}
FORWARD = {"resnet50": 4.09e9, "vit-b16": 17.56e9}
"""Multiply-adds of a forward pass per image, as torchvision's tables of pretrained weights give them (GFLOPS)."""


def test_shipped_networks_have_the_published_numbers_of_parameters() -> None:
    assert {name: cb.shapes(name).parameters for name in files.shipped()} == PUBLISHED


@pytest.mark.parametrize("name", FORWARD)
def test_shipped_networks_have_the_published_multiply_adds(name: str) -> None:
    shapes = cb.shapes(name)
    attention = sum(la.sums[0] * la.repeat for la in shapes.layers if la.kind == "attention")
    products = sum(la.product * la.repeat for la in shapes.layers)
    assert (products + attention) / 2 == pytest.approx(FORWARD[name], rel=0.01)


@pytest.mark.parametrize("name", PUBLISHED)
def test_shipped_files_name_their_source(name: str) -> None:
    source = cb.shapes(name).source
    assert f"{PUBLISHED[name]:,} parameters" in source and any(digit.isdigit() for digit in source)


def test_a_block_of_resnet_has_the_shapes_of_torch() -> None:
    """The bottleneck of ResNet-50's third stage, written by hand: in, out, kernel and positions."""
    layers = {la.name: la for la in cb.shapes("resnet50").layers}
    found = [
        (la.inputs, la.outputs, la.kernel, la.stride, la.positions)
        for la in (layers[f"layer3.0.{part}"] for part in ("conv1", "conv2", "conv3", "downsample.0"))
    ]
    expected = [
        (512, 256, (1, 1), 1, 784),
        (256, 256, (3, 3), 2, 196),
        (256, 1024, (1, 1), 1, 196),
        (512, 1024, (1, 1), 2, 196),
    ]
    assert found == expected


@pytest.mark.parametrize("network", NETWORKS)
def test_what_is_written_is_read(network: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shapes = cb.shapes(NETWORKS[network]().instance())
    file = tmp_path / "mine.toml"
    file.write_text(files.dumped(shapes))
    assert cb.shapes(file) == dataclasses.replace(shapes, name="mine")
    assert cb.cost(str(file), "kfac") == cb.cost(shapes, "kfac")


# By hand.

CNN = """
samples = 5
[[layer]]
name = "a"
kind = "conv"
in = 3
out = 12
kernel = 3
positions = 64
[[layer]]
name = "norm"
kind = "norm"
out = 12
positions = 64
[[layer]]
name = "b"
kind = "conv"
in = 12
out = 16
kernel = [3, 3]
stride = 2
groups = 2
positions = 16
bias = false
[[layer]]
name = "c"
kind = "linear"
in = 16
out = 6
"""
TRANSFORMER = """
samples = 4
[[layer]]
name = "words"
kind = "embedding"
in = 30
out = 16
positions = 8
[[layer]]
name = "positions"
kind = "vector"
in = 16
out = 8
[[layer]]
name = "norms"
kind = "norm"
out = 16
positions = 8
repeat = 3
[[layer]]
name = "qkv"
kind = "linear"
in = 16
out = 48
positions = 8
[[layer]]
name = "attention"
kind = "attention"
in = 16
positions = 8
[[layer]]
name = "out"
kind = "linear"
in = 16
out = 16
positions = 8
[[layer]]
name = "up"
kind = "linear"
in = 16
out = 32
positions = 8
[[layer]]
name = "down"
kind = "linear"
in = 32
out = 16
positions = 8
[[layer]]
name = "head"
kind = "linear"
in = 16
out = 6
"""


@pytest.mark.parametrize(("network", "text"), [("cnn", CNN), ("transformer", TRANSFORMER)])
def test_shapes_by_hand_predict_a_gradient_within_a_tenth(network: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / "by-hand.toml"
    file.write_text(text)
    torch.manual_seed(0)
    instance = NETWORKS[network]().instance()
    assert cb.shapes(file).parameters == instance.size
    rows = flop_rows(Stepper(cb.probe("identity"), instance))
    counted = next(row.value for row in rows if (row.metric, row.scope) == ("flops.counted", "step"))
    assert cb.cost(file, "identity").gradient == pytest.approx(counted, rel=0.1)
    traced = cb.cost(cb.shapes(instance), "kfac", dtype="float64")
    by_hand = cb.cost(file, "kfac", dtype="float64")
    assert (by_hand.state, by_hand.invert) == (traced.state, traced.invert)
    assert by_hand.statistics == pytest.approx(traced.statistics, rel=0.1)


# Faults.

LINEAR = '[[layer]]\nname = "a"\nkind = "linear"\nin = 3\nout = 2\n'
FAULTS = {
    "": "expected [[layer]] entries, at least one",
    "layer = 3": "expected [[layer]] entries, at least one",
    "[[layer]]\nkind = 'linear'": "layer 1: name is missing, or is no text",
    "[[layer]]\nname = 'a'": "layer 'a': kind is missing",
    LINEAR.replace('"linear"', '"dense"'): "layer 'a': unknown kind 'dense': ",
    LINEAR.replace("in = 3\n", ""): "layer 'a': in is missing, which kind 'linear' needs",
    LINEAR.replace("linear", "conv"): "layer 'a': kernel is missing, which kind 'conv' needs",
    LINEAR.replace("in = 3", "in = -3"): "layer 'a': in must be at least 1, got -3",
    LINEAR.replace("in = 3", "in = 3.0"): "layer 'a': in must be a whole number, got 3.0",
    LINEAR.replace("in = 3", "in = true"): "layer 'a': in must be a whole number, got True",
    LINEAR + "bias = 1": "layer 'a': bias must be true or false, got 1",
    LINEAR + "repeat = 0": "layer 'a': repeat must be at least 1, got 0",
    LINEAR + "repeat = 1000001": "layer 'a': repeat must be at most 1,000,000",
    LINEAR + "groups = 2": "layer 'a': groups must divide in and out, got 2 for 3 and 2",
    LINEAR + "position = 2": "layer 'a': kind 'linear' has no position: did you mean positions?",
    LINEAR + "tied_to = 'b'": "layer 'a': tied_to names no layer with parameters: ",
    LINEAR + LINEAR: "layer 'a': name must be the only one, but another layer has it",
    LINEAR.replace('"linear"', '"conv"') + "kernel = [3, 'x']": "layer 'a': kernel must be one to three whole numbers",
    LINEAR.replace('"linear"', '"conv"') + "kernel = [3, 0]": "layer 'a': kernel must be at least 1",
    "samples = 0\n" + LINEAR: "samples must be at least 1 and at most",
    "sample = 1\n" + LINEAR: "unknown key 'sample': did you mean samples?",
    "loss = 'mse'\n" + LINEAR: "unknown loss 'mse': ",
    "forward = -1\n" + LINEAR: "forward must be finite and not negative, got -1",
    "backward = nan\n" + LINEAR: "backward must be finite and not negative, got nan",
    LINEAR.replace("in = 3", f"in = 1{'0' * 400}"): "layer 'a': a number above 1,000,000,000,000: ",
    "samples = 'a'\n" + LINEAR: "samples must be a whole number, got 'a'",
    "outputs = 1\n" + LINEAR: "outputs must be at least 2 with cross_entropy, got 1",
    "[[layer]]\nname = 'a'\nkind = 'attention'\nin = 3": "there is no layer with parameters",
    "x = ": "is no TOML file: ",
}


@pytest.mark.parametrize("text", FAULTS)
def test_a_fault_is_one_line_with_file_layer_and_key(text: str, tmp_path: Path) -> None:
    file = tmp_path / "faulty.toml"
    file.write_text(text)
    with pytest.raises(ValueError) as caught:
        cb.shapes(file)
    message = str(caught.value)
    assert FAULTS[text] in message and str(file) in message and "\n" not in message


def test_an_unknown_network_is_told_what_there_is() -> None:
    with pytest.raises(ValueError, match="no shipped network of this name: did you mean gpt2"):
        cb.shapes("gpt")


# Ties.


def test_a_layer_that_is_tied_in_one_orientation_adds_positions(tmp_path: Path) -> None:
    file = tmp_path / "tied.toml"
    file.write_text(LINEAR + "positions = 4\n" + LINEAR.replace('"a"', '"b"') + "positions = 3\ntied_to = 'a'\n")
    shapes = cb.shapes(file)
    assert [block.kind for block in shapes.blocks] == ["product"] and shapes.parameters == 8
    assert shapes.blocks[0].size.positions == 7


def test_a_tied_embedding_is_one_block_with_two_roles() -> None:
    shapes = cb.shapes("gpt2")
    [tied] = [block for block in shapes.blocks if block.kind == "tied"]
    assert [role.kind for role in tied.roles] == ["embedding", "linear"]
    state = cb.cost(shapes, "kfac", fisher_type="mc").state
    free = dataclasses.replace(shapes, layers=tuple(la for la in shapes.layers if la.name != "lm_head"), outputs=50257)
    without = cb.cost(free, "kfac", fisher_type="mc").state
    factors = 768**2 + 50257  # of the head: the square one of its inputs, and the diagonal of its outputs
    assert state - without == 4 * factors and math.isfinite(state)
