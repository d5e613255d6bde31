"""Patches as views of the input, against torch's own unfolding."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import layer_of
from torch import nn

from curvbench.instance import layers

CONVOLUTIONS = {
    "plain": {},
    "bias, strided with a rest": {"bias": True, "stride": 2, "padding": (1, 0)},
    "dilated": {"dilation": (1, 2), "padding": 2},
    "groups": {"groups": 2, "bias": True, "padding": "same"},
    "circular": {"padding": 1, "padding_mode": "circular"},
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_patches_are_torchs(name: str, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    options = {"bias": False, **CONVOLUTIONS[name]}
    module = nn.Conv2d(4, 6, (3, 2), **options)  # type: ignore[arg-type]
    layer, x = layer_of(module, torch.randn(5, 4, 8, 7).contiguous(memory_format=layout))
    planes = layers.padded(layer, x)
    unfolded = F.unfold(planes, layer.kernel, dilation=layer.dilation, stride=layer.stride)
    patches = layers.patches(layer, x)
    assert torch.equal(patches[:, :, : layer.inputs - layer.bias].flatten(1, 2), unfolded)
    if layer.bias:
        assert torch.equal(patches[:, :, -1], torch.ones_like(patches[:, :, -1]))


@pytest.mark.parametrize(
    "module",
    [nn.Linear(4, 3), *(nn.Conv2d(4, 6, 2, **options) for options in CONVOLUTIONS.values())],  # type: ignore[arg-type]
    ids=["linear", *CONVOLUTIONS],
)
def test_joined_patches_are_the_same(module: nn.Module) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 7, 4) if isinstance(module, nn.Linear) else torch.randn(5, 4, 8, 7)
    layer, x = layer_of(module, x)
    assert torch.equal(layers.joined_patches(layer, x).permute(3, 0, 1, 2), layers.patches(layer, x))
