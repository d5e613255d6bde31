"""Float32 graphs with float64 values: the Fisher of a float32 instance against that of all float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import mlp, nasty_cnn
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import curvbench as cb
from curvbench import training
from curvbench.instance.shadow import NotFollowed, Shadows
from curvbench.meters.memory import peak_memory

LABELS = torch.arange(12) % 3
IMAGES = torch.randn(12, 2, 9, 9, generator=torch.Generator().manual_seed(0))
SEQUENCES = torch.randn(12, 6, 16, generator=torch.Generator().manual_seed(0))
TOLERANCE = 3e-7


class Attention(nn.Module):
    """Torch's own encoder layer; ``sharpness`` multiplies its scores."""

    def __init__(self, sharpness: float) -> None:
        super().__init__()
        self.layer, self.last = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True), nn.Linear(16, 3)
        self.layer.self_attn.in_proj_weight.data *= sharpness

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(x).mean(1))


class InPlace(nn.Module):
    """Writes to its activations, also through a view."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x.mean(1)).add_(0.1).mul_(3)
        h[:, ::2].neg_()
        return self.last(h.relu_())


class Constant(nn.Module):
    """Makes a float32 matrix on its way: it cannot run in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x.mean(1))) @ (2 * torch.eye(8, dtype=torch.float32)))


class Wide(nn.Module):
    """Computes in float64 on its way."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x.mean(1))
        return self.last(h.double().tanh().to(h.dtype))


class Again(nn.Module):
    """Runs a part again in its backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(checkpoint(lambda h: h.exp().tanh(), self.first(x.mean(1)), use_reentrant=False))


def scaled(model: nn.Module, factor: float) -> nn.Module:
    for p in model.parameters():
        p.data *= factor
    return model


def pooled() -> nn.Module:
    """Maxima of rounded inputs, which have ties, and every norm."""
    return nn.Sequential(
        *(nn.MaxPool2d(2), nn.Conv2d(2, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(True), nn.MaxPool2d(3, 1, 1)),
        *(nn.Conv2d(8, 4, 3, stride=2, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3)),
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "convolutions": (nasty_cnn, IMAGES),
    "max-pool with ties": (pooled, (2 * IMAGES).round()),
    "large weights under tanh": (lambda: nn.Sequential(nn.Flatten(), scaled(mlp(96, 20, 20, 3), 30)), SEQUENCES),
    "attention": (lambda: Attention(1), SEQUENCES),
    "sharp attention": (lambda: Attention(8), SEQUENCES),
    "in place": (InPlace, SEQUENCES),
    "sequence": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(96, 8), nn.GELU(), nn.Linear(8, 3)), SEQUENCES),
}


def instance_of(model: nn.Module, x: Tensor) -> cb.Instance:
    return cb.Instance(model.float().eval(), x, LABELS)


def error(instance: cb.Instance, **options: Any) -> float:
    exact = cb.exact_fisher(instance, **{**options, "precision": "float64"}).gram()
    gram = cb.exact_fisher(instance, **options).gram()
    return float((gram - exact).norm() / exact.norm())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_values_are_those_of_float64(name: str) -> None:
    torch.manual_seed(0)
    build, x = NETWORKS[name]
    instance = instance_of(build(), x)
    passed = instance.in_float64_values()
    assert passed.dtype == torch.float32, "the graph is float32"
    tape, expected = passed.tape(), instance.to(torch.float64).tape()
    assert tape.outputs.dtype == torch.float32
    assert torch.allclose(tape.values, expected.outputs, rtol=1e-12, atol=1e-12)
    # One column per sample does not average the rounding of its backward pass, as the columns of all classes do.
    for fisher_type, tolerance in (("type-2", TOLERANCE), ("empirical", 2 * TOLERANCE), ("mc", 2 * TOLERANCE)):
        assert error(instance, fisher_type=fisher_type) <= tolerance


def test_a_deep_network_with_batchnorm() -> None:
    """Where float32 passes flip units: their error is that of ``native``."""
    problem = cb.problem("resnet", depth=20, width=8, samples=16)
    x, y = training.batch(problem, problem.data(None), 0)
    instance = cb.Instance(training.snapshot(problem, 0, None), x, y)
    assert error(instance) <= TOLERANCE < error(instance, precision="native")


def test_a_model_that_cannot_run_in_float64_has_its_values() -> None:
    torch.manual_seed(0)
    model = Constant()
    instance = instance_of(model, SEQUENCES)
    assert not instance.runs_in_float64() and instance.has_float64_values()
    same = nn.Sequential(MeanOverSteps(), model.first, nn.Tanh(), Double(), model.last)
    expected = cb.exact_fisher(instance_of(same, SEQUENCES), precision="float64").gram()
    gram = cb.exact_fisher(instance).gram()
    assert float((gram - expected).norm()) <= TOLERANCE * float(expected.norm())


class MeanOverSteps(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_what_cannot_be_followed_runs_in_float64() -> None:
    torch.manual_seed(0)
    instance = instance_of(Wide(), SEQUENCES)
    assert instance.in_float64_values().dtype == torch.float64
    assert error(instance) <= TOLERANCE


def test_parts_that_run_again_are_not_followed() -> None:
    with Shadows(), pytest.raises(NotFollowed, match="again"):
        Again()(SEQUENCES)


def test_shadows_go_with_their_pass() -> None:
    """A pass keeps its float32 graph and no float64 value but the outputs'."""
    x, layers = torch.randn(64, 100), nn.Sequential(*[nn.Linear(100, 100), nn.ReLU()] * 6)
    shadows = Shadows()

    def followed() -> Tensor:
        with shadows:
            outputs = layers(x)
        shadows.take(outputs)
        return outputs

    outputs = followed()
    peak, _ = peak_memory(lambda: torch.autograd.grad(outputs.sum(), list(layers.parameters())), "cpu")
    assert not len(shadows._shadows) and peak < 40 * x.numel() * 4
