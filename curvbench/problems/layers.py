"""Tiny classifiers of digits, one per kind of use of a parameter, which show the kinds that a probe covers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvbench import data
from curvbench.spec import Dataset, Problem, Recipe

Network = Literal[
    "linear",
    "conv1d",
    "conv1d-stride",
    "conv1d-dilation",
    "conv1d-groups",
    "conv1d-depthwise",
    "conv2d",
    "conv2d-stride",
    "conv2d-dilation",
    "conv2d-groups",
    "conv2d-depthwise",
    "conv3d",
    "conv1d-transposed",
    "conv2d-transposed",
    "batchnorm",
    "layernorm",
    "groupnorm",
    "rmsnorm",
    "embedding",
    "embedding-bag",
    "positions",
    "attention",
    "attention-packed",
    "lstm",
    "gru",
    "repeated",
    "tied",
    "experts",
    "low-rank",
    "weight-norm",
    "unrecognised",
    "sequence",
]
CLASSES, WIDTH, QUARTERS = 10, 8, 4
GREYS = (-0.5, 0.0, 0.5)  # limits of four grey levels; pixels have mean 0 and standard deviation 1


@dataclass(frozen=True)
class Layers(Problem):
    """A tiny network with one kind of use of its parameters, and Linear layers around it.

    ``network``: kind of use. One-dimensional convolutions take the rows of an image as channels, two-dimensional ones
    the four pixels of each 2 x 2 block. Embeddings take the grey levels of these blocks as 16 tokens. Attention,
    recurrent networks and ``sequence`` take the four quarters of an image; in ``sequence`` every quarter has a label.
    In ``tied`` the last layer is the embedding. The parameter of ``unrecognised`` is read by an operation that no rule
    knows, so that plain autograd makes its columns.
    """

    recipe: ClassVar[Recipe] = Recipe(learning_rate=0.05, batch=16)

    network: Network = "linear"
    samples: int = 8
    epochs: int = 0

    def model(self) -> nn.Module:
        """(N, 1, 8, 8) -> (N, C), for ``sequence`` (N, 4, C)."""
        return NETWORKS[self.network]()

    def data(self, root: Path | None) -> Dataset:
        """The digits; in ``sequence`` every quarter has the label of its image."""
        digits = data.load("digits", root)
        if self.network != "sequence":
            return digits
        train, test = (t[:, None].repeat(1, QUARTERS) for t in (digits.train_targets, digits.test_targets))
        return Dataset(digits.train_inputs, train, digits.test_inputs, test)


class Quarters(nn.Module):
    """(N, 1, 8, 8) to the four quarters of each image as vectors, (N, 4, 16)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(x, QUARTERS).flatten(2).mT


class Greys(nn.Module):
    """(N, 1, 8, 8) to the grey level of each 2 x 2 block, int64 (N, 16)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.bucketize(F.avg_pool2d(x, 2).flatten(1), x.new_tensor(GREYS))


class Attention(nn.Module):
    """Self-attention with two heads over vectors (N, S, 16), and the mean of its outputs, (N, WIDTH)."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(16, WIDTH) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        heads = (layer(x).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        outputs: Tensor = self.out(mixed)
        return outputs.mean(1)


class Positions(nn.Module):
    """A class token before the quarters of an image, and positions, as a Vision Transformer has them, (N, 5, 16)."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 16) / 4)
        self.places = nn.Parameter(torch.randn(1, QUARTERS + 1, 16) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places


class Packed(nn.Module):
    """Torch's own attention, whose projections of query, key and value are one parameter, (N, S, 16) -> (N, 16)."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.attention(x, x, x)[0]
        return outputs.mean(1)


