"""Convolutions as matrix products: torch's own are the oracle, forwards and backwards."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F

from curvbench.instance.convolution import TILE_POSITIONS, FrozenConvolutions, convolve
from curvbench.instance.passes import network_pass
from curvbench.meters.flops import FlopMeter

GEOMETRIES = [
    {"kernel": (3, 3), "padding": 1},
    {"kernel": (3, 3), "padding": 1, "stride": 2},
    {"kernel": (1, 1), "stride": 2},
    {"kernel": (5, 2), "padding": (2, 0), "stride": (1, 2)},
    {"kernel": (3, 2), "padding": (3, 2), "dilation": (2, 1)},
    {"kernel": (2, 3), "padding": (4, 0)},  # more padding than the kernel reaches
    {"kernel": (3, 3), "stride": 3, "dilation": 2, "padding": 1},
]


def case(kernel: tuple[int, int], **options: object) -> tuple[torch.Tensor, torch.Tensor, dict[str, object]]:
    torch.manual_seed(0)
    x = torch.randn(7, 3, 12, 11, dtype=torch.float64, requires_grad=True)
    return x, torch.randn(4, 3, *kernel, dtype=torch.float64), options


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
def test_values_and_input_gradients_are_torchs(geometry: dict[str, object], with_bias: bool) -> None:
    x, weight, options = case(**geometry)  # type: ignore[arg-type]
    bias = torch.randn(4, dtype=torch.float64) if with_bias else None
    expected = F.conv2d(x, weight, bias, **options)  # type: ignore[arg-type]
    with FrozenConvolutions():
        outputs = F.conv2d(x, weight, bias, **options)  # type: ignore[arg-type]
    assert "_Convolution" in outputs.grad_fn.name()
    torch.testing.assert_close(outputs, expected, rtol=1e-13, atol=1e-13)
    cotangent = torch.randn_like(expected)
    gradients = [torch.autograd.grad(out, x, cotangent)[0] for out in (outputs, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-13, atol=1e-13)


def test_many_samples_go_in_several_tiles() -> None:
    x, weight = torch.randn(2 * TILE_POSITIONS // 16 + 3, 2, 4, 4).double(), torch.randn(3, 2, 1, 1).double()
    torch.testing.assert_close(
        convolve(x, weight, None, (1, 1), (0, 0), (1, 1)), F.conv2d(x, weight), rtol=1e-13, atol=1e-13
    )


@pytest.mark.parametrize("change", ["float32", "groups", "trained", "trained bias", "same", "unbatched"])
def test_other_convolutions_are_torchs_own(change: str) -> None:
    x, weight, options = case((3, 3))
    if change == "float32":
        x, weight = x.detach().float().requires_grad_(), weight.float()
    elif change == "groups":
        x, options = torch.cat([x, x], 1), {"groups": 2}
    elif change == "trained":
        weight.requires_grad_()
    elif change == "trained bias":
        options = {"bias": torch.randn(4, dtype=torch.float64, requires_grad=True)}
    elif change == "same":
        options = {"padding": "same"}
    else:
        x = x[0]
    with FrozenConvolutions():
        out = F.conv2d(x, weight, **options)  # type: ignore[arg-type]
    assert "_Convolution" not in out.grad_fn.name()
    assert torch.equal(out, F.conv2d(x, weight, **options))  # type: ignore[arg-type]


def test_a_module_goes_through_it_with_every_way_of_padding() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8).double()
    for mode in ("zeros", "reflect", "circular"):
        layer = torch.nn.Conv2d(3, 4, 3, padding=2, padding_mode=mode).double().requires_grad_(False)
        with FrozenConvolutions():
            outputs = layer(x)
        torch.testing.assert_close(outputs, layer(x), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
def test_flops_are_those_of_torchs_own(geometry: dict[str, object], with_bias: bool) -> None:
    """However they are run: a count of float64 and one of float32 tell the same story."""
    x, weight, options = case(**geometry)  # type: ignore[arg-type]
    bias = torch.randn(4, dtype=torch.float64) if with_bias else None
    counts = []
    for context in (FrozenConvolutions(), contextlib.nullcontext()):
        with FlopMeter() as meter, network_pass():
            with context:
                out = F.conv2d(x, weight, bias, **options)  # type: ignore[arg-type]
            torch.autograd.grad(out, x, torch.ones_like(out))
        assert meter.passes == meter.total and meter.uncounted == ()
        counts.append(meter.by_op)
    assert (
        counts[0]
        == counts[1]
        == dict.fromkeys(["convolution", "convolution_backward"], 2 * out.numel() * weight[0].numel())
    )
