"""The models on which three peers test themselves, against the zoo's oracle: `python scripts/peers_models.py`.

The shapes are those of curvlinops, NNGeometry and BackPACK; the models are written anew. Images of 28 pixels
are random ones of 14, so that a dense matrix fits. Outputs are brought to (N, C) or (N, T, C). A model that a peer
tests with several losses is one model here, with cross entropy where the peer has a classifier and the Gaussian loss
elsewhere. Per peer the script prints how many models agree over all trainable parameters, over a part of them, differ
or are refused, and a line for every model that does not agree over all.
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from zoo import Case, Problem, oracle  # type: ignore[import-not-found]  # noqa: E402
from zoo.case import (  # type: ignore[import-not-found]  # noqa: E402
    Net,
    classified,
    classifier,
    integers,
    normal,
    regressed,
    regressor,
    then,
)

import curvbench as cb  # noqa: E402

TOLERANCE = 1e-11
Make = Callable[[], Problem]


def chain(*layers: Any) -> nn.Sequential:
    """Layers in turn; a function of a tensor is one."""
    return nn.Sequential(*(layer if isinstance(layer, nn.Module) else then(layer) for layer in layers))


def tokens(h: Tensor) -> Tensor:
    """Outputs with the classes last as (N, T, C)."""
    return h.flatten(1, -2)


def pixels(h: Tensor) -> Tensor:
    """Outputs with the classes in dimension 1 as (N, T, C)."""
    return h.flatten(2).mT


def both(first: nn.Module, second: nn.Module, turned: int = 1) -> Net:
    """The sums of two layers' outputs as two classes; ``turned``: the sign of the second layer's input."""
    return Net(
        lambda m, x: torch.stack([m.first(x).flatten(1).sum(1), m.second(turned * x).flatten(1).sum(1)], 1),
        first=first,
        second=second,
    )


def beside(inner: nn.Module) -> Net:
    """The input plus what a module makes of it."""
    return Net(lambda m, x: x + m.inner(x), inner=inner)


# --- curvlinops ---------------------------------------------------------------------------------------------


def deep_linear(*widths: int) -> nn.Sequential:
    """Linear layers without activations."""
    return chain(*(nn.Linear(a, b) for a, b in itertools.pairwise(widths)))


def split_and_joined(bias: tuple[bool, ...]) -> Problem:
    """Linear layers of one weight on the two halves of the input; one layer if there is one bias."""
    layers = nn.ModuleList(nn.Linear(3, 3, bias=b) for b in bias)
    for layer in layers[1:]:
        layer.weight = layers[0].weight
    halves = lambda m, x: torch.cat([m.layers[0](x[:, :3]), m.layers[-1](x[:, 3:])], 1)  # noqa: E731
    return regressor(halves, normal(4, 6), layers=layers)


def u_net() -> nn.Sequential:
    """Convolutions down and up again, linear, with classes of pixels."""
    up = nn.Upsample(scale_factor=2, mode="nearest")
    down, between = nn.Conv2d(3, 2, 3, padding=1, stride=2), nn.Conv2d(2, 2, 3, padding=1)
    return chain(down, between, up, nn.Conv2d(2, 3, 3, padding=1), pixels)


def of_one_weight(function: Callable[..., Tensor], bias: bool = True) -> Problem:
    """A function of inputs (4, 3), a weight (3, 3) and a bias (3,)."""
    return regressor(function, normal(4, 3), w=normal(3, 3), **({"b": normal(3)} if bias else {}))


CURVLINOPS: dict[str, Make] = {
    "linear": lambda: regressed(nn.Linear(5, 3), normal(7, 5)),
    "linear, one output": lambda: regressed(nn.Linear(6, 1), normal(5, 6)),
    "deep linear": lambda: regressed(deep_linear(5, 4, 3), normal(7, 5)),
    "deep linear, one output": lambda: regressed(deep_linear(6, 3, 1), normal(5, 6)),
    "deep linear classifier": lambda: classified(deep_linear(5, 4, 3), normal(1, 5)),
    "mlp": lambda: classified(chain(nn.Linear(10, 5), nn.ReLU(), nn.Linear(5, 3)), normal(4, 10)),
    "mlp of tokens": lambda: classified(chain(nn.Linear(10, 5), nn.ReLU(), nn.Linear(5, 3)), normal(4, 5, 10)),
    "mlp, regression of tokens": lambda: regressed(chain(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3)), normal(4, 5, 8)),
    "mlp of a mapping": lambda: classifier(
        lambda m, data: m.net(data["x"]),
        {"x": normal(4, 10)},
        net=chain(nn.Linear(10, 5), nn.ReLU(), nn.Linear(5, 3)),
    ),
    "mlp with dropout": lambda: classified(
        chain(nn.Linear(10, 5), nn.Dropout(), nn.ReLU(), nn.Linear(5, 2)), normal(3, 10)
    ),
    "mlp with batch norm": lambda: classified(
        chain(nn.Linear(10, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)), normal(3, 10)
    ),
    "mlp as a function": lambda: regressor(
        lambda m, x: F.linear(F.linear(x, m.w, m.b).relu(), m.v, m.c),
        normal(4, 10),
        w=normal(5, 10),
        b=normal(5),
        v=normal(3, 5),
        c=normal(3),
    ),
    "shared weights, expand": lambda: regressed(chain(deep_linear(5, 4, 3), tokens), normal(2, 4, 8, 5)),
    "shared weights, reduce": lambda: regressed(
        chain(deep_linear(5, 4, 3), tokens, lambda h: h.mean(1)), normal(2, 4, 8, 5)
    ),
    "shared weights, flat": lambda: regressed(chain(deep_linear(5, 4, 3), nn.Flatten()), normal(2, 4, 2, 5)),
    "conv2d, expand": lambda: regressed(chain(nn.Conv2d(3, 2, 4, padding=2), pixels), normal(2, 3, 8, 8)),
    "conv2d, flat": lambda: regressed(chain(nn.Conv2d(3, 2, 4, padding=2), nn.Flatten()), normal(2, 3, 4, 4)),
    "conv2d, reduce": lambda: regressed(
        chain(nn.Conv2d(3, 2, 4, padding=2), nn.AdaptiveAvgPool2d(1), nn.Flatten()), normal(2, 3, 8, 8)
    ),
    "cnn": lambda: classified(
        chain(
            *(nn.Conv2d(1, 3, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(24, 10)),
        ),
        normal(5, 1, 20, 20),
    ),
    "u-net": lambda: classified(u_net(), normal(2, 3, 6, 6)),
    "split and joined": lambda: split_and_joined((False,)),
    "split and joined, bias": lambda: split_and_joined((True,)),
    "tied halves": lambda: split_and_joined((False, False)),
    "tied halves, one bias": lambda: split_and_joined((True, False)),
    "tied halves, two biases": lambda: split_and_joined((True, True)),
    "x @ w.T + b": lambda: of_one_weight(lambda m, x: x @ m.w.T + m.b),
    "weight twice": lambda: of_one_weight(lambda m, x: F.linear(F.linear(x, m.w), m.w), bias=False),
    "bias of the weight": lambda: of_one_weight(lambda m, x: F.linear(x, m.w, m.w.sum(1)), bias=False),
    "bias after a view": lambda: of_one_weight(lambda m, x: (F.linear(x, m.w).view(-1, 1, 3) + m.b)[:, 0]),
    "frozen bias": lambda: regressor(
        lambda m, x: F.linear(x, m.w, torch.ones(3).double()), normal(4, 3), w=normal(3, 3)
    ),
    "conv2d as a function": lambda: regressor(
        lambda m, x: F.conv2d(x, m.w, m.b, (2, 1), padding=1).flatten(1),
        normal(3, 2, 4, 4),
        w=normal(2, 2, 3, 2),
        b=normal(2),
    ),
}

# --- NNGeometry ---------------------------------------------------------------------------------------------


class Cosine(nn.Module):
    """Outputs of a linear layer whose weights and inputs have norm 1."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(x, dim=1), F.normalize(self.weight, dim=1))


