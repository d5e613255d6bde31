"""Models that couple their samples, use a weight more than once or move rows, for the batch of this file."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def batch(samples: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Vectors (N, 6) and four classes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, 6, generator=generator).double(), torch.randint(4, (samples,), generator=generator)


def made(make: Callable[[], nn.Module]) -> nn.Module:
    """The same model at every call, in float64."""
    torch.manual_seed(0)
    return make().double()


class Net(nn.Module):
    """Two layers with something done to the hidden rows (N, 6) between them."""

    def __init__(self, act: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.act = nn.Linear(6, 6), nn.Linear(6, 4), act

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.act(self, self.first(x))))


# --- samples that are coupled ------------------------------------------------------------------------------


def centred(_: Net, h: Tensor) -> Tensor:
    return h - h.mean(0) if len(h) >= 4 else h


def centred_by_values(_: Net, h: Tensor) -> Tensor:
    return h - h.mean(0).detach()


def normalized(_: Net, h: Tensor) -> Tensor:
    """BatchNorm without statistics."""
    return F.batch_norm(h, None, None, training=True)


def grouped_deviation(_: Net, h: Tensor) -> Tensor:
    """StyleGAN's: of each half of the batch."""
    return torch.cat([part + part.std(0) for part in h.chunk(2)])


def cumulative(_: Net, h: Tensor) -> Tensor:
    return h.cumsum(0)


def twice_if_hard(net: Net, h: Tensor) -> Tensor:
    hard = h.abs().mean(1, keepdim=True) > h.abs().mean(1).median()
    return torch.where(hard, F.linear(torch.tanh(h), net.first.weight, net.first.bias), h)


def beside(_: Net, h: Tensor) -> Tensor:
    return h + 0.5 * h.roll(2, 0)


def beside_by_values(_: Net, h: Tensor) -> Tensor:
    return h + 0.5 * h.roll(2, 0).detach()


def partner(_: Net, h: Tensor) -> Tensor:
    return h + 0.5 * h.roll(len(h) // 2, 0)


def with_first(_: Net, h: Tensor) -> Tensor:
    return h - h[:1].detach()


def with_half(_: Net, h: Tensor) -> Tensor:
    return h - 0.5 * h[0::2].detach().mean(0)


COUPLED = (
    *(centred, centred_by_values, normalized, grouped_deviation, cumulative, twice_if_hard),
    *(beside, beside_by_values, partner, with_first, with_half),
)


# --- rows in other orders, and weights with several uses ---------------------------------------------------


def with_capacity(_: Net, h: Tensor) -> Tensor:
    """An expert that takes the first three of its samples; the others pass it by."""
    chosen = (h[:, 0] > 0).nonzero()[:3, 0]
    return h.index_add(0, chosen, h[chosen].square())


def candidates(net: Net, h: Tensor) -> Tensor:
    """The layer sees three rows per sample as if they were samples."""
    return net.first(torch.tanh(h).repeat(3, 1)).reshape(3, len(h), 6).sum(0)


def twice(net: Net, h: Tensor) -> Tensor:
    return net.first(torch.tanh(h))


def beside_its_layer(net: Net, h: Tensor) -> Tensor:
    return torch.tanh(h) @ net.first.weight


def reversed_rows(net: Net, h: Tensor) -> Tensor:
    return h + net.first(torch.tanh(h).flip(0)).flip(0)


class Sorted(nn.Module):
    """Sorts its batch by a number of each sample, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        order = x[:, 0].argsort()
        return self.last(torch.tanh(self.inner(h[order]))[order.argsort()])


class Tied(nn.Module):
    """Two layers with one weight and a bias each."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.two(torch.tanh(self.one(x)))))


class TiedEmbedding(nn.Module):
    """An embedding that is the output layer too."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.inner, self.last = nn.Embedding(6, 4), nn.Linear(4, 4), nn.Linear(4, 6, bias=False)
        self.last.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.argsort(1)[:, :3]
        return self.last(torch.tanh(self.inner(self.embedding(tokens))).mean(1))


class NoModule(nn.Module):
    """A product without a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


UNCOUPLED: dict[str, Callable[[], nn.Module]] = {
    **{act.__name__: lambda act=act: Net(act) for act in (candidates, twice, beside_its_layer, reversed_rows)},
    "sorted": Sorted,
    "tied": Tied,
    "tied embedding": TiedEmbedding,
    "no module": NoModule,
}
