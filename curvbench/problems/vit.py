"""Attention over the patches of an image. Source: A. Dosovitskiy et al., ICLR 2021 (arXiv:2010.11929)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvbench import data
from curvbench.spec import Dataset, Problem, Recipe


@dataclass(frozen=True)
class ViT(Problem):
    """Vision Transformer: patches by a convolution, a class token, learned positions, blocks with the norm in front.

    ``dataset``: name of the data set of images. ``patch``: pixels along each side of a patch. ``width``: width of a
    token. ``heads``: heads of each attention. ``depth``: number of blocks, each with attention and a feed-forward
    network of 4 width units.

    The defaults are small. With width=256, heads=8 and depth=6 the model has 4.7 million parameters. There is no
    dropout.
    """

    recipe: ClassVar[Recipe] = Recipe(learning_rate=0.05, batch=32)

    dataset: str = "digits"
    patch: int = 2
    width: int = 16
    heads: int = 2
    depth: int = 1
    mc_samples: int = 0
    samples: int = 16
    epochs: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        size = data.info(self.dataset).size
        if min(self.heads, self.depth) < 1:
            raise ValueError(f"vit: heads >= 1 and depth >= 1 expected, got heads={self.heads}, depth={self.depth}")
        if self.patch < 1 or size % self.patch:
            raise ValueError(f"vit: patch must divide the {size} pixels of a side, got {self.patch}")
        if self.width < 1 or self.width % self.heads:
            raise ValueError(f"vit: width must be a positive multiple of heads={self.heads}, got {self.width}")

    def model(self) -> nn.Module:
        """(N, channels, size, size) -> (N, C)."""
        return Network(self)

    def data(self, root: Path | None) -> Dataset:
        """The data set, see ``curvbench.data.load``."""
        return data.load(self.dataset, root)


class Network(nn.Module):
    """Tokens of patches behind a class token, blocks, a norm, and logits from the class token."""

    def __init__(self, sizes: ViT) -> None:
        super().__init__()
        info, width = data.info(sizes.dataset), sizes.width
        self.patches = nn.Conv2d(info.channels, width, sizes.patch, sizes.patch)
        self.first = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.places = nn.Parameter(0.02 * torch.randn(1, 1 + (info.size // sizes.patch) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width, sizes.heads) for _ in range(sizes.depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, info.classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, size, size) -> (N, C)."""
        tokens = self.patches(x).flatten(2).mT
        tokens = torch.cat([self.first.expand(len(x), -1, -1), tokens], dim=1) + self.places
        outputs: Tensor = self.head(self.norm(self.blocks(tokens))[:, 0])
        return outputs


class Block(nn.Module):
    """Self-attention and a feed-forward network, each behind a LayerNorm and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width) for _ in range(2))
        self.attention = Attention(width, heads)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(N, S, width) -> (N, S, width)."""
        x = x + self.attention(self.norm1(x))
        y: Tensor = x + self.feed(self.norm2(x))
        return y


class Attention(nn.Module):
    """Self-attention in several heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, S, width) -> (N, S, width)."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        mixed: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return mixed