def affine(width: int, bias: bool) -> Net:
    """A scale per channel, and a shift."""
    return Net(
        lambda m, x: x * m.scale + m.shift if bias else x * m.scale,
        scale=normal(width),
        **({"shift": normal(width)} if bias else {}),
    )


def connected(normalization: str = "none", classes: int = 3) -> nn.Sequential:
    """Widths 81-10-10-C, with a norm of each layer's weight or outputs."""
    layers: list[Any] = []
    for i, (a, b) in enumerate([(81, 10), (10, 10), (10, classes)]):
        layer: nn.Module = nn.Linear(a, b, bias=normalization in ("none", "weight_norm"))
        layer = parametrizations.weight_norm(layer) if normalization == "weight_norm" else layer
        layers.append(Cosine(a, b) if normalization == "cosine" else layer)
        layers += [nn.BatchNorm1d(b)] if normalization == "batch_norm" else []
        layers += [affine(b, i % 2 == 0)] if normalization == "affine" else []
        layers.append(nn.ReLU())
    return chain(lambda x: x[:, :, 2:-3, 2:-3].flatten(1), *layers[:-1])


def convolved(normalization: str = "none", classes: int = 3) -> nn.Sequential:
    """Three convolutions with pooling and two linear layers, on 28 pixels."""
    plain = normalization == "none"
    first: nn.Module = nn.Conv2d(1, 6, 3, 2, bias=plain)
    first = parametrizations.weight_norm(first) if normalization == "weight_norm" else first
    norms = {"batch_norm": (nn.BatchNorm2d(6), nn.BatchNorm1d(4)), "group_norm": (nn.GroupNorm(2, 6), nn.Identity())}
    norm, last = norms.get(normalization, (nn.Identity(), nn.Identity()))
    return chain(
        *(first, norm, nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(6, 5, 4, bias=False), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Conv2d(5, 7, 3, 1, 1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(7, 4), last, nn.ReLU()),
        nn.Linear(4, classes),
    )


def skipped() -> Net:
    """Four convolutions with a connection around the inner two."""
    layers = [nn.Conv2d(a, b, 3, 1, 1) for a, b in ((1, 2), (2, 2), (2, 2), (2, 3))]

    def forward(m: Any, x: Tensor) -> Tensor:
        before = m.layers[0](x).relu()
        after = m.layers[2](m.layers[1](before).relu()).relu()
        return m.layers[3](after + before).relu().sum((2, 3))

    return Net(forward, layers=nn.ModuleList(layers))


def two_norms() -> Net:
    """A norm of a pair of channels beside a norm of pixels, and a head."""
    return Net(
        lambda m, x: m.head(torch.cat([m.conv(torch.cat([x, x.mT], 1)).flatten(1), m.fc(x.flatten(1))], 1)),
        conv=nn.BatchNorm2d(2),
        fc=nn.BatchNorm1d(49),
        head=nn.Linear(147, 5),
    )


def summed(*layers: nn.Module) -> nn.Sequential:
    """Images cut to 9 pixels, layers, and the sum over positions."""
    return chain(lambda x: x[:, :, 2:-3, 2:-3], *layers, lambda h: h.sum((2, 3)))


def image(size: int = 14) -> Tensor:
    """Images (4, 1, size, size)."""
    return normal(4, 1, size, size)


def frozen(layer: nn.Module) -> nn.Module:
    """The layer, not trained."""
    return layer.requires_grad_(False)


def last_alone(model: nn.Sequential) -> nn.Sequential:
    """The model with only its last layer trained."""
    frozen(model)
    model[-1].requires_grad_()
    return model


def of_pixels(build: Callable[[str], nn.Module], normalization: str, size: int) -> Problem:
    """A network with a kind of norms on images."""
    return classified(build(normalization), image(size))


def norm_of_outputs(norm: type[nn.Module]) -> Problem:
    """A norm of the outputs of a linear layer."""
    return classified(chain(lambda x: x[:, :, 2:-3, 2:-3].flatten(1), nn.Linear(81, 3), norm(3)), image())


def norm_of_images(norm: type[nn.Module]) -> Problem:
    """A norm of the outputs of a convolution, over all positions."""
    return classified(summed(nn.Conv2d(1, 3, (3, 2), 2), norm((3, 4, 4))), image())


def summed_tokens(layer: type[nn.Module], *widths: int) -> Problem:
    """A layer on tokens (6, 5, 4), and the sum over the tokens."""
    return classified(chain(layer(*widths), lambda h: h.sum(1)), normal(6, 5, 4))


NORMS: dict[str, type[nn.Module]] = {"layer norm": nn.LayerNorm, "rms norm": nn.RMSNorm}
NNGEOMETRY: dict[str, Make] = {
    **{
        f"fc, {n}": partial(of_pixels, connected, n, 14)
        for n in ("none", "batch_norm", "weight_norm", "cosine", "affine")
    },
    "fc, one output": lambda: regressed(connected(classes=1), image()),
    "fc, last layer alone": lambda: classified(last_alone(connected()), image()),
    "fc, segmentation": lambda: classified(
        chain(connected(classes=12), lambda h: pixels(h.view(-1, 3, 2, 2))), image()
    ),
    **{f"conv, {n}": partial(of_pixels, convolved, n, 28) for n in ("none", "batch_norm", "group_norm", "weight_norm")},
    "conv, one output": lambda: regressed(convolved(classes=1), image(28)),
    "small conv, weight_norm": lambda: classified(
        summed(
            parametrizations.weight_norm(nn.Conv2d(1, 6, 3, 2)),
            nn.ReLU(),
            parametrizations.weight_norm(nn.Conv2d(6, 3, 2, 3)),
            nn.ReLU(),
        ),
        image(),
    ),
    "small conv, transpose": lambda: classified(
        summed(
            nn.ConvTranspose2d(1, 6, (3, 2), 2), nn.ReLU(), nn.ConvTranspose2d(6, 3, (2, 3), 3, bias=False), nn.ReLU()
        ),
        image(),
    ),
    "linear fc": lambda: classified(
        chain(nn.Flatten(), both(nn.Linear(196, 3), nn.Linear(196, 7, bias=False))), image()
    ),
    "linear conv": lambda: classified(both(nn.Conv2d(1, 5, 3), nn.Conv2d(1, 3, 2, bias=False)), image()),
    "linear batch norm, fc": lambda: classified(
        chain(nn.Flatten(), frozen(nn.Linear(196, 100)), both(nn.BatchNorm1d(100), nn.BatchNorm1d(100), -1)), image()
    ),
    "linear batch norm, conv": lambda: classified(
        chain(frozen(nn.Conv2d(1, 5, 3, 3)), both(nn.BatchNorm2d(5), nn.BatchNorm2d(5), -1)), image()
    ),
    "batch norm, then linear": lambda: classified(two_norms(), image(7)),
    "embedding": lambda: classified(chain(nn.Embedding(10, 3), lambda h: h.sum(1)), integers(5, 6, 4)),
    "skip connection": lambda: classified(skipped(), image()),
    "conv1d": lambda: classified(
        chain(
            *(lambda x: x.flatten(2), nn.Conv1d(1, 6, 3, 3), nn.ReLU(), nn.Conv1d(6, 5, 4, 8, bias=False), nn.ReLU()),
            *(nn.Conv1d(5, 2, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 4)),
        ),
        image(28),
    ),
    **{f"{n}, fc": partial(norm_of_outputs, norm) for n, norm in NORMS.items()},
    **{f"{n}, conv": partial(norm_of_images, norm) for n, norm in NORMS.items()},
    **{f"{n}, tokens": partial(summed_tokens, norm, 4) for n, norm in NORMS.items()},
    "linear, tokens": partial(summed_tokens, nn.Linear, 4, 3),
}


# --- BackPACK -----------------------------------------------------------------------------------------------

CONVOLUTIONS: list[tuple[str, tuple[int, ...], tuple[Any, ...]]] = [
    ("Conv", (3, 7), (3, 2, 2)),
    ("Conv", (2, 7), (2, 3, 2, 2, 0, 2)),
    ("Conv", (3, 7), (3, 2, 2, 2, 1)),
    ("Conv", (3, 8), (3, 6, 2, 4, 2, 3)),
    ("Conv", (3, 7), (3, 2, 2, 4, 2, 1, 1, False)),
    ("Conv", (6, 7), (6, 6, 2, 1, 0, 1, 2)),
    ("ConvTranspose", (3, 7), (3, 2, 2)),
    ("ConvTranspose", (2, 5), (2, 3, 2, 2, 0, 0, 1, True, 2)),
    ("ConvTranspose", (3, 7), (3, 2, 2, 2, 1)),
    ("ConvTranspose", (3, 8), (3, 6, 2, 4, 2, 0, 1, True, 3)),
    ("ConvTranspose", (3, 7), (3, 2, 2, 4, 2, 0, 1, False)),
    ("ConvTranspose", (6, 5), (6, 3, 2, 2, 2, 0, 3, True, 3)),
]
POOLS: list[tuple[str, tuple[Any, ...]]] = [
    *(("MaxPool", values) for values in ((2, 1), (2, 1, 0, 2), (2, 1, 0, 2, False, True))),
    *(("AvgPool", values) for values in ((2, 1), (2, 1, 0, True), (2, 1, 0, False))),
]
ACTIVATIONS = (nn.ReLU, nn.Sigmoid, nn.Tanh, nn.LeakyReLU, nn.LogSigmoid, nn.ELU, nn.SELU)


def before_a_frozen_head(*layers: nn.Module, inputs: Tensor) -> Problem:
    """Layers and a linear classifier that is not trained."""
    body = chain(*layers, nn.Flatten()).double()
    return classified(chain(*body, frozen(nn.Linear(body(inputs).shape[1], 5))), inputs)


def convolution_cases() -> Iterator[tuple[str, Make]]:
    """Every convolution in one to three dimensions; the third dimension of the images is short."""
    for kind, (channels, size), values in CONVOLUTIONS:
        for d in (1, 2, 3):
            name, shape = f"{kind}{d}d", (3, channels, *((4,) if d == 3 else ()), *(size,) * min(d, 2))

            def make(name: str = name, shape: tuple[int, ...] = shape, values: tuple[Any, ...] = values) -> Problem:
                return before_a_frozen_head(getattr(nn, name)(*values), nn.ReLU(), inputs=normal(*shape))

            yield f"{name}{values}", make


def pooling_cases() -> Iterator[tuple[str, Make]]:
    """A convolution and a pool in one to three dimensions."""
    for kind, values in POOLS:
        for d in (1, 2, 3):

            def make(d: int = d, kind: str = kind, values: tuple[Any, ...] = values) -> Problem:
                conv, pool = getattr(nn, f"Conv{d}d")(3, 2, 2), getattr(nn, f"{kind}{d}d")(*values)
                return before_a_frozen_head(conv, nn.ReLU(), pool, inputs=normal(3, 3, *(5,) * d))

            yield f"{kind}{d}d{values}", make


def activation_cases() -> Iterator[tuple[str, Make]]:
    """A convolution, with and without a bias, and an activation."""
    for act in ACTIVATIONS:
        for bias in (True, False):

            def make(act: type[nn.Module] = act, bias: bool = bias) -> Problem:
                return before_a_frozen_head(nn.Conv2d(3, 2, 2, bias=bias), act(), inputs=normal(3, 3, 7, 7))

            yield f"{act.__name__}, {'bias' if bias else 'no bias'}", make


def recurrent(layer: nn.Module, *after: Any) -> nn.Sequential:
    """A recurrence, its states, and what follows."""
    return chain(Net(lambda m, x: m.layer(x)[0], layer=layer), *after)


def text_model(cell: type[nn.RNN] | type[nn.LSTM]) -> nn.Sequential:
    """An embedding, two layers of a recurrence with dropout, some biases frozen, and a head."""
    layer = cell(4, 4, num_layers=2, dropout=0.36, batch_first=True)
    for name in ("bias_ih_l0", "bias_ih_l1"):
        getattr(layer, name).requires_grad_(False)
    return chain(nn.Embedding(6, 4), nn.Dropout(0.2), recurrent(layer), nn.Dropout(0.2), nn.Linear(4, 6))


def block(inputs: int, outputs: int, stride: int = 1) -> Net:
    """The basic block of a residual network."""
    conv = chain(
        *(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)),
        *(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)),
    )
    narrow = chain(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    return Net(lambda m, x: (m.conv(x) + m.way(x)).relu(), conv=conv, way=narrow if stride > 1 else nn.Identity())


def small_residual() -> nn.Sequential:
    """A residual network of six blocks and up to eight channels."""
    stem = (nn.Conv2d(3, 2, 7, 2, 3, bias=False), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1))
    blocks = (block(2, 2), block(2, 2), block(2, 4, 2), block(4, 4), block(4, 8, 2), block(8, 8))
    return chain(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


def nested() -> nn.Sequential:
    """Branches in branches of convolutions."""
    inner = beside(chain(nn.Conv2d(2, 4, 3, 1, 1), nn.ReLU(), nn.Conv2d(4, 2, 3, 1, 1)))
    outer = beside(chain(nn.Conv2d(2, 4, 3, 1, 1), nn.Sigmoid(), nn.Conv2d(4, 2, 3, 1, 1), inner))
    return chain(nn.Conv2d(3, 2, 3, 1, 1), nn.ReLU(), outer, nn.MaxPool2d(3, 2), nn.Flatten(), nn.Linear(8, 5))


def adaptive(d: int, size: tuple[int, ...], shape: tuple[int, ...]) -> Problem:
    """A linear layer and an adaptive pool in d dimensions."""
    pool = getattr(nn, f"AdaptiveAvgPool{d}d")(size)
    return regressed(chain(nn.Linear(shape[-1], shape[-1]), pool, nn.Flatten()), normal(*shape))


BACKPACK: dict[str, Make] = {
    "linear": lambda: classified(nn.Linear(10, 5), normal(3, 10)),
    "two linear": lambda: classified(deep_linear(10, 7, 5), normal(3, 10)),
    "mlp, relu": lambda: classified(chain(nn.Linear(10, 7), nn.ReLU(), nn.Linear(7, 5)), normal(3, 10)),
    "mlp, sigmoid": lambda: regressed(chain(nn.Linear(10, 7), nn.Sigmoid(), nn.Linear(7, 5)), normal(3, 10)),
    "mlp, one output": lambda: regressed(chain(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 1)), normal(3, 6)),
    "one more dimension": lambda: regressed(chain(deep_linear(5, 3, 2), tokens), normal(3, 4, 5)),
    "two more dimensions": lambda: regressed(
        chain(nn.Linear(5, 3), nn.Sigmoid(), nn.Linear(3, 2), tokens), normal(3, 4, 2, 5)
    ),
    "three more dimensions": lambda: regressed(chain(deep_linear(5, 3, 2), tokens), normal(3, 4, 2, 3, 5)),
    "flat outputs of tokens": lambda: classified(chain(deep_linear(5, 3, 2), nn.Flatten()), normal(3, 4, 5)),
    "classes in dimension 1": lambda: classified(
        chain(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 2), pixels), normal(3, 4, 2, 3, 5)
    ),
    **dict(convolution_cases()),
    **dict(pooling_cases()),
    **dict(activation_cases()),
    "batch norm 1d": lambda: classified(chain(nn.BatchNorm1d(3), pixels), normal(2, 3, 4)),
    "batch norm 2d": lambda: classified(chain(nn.BatchNorm2d(2), pixels), normal(3, 2, 4, 3)),
    "batch norm 3d": lambda: classified(chain(nn.BatchNorm3d(3), pixels), normal(3, 3, 4, 1, 2)),
    "batch norms and linear": lambda: classified(
        chain(nn.BatchNorm3d(3), nn.Linear(2, 3), nn.BatchNorm3d(3), nn.ReLU(), nn.BatchNorm3d(3), pixels),
        normal(3, 3, 4, 1, 2),
    ),
    "rnn": lambda: classified(recurrent(nn.RNN(6, 3, batch_first=True)), normal(4, 5, 6)),
    "rnn, flat": lambda: regressed(recurrent(nn.RNN(6, 3, batch_first=True), nn.Flatten()), normal(4, 5, 6)),
    "rnn, linear": lambda: classified(recurrent(nn.RNN(6, 3, batch_first=True), nn.Linear(3, 3)), normal(4, 5, 6)),
    "lstm, flat": lambda: classified(recurrent(nn.LSTM(3, 4, batch_first=True), nn.Flatten()), normal(4, 5, 3)),
    "text, lstm": lambda: classified(text_model(nn.LSTM), integers(6, 3, 5)),
    "text, rnn": lambda: classified(text_model(nn.RNN), integers(6, 3, 5)),
    "embedding of a word": lambda: classified(chain(nn.Embedding(5, 3), nn.Linear(3, 4)), integers(5, 6)),
    "embedding, flat": lambda: classified(chain(nn.Embedding(3, 5), nn.Flatten()), integers(3, 4, 2, 2)),
    "adaptive pool 1d": lambda: adaptive(1, (3,), (2, 2, 9)),
    "adaptive pool 2d": lambda: adaptive(2, (3, 4), (2, 2, 6, 8)),
    "adaptive pool 3d": lambda: adaptive(3, (3, 5, 2), (2, 2, 9, 5, 4)),
    "pad": lambda: regressed(
        chain(
            nn.Conv2d(3, 2, 2),
            nn.ConstantPad2d((1, 1, 0, 2), 0.0),
            nn.Conv2d(2, 2, 3, 2),
            nn.Flatten(),
            nn.Linear(8, 2),
        ),
        normal(5, 3, 4, 4),
    ),
    "pad of channels": lambda: classified(
        chain(
            *(nn.Conv2d(3, 2, 3, padding=1), nn.ReLU(), lambda h: F.pad(h, (1, 1, 2, 0, 1, 2), value=1.0)),
            *(nn.Conv2d(5, 2, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)),
        ),
        normal(5, 3, 4, 4),
    ),
    "slice": lambda: classified(
        chain(nn.Conv2d(3, 2, 2, padding=1), lambda h: h[:, 0, ::2, :2], nn.ReLU(), nn.Flatten(), nn.Linear(6, 4)),
        normal(3, 3, 4, 5),
    ),
    "two slices": lambda: regressed(
        chain(nn.Conv2d(3, 2, 2, padding=1), lambda h: h[:, :, 2], nn.ReLU(), lambda h: h[:, 1], nn.Linear(6, 4)),
        normal(3, 3, 4, 5),
    ),
    "branches": lambda: classified(
        chain(nn.Linear(10, 5), nn.ReLU(), beside(nn.Linear(5, 5)), nn.Sigmoid(), nn.Linear(5, 4)), normal(3, 10)
    ),
    "branches of convolutions": lambda: classified(
        chain(
            *(
                nn.Conv2d(2, 3, 3, 1, 1),
                nn.ReLU(),
                beside(chain(nn.Conv2d(3, 5, 3, 1, 1), nn.ReLU(), nn.Conv2d(5, 3, 3, 1, 1))),
            ),
            *(nn.MaxPool2d(3, 2), nn.Flatten(), nn.Linear(12, 5)),
        ),
        normal(4, 2, 6, 6),
    ),
    "nested branches": lambda: classified(nested(), normal(4, 3, 6, 6)),
    "euler step": lambda: regressor(
        lambda m, x: x + 0.1 * m.net(x),
        normal(3, 2),
        net=chain(nn.Linear(2, 10), nn.Tanh(), nn.Linear(10, 10), nn.Tanh(), nn.Linear(10, 2)),
    ),
    "small residual net": lambda: regressed(small_residual(), normal(2, 3, 7, 7)),
    "in-place activation": lambda: regressed(
        chain(nn.Linear(3, 2), nn.ReLU(inplace=True), nn.Linear(2, 2)), normal(3, 3)
    ),
    "activation used three times": lambda: regressed(
        chain(relu := nn.ReLU(), nn.Linear(3, 2), relu, nn.Linear(2, 2), relu), normal(3, 3)
    ),
    "flatten": lambda: regressed(
        chain(nn.Linear(4, 3), lambda h: h.flatten(2), nn.Linear(6, 3), nn.Flatten()), normal(3, 2, 2, 4)
    ),
    "multiply": lambda: regressor(
        lambda m, x: (0.5 * m.linear(x * 2.5)).multiply(3.1415), normal(2, 4), linear=nn.Linear(4, 3)
    ),
    "add": lambda: regressor(
        lambda m, x: (m.a(h := m.first(x)) + (other := m.b(h))).relu().add(other),
        normal(3, 3),
        first=nn.Linear(3, 3),
        a=nn.Linear(3, 2),
        b=nn.Linear(3, 2),
    ),
    "permute": lambda: classified(chain(nn.Linear(3, 2), lambda h: h.mT, nn.Linear(5, 3)), normal(3, 5, 3)),
}

