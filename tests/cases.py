"""One table of small networks with data that every test shares: add a row, inherit the checks.

All in float64, seeded by the case's name; small enough (P < 700) for a dense Fisher matrix.
"""

from __future__ import annotations

import functools
import itertools
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import oracles
import torch
from torch import Tensor, nn

import curvbench as cb
from curvbench.spec import Layer

Data = tuple[Tensor, Tensor]


class TokenNet(nn.Module):
    """Tokens or vectors (N, S, .) to (N, T = S, C), with positions mixed so that every token sees all."""

    def __init__(self, first: nn.Module, width: int = 4, classes: int = 3) -> None:
        super().__init__()
        self.first = first
        self.inner = nn.Linear(width, 5)
        self.norm = nn.LayerNorm(5)
        self.last = nn.Linear(5, classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.inner(self.first(x)))
        return self.last(self.norm(hidden + hidden.mean(1, keepdim=True)))


class MeanPool(nn.Module):
    """(N, S, D) to (N, D)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def mlp(*widths: int, activation: type[nn.Module] = nn.Tanh, bias: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs, bias=bias), activation()]
    return nn.Sequential(*layers[:-1])


def used_batchnorm(channels: int) -> nn.BatchNorm2d:
    """A BatchNorm whose statistics and affine parameters are not the defaults."""
    norm = nn.BatchNorm2d(channels)
    norm.running_mean, norm.running_var = torch.randn(channels) / 3, torch.rand(channels) + 0.5
    nn.init.uniform_(norm.weight, 0.5, 2.0)
    nn.init.normal_(norm.bias, std=0.3)
    return norm


def lively(model: nn.Module) -> nn.Module:
    """Convolutions large enough that no layer's share of the Fisher matrix is negligible."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return model


def nasty_cnn(bias: bool = True) -> nn.Module:
    """Every convolution option at once, for inputs (2, 9, 9) and 3 classes."""
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False),
        used_batchnorm(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, (2, 3), padding="same", dilation=(1, 2), groups=2, bias=bias),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 6, 3, padding=(2, 1), dilation=(2, 1), groups=6, bias=bias),
        used_batchnorm(6),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 5, 1, bias=not bias),
        nn.LeakyReLU(0.1, inplace=True),
        nn.AdaptiveAvgPool2d((2, 1)),
        nn.Flatten(),
        nn.Linear(10, 3, bias=bias),
    )
    return lively(net)


def conv1d_net() -> nn.Module:
    """Conv1d with circular, reflect and 'same' padding of an even kernel, for inputs (2, 8) and 3 classes."""
    return nn.Sequential(
        nn.Conv1d(2, 4, 3, padding=1, padding_mode="circular"),
        nn.Tanh(),
        nn.Conv1d(4, 4, 3, padding=2, dilation=2, stride=2, groups=2, padding_mode="reflect"),
        nn.Tanh(),
        nn.Conv1d(4, 3, 2, padding="same", bias=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(12, 3),
    )


def padded_cnn() -> nn.Module:
    """'same' padding with circular and replicate modes and even kernels, 'valid' padding, for inputs (1, 5, 6)."""
    return nn.Sequential(
        nn.Conv2d(1, 3, (2, 4), padding="same", padding_mode="circular"),
        nn.Tanh(),
        nn.Conv2d(3, 2, (3, 2), padding="same", padding_mode="replicate"),
        nn.AvgPool2d(2),
        nn.Conv2d(2, 4, (1, 2), padding="valid", groups=2),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


def saturated_mlp() -> nn.Module:
    """Probabilities within 1e-12 of one-hot."""
    model = mlp(4, 5, 3)
    with torch.no_grad():
        model[-1].weight.mul_(150.0)
    return model


def one_hot_mlp() -> nn.Module:
    """Probabilities that underflow to exactly 0 and 1."""
    model = mlp(4, 5, 3)
    with torch.no_grad():
        model[-1].weight.mul_(4000.0)
    return model


def dead_unit_mlp() -> nn.Module:
    model = mlp(4, 5, 4, 3, activation=nn.ReLU)
    with torch.no_grad():
        model[0].bias[1] = -100.0  # never active: no gradient, and a constant zero input of the next layer
        model[2].weight[2] = 0.0
        model[2].bias[2] = 0.0  # pre-activation exactly zero, where the derivative of ReLU is taken as 0
    return model


def dead_channel_cnn() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2), nn.ReLU(), nn.Conv2d(4, 4, 2, groups=4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    )
    with torch.no_grad():
        model[0].bias[0] = -100.0  # the input of the next layer's first group is constant zero
        model[2].bias[3] = -100.0  # the gradient of the last group is zero
    return model


def linear_4d() -> nn.Module:
    """Linear layers on two axes of positions, the second on a transposed, non-contiguous input."""

    class Transpose(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.transpose(1, 2)

    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), Transpose(), nn.Linear(4, 2), nn.Flatten(), nn.Linear(12, 3))


