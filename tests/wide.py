"""Networks whose last layer has more outputs than inputs."""

from __future__ import annotations

from typing import Any

import torch
from likelihoods import drawn
from torch import Tensor, nn

import curvbench as cb

C, D = 11, 4


class Tokens(nn.Module):
    """Tokens (N, T, 3) that see each other, with a vector among the layers; ``scale`` saturates the outputs."""

    def __init__(self, bias: bool = True, scale: float = 1.0) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, D), nn.LayerNorm(D), nn.Linear(D, C, bias=bias)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        return self.last(self.scale * self.norm(hidden + hidden.mean(1, keepdim=True)))


class Tied(nn.Module):
    """Embedding and output layer in one, and a bias of the outputs."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.embedding, self.middle = nn.Embedding(C, D), nn.Linear(D, D)
        self.bias = nn.Parameter(torch.zeros(C)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.middle(self.embedding(x).cumsum(1)))
        return nn.functional.linear(hidden, self.embedding.weight, self.bias)


def cnn() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, D), nn.Tanh(), nn.Linear(D, C))


def labels(*shape: int) -> Tensor:
    found = torch.randint(C, shape, generator=torch.Generator().manual_seed(1))
    found.view(-1)[1] = -100
    return found


CASES: dict[str, tuple[Any, Tensor, Tensor, Any]] = {
    "tokens": (Tokens, drawn(3, 2, 3), labels(3, 2), "cross_entropy"),
    "without a bias": (lambda: Tokens(bias=False), drawn(3, 2, 3), labels(3, 2), "cross_entropy"),
    "nearly certain": (lambda: Tokens(scale=60.0), drawn(3, 2, 3), labels(3, 2), "cross_entropy"),
    "images": (cnn, drawn(2, 1, 4, 4), labels(2), "cross_entropy"),
    "squares": (Tokens, drawn(3, 2, 3), drawn(3, 2, C), "gaussian"),
}


def instance_of(name: str, dtype: torch.dtype = torch.float64) -> cb.Instance:
    make, x, y, loss = CASES[name]
    torch.manual_seed(0)
    model = make().to(dtype)
    return cb.Instance(model, x.to(dtype), y.to(dtype) if y.is_floating_point() else y, loss)