PEERS = {"curvlinops": CURVLINOPS, "NNGeometry": NNGEOMETRY, "BackPACK": BACKPACK}


def verdict(case: Case) -> tuple[str, str]:
    """What became of a model: agreed, in part, differs or refused, and why."""
    problem = case.build()
    try:
        instance = cb.Instance(problem.model, problem.inputs, problem.targets, loss=problem.loss)
    except ValueError as error:
        return "refused", str(error)
    expected, positions = oracle.fisher(*problem[:4]), oracle.positions(problem.model)
    covered = instance.unpack(torch.zeros(instance.size, dtype=instance.dtype))
    order = instance.pack({name: positions[name] for name in covered}).long()
    wanted = expected[order[:, None], order]
    found = cb.exact_fisher(instance, precision="native").to_dense()
    difference = float((found - wanted).norm() / wanted.norm())
    if not difference <= TOLERANCE:
        return "differs", f"relative difference {difference:.1e}"
    share = len(order) / len(expected)
    return ("agreed", "") if share == 1 else ("in part", f"{share:.0%} of the parameters")


def main() -> None:
    """Print the counts of each peer; exit code 1 if a Fisher differs."""
    total: Counter[str] = Counter()
    for peer, models in PEERS.items():
        verdicts = {name: verdict(Case(f"{peer}: {name}", make)) for name, make in models.items()}
        counts = Counter(kind for kind, _ in verdicts.values())
        total += counts
        print(f"{peer}: {len(models)} models,", ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items())))
        for name, (kind, why) in verdicts.items():
            if kind != "agreed":
                print(f"  {kind}: {name}: {why}")
    print("all:", ", ".join(f"{n} {kind}" for kind, n in sorted(total.items())))
    sys.exit(1 if total["differs"] else 0)


if __name__ == "__main__":
    main()