def linear_pooled() -> nn.Module:
    """The reduce setting: linear layers shared over positions, then a mean over positions."""
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3), MeanPool(), nn.Linear(3, 2))


def normal(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(*shape)


def labels(classes: int, *shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(classes, shape)


def some_ignored(classes: int, samples: int, tokens: int) -> Callable[[], Tensor]:
    def make() -> Tensor:
        targets = torch.randint(classes, (samples, tokens))
        targets[0, -2:] = oracles.IGNORED
        targets[2, 0] = oracles.IGNORED
        return targets

    return make


@dataclass(frozen=True)
class Case:
    """A row of the table. ``build`` makes model, inputs and targets afresh, the same every time."""

    name: str
    model: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    targets: Callable[[], Tensor]
    loss: str = "cross_entropy"

    def build(self) -> tuple[nn.Module, Tensor, Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(zlib.crc32(self.name.encode()))
            model, inputs = self.model().double().eval(), self.inputs()
            inputs = inputs.double() if inputs.is_floating_point() else inputs
            targets = self.targets()
        return model, inputs, targets.double() if targets.is_floating_point() else targets


ROWS = (
    Case("mlp_tanh", lambda: mlp(5, 6, 4, 3), normal(7, 5), labels(3, 7)),
    Case("mlp_relu_no_bias", lambda: mlp(5, 6, 4, 4, activation=nn.ReLU, bias=False), normal(6, 5), labels(4, 6)),
    Case("mlp_two_classes", lambda: mlp(4, 5, 2), normal(6, 4), labels(2, 6)),
    Case("mlp_gaussian", lambda: mlp(4, 5, 3, activation=nn.ReLU), normal(6, 4), normal(6, 3), "gaussian"),
    Case("mlp_many_samples", lambda: mlp(2, 3, 3), normal(20, 2), labels(3, 20)),  # more score columns than P
    Case("nasty_cnn", nasty_cnn, normal(5, 2, 9, 9), labels(3, 5)),
    Case("nasty_cnn_no_bias", lambda: nasty_cnn(bias=False), normal(4, 2, 9, 9), labels(3, 4)),
    Case("padded_cnn", padded_cnn, normal(4, 1, 5, 6), normal(4, 3), "gaussian"),
    Case("conv1d", conv1d_net, normal(5, 2, 8), labels(3, 5)),
    Case("tokens", lambda: TokenNet(nn.Linear(3, 4)), normal(4, 4, 3), some_ignored(3, 4, 4)),
    Case("embedding", lambda: TokenNet(nn.Embedding(7, 4)), labels(7, 4, 3), labels(3, 4, 3)),
    Case("tokens_gaussian", lambda: TokenNet(nn.Linear(3, 4)), normal(3, 4, 3), normal(3, 4, 3), "gaussian"),
    Case("linear_deep", lambda: mlp(4, 4, 3, 2, activation=nn.Identity), normal(6, 4), normal(6, 2), "gaussian"),
    Case("linear_tokens", lambda: mlp(3, 4, 2, activation=nn.Identity), normal(5, 4, 3), normal(5, 4, 2), "gaussian"),
    Case("linear_pooled", linear_pooled, normal(5, 4, 3), normal(5, 2), "gaussian"),
    Case("linear_4d", linear_4d, normal(4, 2, 3, 3), labels(3, 4)),
    Case("certain", saturated_mlp, normal(6, 4), labels(3, 6)),
    Case("one_hot", one_hot_mlp, normal(6, 4), labels(3, 6)),
    Case("dead_unit", dead_unit_mlp, normal(6, 4), labels(3, 6)),
    Case("dead_channel", dead_channel_cnn, normal(5, 2, 5, 5), labels(3, 5)),
    Case("one_sample", lambda: mlp(4, 5, 3), normal(1, 4), labels(3, 1)),
    Case("one_sample_cnn", nasty_cnn, normal(1, 2, 9, 9), labels(3, 1)),
)
CASES = {case.name: case for case in ROWS}


@dataclass(frozen=True)
class Truth:
    """What the oracles say about one case, from a model of their own."""

    case: Case
    model: nn.Module
    terms: list[oracles.Term]

    def fisher(self, fisher_type: str = "type-2") -> Tensor:
        return _fisher(self.case.name, fisher_type)

    def factors(self, fisher_type: str = "type-2") -> dict[str, list[oracles.Factors]]:
        return _factors(self.case.name, fisher_type)

    @property
    def gradient(self) -> Tensor:
        return oracles.mean_gradient(self.terms, self.case.loss)

    @property
    def size(self) -> int:
        return sum(oracles.layer_sizes(self.model))

    @property
    def rounding(self) -> float:
        """What two ways to one number of this case may differ by, relatively.

        A sum of P terms loses up to P units in the last place, and a softmax as many as its largest logit.
        """
        logits = max(float(term.output.abs().max()) for term in self.terms)
        return torch.finfo(torch.float64).eps * (2 * self.size + 4 * logits)


@functools.cache
def truth(name: str) -> Truth:
    """The dense truth about a case, computed once per test run."""
    case = CASES[name]
    model, inputs, targets = case.build()
    return Truth(case, model, oracles.loss_terms(model, inputs, targets, case.loss))


@functools.cache
def _fisher(name: str, fisher_type: str) -> Tensor:
    return oracles.fisher(truth(name).terms, CASES[name].loss, fisher_type)


@functools.cache
def _factors(name: str, fisher_type: str) -> dict[str, list[oracles.Factors]]:
    model, inputs, targets = CASES[name].build()
    return oracles.layer_factors(model, inputs, targets, CASES[name].loss, fisher_type)


def weights_of(model: nn.Module, inputs: Any, targets: Tensor, loss: str = "cross_entropy") -> cb.Instance:
    """An instance that covers what ``oracles.covered_layers`` covers."""
    return cb.Instance(model, inputs, targets, loss, parameters="weights")


def few(name: str, **hyperparameters: Any) -> cb.Probe:
    """A probe; one that learns over steps makes few of them, where a test's property holds after any number."""
    learns = "updates" in cb.probe(name).hyperparameters
    return cb.probe(name, **{**({"updates": 3} if learns else {}), **hyperparameters})


@functools.cache
def instance_of(name: str) -> cb.Instance:
    """The case as an instance of its weights, made once; no test may change its model."""
    case = CASES[name]
    return weights_of(*case.build(), loss=case.loss)


def layer_of(module: nn.Module, x: Tensor) -> tuple[Layer, Tensor]:
    """The block of a layer's weight, and the input that its tape holds, for a model of this layer alone."""
    model = nn.Sequential(module, nn.Flatten())
    instance = weights_of(model, x, torch.zeros_like(model(x)).detach(), "gaussian")
    (layer,) = instance.layers
    return layer, instance.tape().inputs[layer.name]


@functools.cache
def whole_of(name: str) -> cb.Instance:
    """The case as an instance of all its parameters, made once; no test may change its model."""
    case = CASES[name]
    return cb.Instance(*case.build(), loss=case.loss)


@functools.cache
def fisher_of(name: str, fisher_type: str = "type-2", contraction: str | None = None) -> Any:
    """The exact Fisher of a case, made once."""
    return cb.exact_fisher(instance_of(name), fisher_type=fisher_type, contraction=contraction)
