from __future__ import annotations

import pytest
import torch
from cases import CASES, instance_of, layer_of
from torch import Tensor, nn

from curvbench.instance import layers as geometry
from curvbench.meters.memory import peak_memory
from curvbench.parts.patch_sums import mean_patch, patch_lengths, patch_moment, patch_squares
from curvbench.spec import Layer

MODULES = {
    "plain": nn.Conv2d(3, 2, 3, padding=1),
    "one_pixel": nn.Conv2d(3, 2, 1),
    "one_pixel_strided": nn.Conv2d(3, 2, 1, stride=2, bias=False),
    "strided": nn.Conv2d(3, 2, 3, stride=(2, 3), padding=1),
    "dilated_rows": nn.Conv2d(3, 2, (3, 2), dilation=(2, 1), padding=(2, 0)),
    "kernel_as_high_as_the_image": nn.Conv2d(3, 2, (7, 3), bias=False),
    "more_kernel_than_output": nn.Conv2d(3, 2, (5, 3), padding=(0, 1)),
    "strided_and_dilated": nn.Conv2d(3, 2, 3, stride=2, dilation=2, padding=3),
    "grouped": nn.Conv2d(6, 3, 3, groups=3, padding=1),
    "even": nn.Conv2d(3, 2, (2, 4), padding="same"),
    "circular": nn.Conv2d(3, 2, 3, padding=(2, 1), padding_mode="circular"),
    "sequence": nn.Conv1d(3, 2, 4, stride=2, padding=1),
    "positions": nn.Linear(3, 2),
}


def described(name: str) -> tuple[Layer, Tensor]:
    sizes = {"sequence": (4, 3, 9), "positions": (4, 6, 3), "grouped": (4, 6, 7, 8)}.get(name, (4, 3, 7, 8))
    x = torch.randn(sizes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return layer_of(MODULES[name].double(), x)


def check(layer: Layer, x: Tensor) -> None:
    patches = geometry.patches(layer, x)
    moment = torch.einsum("ngds,nges->gde", patches, patches)
    found = patch_moment(layer, x)
    assert found.shape == moment.shape and found.dtype == x.dtype
    assert float((found - moment).norm()) <= 1e-13 * float(moment.norm())
    if layer.kind != "lookup":
        weights = torch.rand(patches.shape[:2], generator=torch.Generator().manual_seed(1), dtype=x.dtype)
        weighted = torch.einsum("ngds,nges,ng->gde", patches, patches, weights)
        assert float((patch_moment(layer, x, weights) - weighted).norm()) <= 1e-13 * float(moment.norm())
    lengths = patches.square().sum(2)
    assert float((patch_lengths(layer, x).to(x.dtype) - lengths).norm()) <= 1e-13 * float(lengths.norm())
    squares = patch_squares(layer, x)
    assert squares.shape == moment.shape[:2]
    assert float((squares - moment.diagonal(dim1=1, dim2=2)).norm()) <= 1e-13 * float(moment.norm())
    assert float((mean_patch(layer, x) - patches.mean(-1)).norm()) <= 1e-13 * float(patches.norm())


@pytest.mark.parametrize("name", MODULES)
def test_sums_are_those_of_the_patches(name: str) -> None:
    check(*described(name))


@pytest.mark.parametrize("name", CASES)
def test_sums_of_every_case(name: str) -> None:
    instance = instance_of(name)
    tape = instance.tape()
    for layer in instance.layers:
        check(layer, tape.inputs[layer.name])


def test_the_patches_are_never_stored() -> None:
    layer, _ = described("plain")
    x = torch.randn(8, 3, 64, 64)
    patches = geometry.patches(layer, x)
    peak, _ = peak_memory(lambda: patch_moment(layer, x), "cpu")
    assert peak <= 0.75 * patches.numel() * patches.element_size()