class Last(nn.Module):
    """The last output of a recurrent layer, (N, S, 16) -> (N, WIDTH)."""

    def __init__(self, kind: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.layer = kind(16, WIDTH, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.layer(x)[0]
        return outputs[:, -1]


class Repeated(nn.Module):
    """One Linear, applied twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(torch.tanh(self.layer(x))))


class Tied(nn.Module):
    """An embedding of grey levels that gives the scores of the classes too, (N, 16) -> (N, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.mix = nn.Embedding(CLASSES, 4), nn.Linear(64, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.mix(self.embedding(tokens).flatten(1))), self.embedding.weight)


class Experts(nn.Module):
    """An expert per quarter of an image, all in one parameter, (N, 4, 16) -> (N, 4 WIDTH)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(QUARTERS, 16, WIDTH) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(x.transpose(0, 1), self.weight).transpose(0, 1).flatten(1)


class LowRank(nn.Module):
    """A frozen matrix plus a trained one of rank 2, as an adapter has them."""

    base: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("base", torch.randn(WIDTH, 64) / 8)
        self.down, self.up = nn.Parameter(torch.randn(2, 64) / 8), nn.Parameter(torch.randn(WIDTH, 2))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.base + self.up @ self.down)


class Distances(nn.Module):
    """Distances to trained prototypes."""

    def __init__(self) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(4, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(x, self.prototypes)


def _dense(*between: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, WIDTH), *between, nn.ReLU(), nn.Linear(WIDTH, CLASSES))


def _conv1d(outputs: int = 4, stride: int = 1, dilation: int = 1, groups: int = 1) -> nn.Module:
    convolution = nn.Conv1d(8, outputs, 3, stride, padding=dilation, dilation=dilation, groups=groups)
    pool = nn.AdaptiveAvgPool1d(2)
    return nn.Sequential(nn.Flatten(1, 2), convolution, nn.ReLU(), pool, nn.Flatten(), nn.Linear(2 * outputs, CLASSES))


def _voxels() -> nn.Module:
    blocks = nn.Sequential(nn.PixelUnshuffle(2), nn.Unflatten(1, (1, 4)), nn.Conv3d(1, 3, 2), nn.ReLU())
    return nn.Sequential(blocks, nn.AdaptiveAvgPool3d((1, 2, 2)), nn.Flatten(), nn.Linear(12, CLASSES))


def _transposed1d() -> nn.Module:
    layer = nn.ConvTranspose1d(8, 4, 3, stride=2, padding=1, output_padding=1)
    return nn.Sequential(
        nn.Flatten(1, 2), layer, nn.ReLU(), nn.AdaptiveAvgPool1d(2), nn.Flatten(), nn.Linear(8, CLASSES)
    )


def _transposed2d() -> nn.Module:
    layer = nn.ConvTranspose2d(4, 2, 2, stride=2)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8, CLASSES))
    return nn.Sequential(nn.PixelUnshuffle(2), layer, nn.ReLU(), head)


def _quarters(*middle: nn.Module, width: int = WIDTH) -> nn.Module:
    return nn.Sequential(Quarters(), *middle, nn.Linear(width, CLASSES))


def _conv2d(*between: nn.Module, stride: int = 1, dilation: int = 1, groups: int = 1) -> nn.Module:
    convolution = nn.Conv2d(4, 4, 3, stride, padding=dilation, dilation=dilation, groups=groups)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, CLASSES))
    return nn.Sequential(nn.PixelUnshuffle(2), convolution, *between, nn.ReLU(), head)


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "linear": _dense,
    "conv1d": _conv1d,
    "conv1d-stride": lambda: _conv1d(stride=2),
    "conv1d-dilation": lambda: _conv1d(dilation=2),
    "conv1d-groups": lambda: _conv1d(groups=2),
    "conv1d-depthwise": lambda: _conv1d(8, groups=8),
    "conv2d": _conv2d,
    "conv2d-stride": lambda: _conv2d(stride=2),
    "conv2d-dilation": lambda: _conv2d(dilation=2),
    "conv2d-groups": lambda: _conv2d(groups=2),
    "conv2d-depthwise": lambda: _conv2d(groups=4),
    "conv3d": _voxels,
    "conv1d-transposed": _transposed1d,
    "conv2d-transposed": _transposed2d,
    "batchnorm": lambda: _conv2d(nn.BatchNorm2d(4)),
    "layernorm": lambda: _dense(nn.LayerNorm(WIDTH)),
    "groupnorm": lambda: _conv2d(nn.GroupNorm(2, 4)),
    "rmsnorm": lambda: _dense(nn.RMSNorm(WIDTH)),
    "embedding": lambda: nn.Sequential(Greys(), nn.Embedding(4, 2), nn.Flatten(), nn.Linear(32, CLASSES)),
    "embedding-bag": lambda: nn.Sequential(Greys(), nn.EmbeddingBag(4, WIDTH), nn.Linear(WIDTH, CLASSES)),
    "positions": lambda: _quarters(Positions(), nn.Tanh(), nn.Flatten(), width=16 * (QUARTERS + 1)),
    "attention": lambda: _quarters(Attention()),
    "attention-packed": lambda: _quarters(Packed(), width=16),
    "lstm": lambda: _quarters(Last(nn.LSTM)),
    "gru": lambda: _quarters(Last(nn.GRU)),
    "repeated": lambda: _dense(Repeated()),
    "tied": lambda: nn.Sequential(Greys(), Tied()),
    "experts": lambda: _quarters(Experts(), nn.Tanh(), width=QUARTERS * WIDTH),
    "low-rank": lambda: nn.Sequential(nn.Flatten(), LowRank(), nn.Tanh(), nn.Linear(WIDTH, CLASSES)),
    "weight-norm": lambda: _dense(nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))),
    "unrecognised": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, WIDTH), Distances(), nn.Linear(4, CLASSES)),
    "sequence": lambda: nn.Sequential(Quarters(), nn.Linear(16, WIDTH), nn.Tanh(), nn.Linear(WIDTH, CLASSES)),
}
