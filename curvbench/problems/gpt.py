"""A causal language model. Source: A. Radford et al., "Language Models are Unsupervised Multitask Learners" (2019)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvbench.data import stories
from curvbench.spec import AdamRecipe, Dataset, Problem, Recipe, Trainer


@dataclass(frozen=True)
class GPT(Problem):
    """GPT-2's order of layers on embedded sentences: every token is a loss term, the word after it its class.

    ``vocabulary``: number of words, C; the sentences have about 40, and more classes never occur. ``tokens``: tokens of
    a sample. ``width``: width of the embedding. ``heads``: heads of each attention. ``depth``: number of blocks, each
    with attention and a feed-forward network of 4 width units. ``tied``: whether the embedding is the last layer too.
    ``optimizer``: what trains the network before it is measured, ``sgd`` or ``adam`` (AdamW).

    The exact Fisher has tokens (C - 1) columns per sample; ``mc_samples`` is for many words. With vocabulary=5000,
    tokens=16, width=256, heads=8 and depth=6 the model has 6.0 million parameters. There is no dropout.
    """

    vocabulary: int = 48
    tokens: int = 8
    width: int = 16
    heads: int = 2
    depth: int = 1
    tied: bool = True
    optimizer: Trainer = "sgd"
    mc_samples: int = 0
    samples: int = 8
    epochs: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.tokens, self.heads, self.depth) < 1:
            came = f"tokens={self.tokens}, heads={self.heads}, depth={self.depth}"
            raise ValueError(f"gpt: tokens >= 1, heads >= 1 and depth >= 1 expected, got {came}")
        if self.width < 1 or self.width % self.heads:
            raise ValueError(f"gpt: width must be a positive multiple of heads={self.heads}, got {self.width}")
        if self.vocabulary < stories.LEAST_VOCABULARY:
            raise ValueError(f"gpt: vocabulary must be at least {stories.LEAST_VOCABULARY}, got {self.vocabulary}")

    @property
    def recipe(self) -> Recipe:
        """Small batches, with the defaults of AdamW or the learning rate of SGD."""
        return AdamRecipe(batch=32) if self.optimizer == "adam" else Recipe(learning_rate=0.05, batch=32)

    def model(self) -> nn.Module:
        """Tokens (N, tokens) -> logits (N, tokens, C)."""
        return Network(self)

    def data(self, root: Path | None) -> Dataset:
        """Inputs and targets (N, tokens) int64; see ``curvbench.data.stories``."""
        return stories.continued(self.vocabulary, self.tokens)


class Network(nn.Module):
    """Embeddings of tokens and positions, blocks, a norm, and logits by the embedding or by a layer of their own."""

    def __init__(self, sizes: GPT) -> None:
        super().__init__()
        self.words, self.places = (_embedding(entries, sizes.width) for entries in (sizes.vocabulary, sizes.tokens))
        self.blocks = nn.Sequential(*(Block(sizes.width, sizes.heads) for _ in range(sizes.depth)))
        self.norm = nn.LayerNorm(sizes.width)
        self.head = None if sizes.tied else nn.Linear(sizes.width, sizes.vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, T) int64 -> (N, T, C)."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.norm(self.blocks(self.words(tokens) + self.places(places)))
        outputs: Tensor = F.linear(x, self.words.weight) if self.head is None else self.head(x)
        return outputs


class Block(nn.Module):
    """Causal self-attention and a feed-forward network, each behind a LayerNorm and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width) for _ in range(2))
        self.attention = Attention(width, heads)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) -> (N, T, width)."""
        x = x + self.attention(self.norm1(x))
        y: Tensor = x + self.feed(self.norm2(x))
        return y


class Attention(nn.Module):
    """Self-attention in several heads, in which no token sees those after it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) -> (N, T, width)."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        mixed: Tensor = self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return mixed


def _embedding(entries: int, width: int) -> nn.Embedding:
    """Normal entries, so small that the logits of the tied layer have variance 1."""
    embedding = nn.Embedding(entries, width)
    nn.init.normal_(embedding.weight, std=width**-0.5)
    return embedding
