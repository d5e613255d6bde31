"""Small networks of the kinds that a user has, each with a batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import curvbench as cb


class Attention(nn.Module):
    """Two heads of self-attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        N, T, W = x.shape
        q, k, v = (z.reshape(N, T, 2, -1).transpose(1, 2) for z in self.qkv(x).chunk(3, -1))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(N, T, W))


class Transformer(nn.Module):
    """Embedding, positions, one block with norms, and a head: over the mean token, or tied to the embedding."""

    def __init__(self, words: int = 30, width: int = 16, tokens: int = 8, tied: bool = False) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(words, width), nn.Parameter(0.1 * torch.randn(tokens, width))
        self.before, self.attention, self.between = nn.LayerNorm(width), Attention(width), nn.LayerNorm(width)
        self.up, self.down, self.last = nn.Linear(width, 2 * width), nn.Linear(2 * width, width), nn.LayerNorm(width)
        self.head = nn.Linear(width, words if tied else 6, bias=not tied)
        self.tied = tied
        if tied:
            self.words.weight.data *= 0.1  # or every drawn label would be the same
            self.head.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens) + self.positions
        x = x + self.attention(self.before(x))
        x = self.last(x + self.down(F.gelu(self.up(self.between(x)))))
        return self.head(x if self.tied else x.mean(1))


class Network(NamedTuple):
    """A model and a batch."""

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    loss: str = "cross_entropy"

    def instance(self) -> cb.Instance:
        """The network in float64."""
        x = self.inputs.double() if self.inputs.is_floating_point() else self.inputs
        y = self.targets.double() if self.targets.is_floating_point() else self.targets
        return cb.Instance(self.model.double().eval(), x, y, self.loss)


def mlp() -> Network:
    layers = nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 8)
    return Network(nn.Sequential(*layers), torch.randn(10, 24), torch.arange(10) % 8)


def regression() -> Network:
    layers = nn.Linear(24, 40), nn.Tanh(), nn.Linear(40, 6, bias=False)
    return Network(nn.Sequential(*layers), torch.randn(10, 24), torch.randn(10, 6), "gaussian")


def cnn() -> Network:
    first = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU()
    second = nn.Conv2d(12, 16, 3, padding=1, stride=2, groups=2, bias=False), nn.ReLU()
    last = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 6)
    return Network(nn.Sequential(*first, *second, *last), torch.randn(5, 3, 8, 8), torch.arange(5) % 6)


def transformer() -> Network:
    return Network(Transformer(), torch.randint(30, (4, 8)), torch.arange(4) % 6)


def language() -> Network:
    tokens = torch.randint(10, (2, 4))
    return Network(Transformer(10, tokens=4, tied=True), tokens, tokens.roll(-1, 1))


NETWORKS = {f.__name__: f for f in (mlp, regression, cnn, transformer, language)}
