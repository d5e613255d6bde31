"""Encoder and decoder of attention layers. Source: A. Vaswani et al., NeurIPS 2017 (arXiv:1706.03762)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvbench import data
from curvbench.data import sentences
from curvbench.data.scores import bleu
from curvbench.spec import Dataset, Problem, Recipe

GREY_LEVELS = 17
HALF_IMAGE = 32  # pixels of half an image of digits
WORDS = 1000
DECODED = 256  # sentences that are translated in one batch


@dataclass(frozen=True)
class Transformer(Problem):
    """Sequence-to-sequence Transformer: German from English, or the lower half of digits from the upper.

    The task digits predicts the first pixels of the lower half (at most 32) from as many last pixels of the upper half;
    classes are the 17 grey levels. Every target token is a loss term, so that a sample has length (C - 1) score
    columns; a token that fills a sequence is no loss term.

    ``task``: digits, multi30k or wmt14 (see ``curvbench.data.sentences``). ``length``: maximum number of tokens of a
    sequence. ``vocabulary``: number of words, the most frequent ones; 0 takes 1,000. ``width``: width of the embedding.
    ``hidden``: units of the feed-forward networks. ``heads``: heads of each attention. ``depth``: layers of the
    encoder, and of the decoder.

    The defaults are small. FNGD's section VI-B names no sizes; those of the paper above are width=512, hidden=2048,
    heads=8, depth=6, and for its "big" network width=1024, hidden=4096, heads=16, depth=6. Normalisation follows each
    sublayer. The attention has no biases, because the bias of the keys would have no gradient. There is no dropout. The
    last layer shares no weights with the embeddings.
    """

    recipe: ClassVar[Recipe] = Recipe(learning_rate=0.05)

    task: Literal["digits", "multi30k", "wmt14"] = "digits"
    width: int = 16
    hidden: int = 32
    heads: int = 2
    depth: int = 1
    vocabulary: int = 0
    length: int = 8
    mc_samples: int = 0
    samples: int = 16
    epochs: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task not in (tasks := ("digits", *sentences.CORPORA)):
            raise ValueError(f"transformer: task must be one of {', '.join(tasks)}, got {self.task!r}")
        if min(self.width, self.hidden, self.heads, self.depth, self.length) < 1:
            raise ValueError("transformer: width, hidden, heads, depth and length must be at least 1")
        if self.width % self.heads or self.width % 2:
            raise ValueError(f"transformer: width must be even and a multiple of heads={self.heads}, got {self.width}")
        if self.task == "digits" and (self.vocabulary or self.length > HALF_IMAGE):
            expected = f"digits have {GREY_LEVELS} grey levels (vocabulary=0) and length <= {HALF_IMAGE}"
            raise ValueError(f"transformer: {expected}, got vocabulary={self.vocabulary}, length={self.length}")
        if self.classes < sentences.LEAST_VOCABULARY:
            raise ValueError(f"transformer: vocabulary must be at least {sentences.LEAST_VOCABULARY}, or 0 for {WORDS}")

    @property
    def classes(self) -> int:
        """The number of classes, C."""
        return GREY_LEVELS if self.task == "digits" else self.vocabulary or WORDS

    def model(self) -> nn.Module:
        """Tokens (N, 2 length) of the source and of the decoder -> logits (N, length, C)."""
        return Network(self.classes, self.length, self.width, self.hidden, self.heads, self.depth)

    def data(self, root: Path | None) -> Dataset:
        """Inputs (N, 2 length) and targets (N, length), both int64; see ``curvbench.data.sentences``."""
        if self.task == "digits":
            return _halves(self.length)
        return sentences.parallel(self.task, root, self.classes, self.length)

    @property
    def scores(self) -> tuple[str, ...]:
        """The name of the BLEU score of translations; none for digits."""
        return () if self.task == "digits" else ("test.bleu",)

    def score(self, model: nn.Module, dataset: Dataset) -> dict[str, float]:
        """BLEU of greedy translations of the test part."""
        if not isinstance(dataset, sentences.Texts):
            return {}
        assert isinstance(model, Network)
        translations = greedy(model, dataset.test_inputs[:, : self.length], sentences.begin(self.classes))
        return {"test.bleu": bleu([dataset.decode(ids) for ids in translations.tolist()], dataset.references)}


def _halves(length: int) -> Dataset:
    """The pixels around the middle of each image as grey levels 0 to 16, row by row."""
    images = data.load("digits")
    assert isinstance(images.train_inputs, Tensor) and isinstance(images.test_inputs, Tensor)
    pixels = torch.cat([images.train_inputs, images.test_inputs]).flatten(1)
    levels = pixels.unique(return_inverse=True)[1]
    source, target = levels[:, HALF_IMAGE - length : HALF_IMAGE], levels[:, HALF_IMAGE : HALF_IMAGE + length]
    inputs, targets = sentences.translation(source.tolist(), target.tolist(), GREY_LEVELS, length)
    train = len(images.train_inputs)
    return Dataset(inputs[:train], targets[:train], inputs[train:], targets[train:])


class Network(nn.Module):
    """Embeddings with sinusoidal positions, ``depth`` encoder and decoder layers, and a linear layer to C logits."""

    positions: Tensor

    def __init__(self, classes: int, length: int, width: int, hidden: int, heads: int, depth: int) -> None:
        super().__init__()
        self.length, self.padding, self.scale = length, sentences.padding(classes), math.sqrt(width)
        self.source, self.target = (_embedding(classes + 2, width) for _ in range(2))
        self.register_buffer("positions", _sinusoids(length, width))
        self.encoder = nn.ModuleList(EncoderLayer(width, hidden, heads) for _ in range(depth))
        self.decoder = nn.ModuleList(DecoderLayer(width, hidden, heads) for _ in range(depth))
        self.fc = _linear(width, classes, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, 2 length) int64 -> (N, length, C)."""
        source, target = tokens.split(self.length, dim=1)
        return self.decode(target, self.encode(source), source)

    def encode(self, source: Tensor) -> Tensor:
        """Tokens (N, length) -> the encoder's output, (N, length, width)."""
        filled = (source == self.padding)[:, None, None]
        memory = self.source(source) * self.scale + self.positions
        for layer in self.encoder:
            memory = layer(memory, filled)
        return memory

    def decode(self, target: Tensor, memory: Tensor, source: Tensor) -> Tensor:
        """The decoder's tokens so far, (N, T), with the encoder's output and input -> logits (N, T, C)."""
        T = target.shape[1]
        filled = (source == self.padding)[:, None, None]
        future = torch.ones(T, T, dtype=torch.bool, device=target.device).triu(1)
        x = self.target(target) * self.scale + self.positions[:T]
        for layer in self.decoder:
            x = layer(x, memory, future, filled)
        outputs: Tensor = self.fc(x)
        return outputs


@torch.no_grad()
def greedy(model: Network, source: Tensor, begin: int) -> Tensor:
    """Target tokens (N, length) for a source (N, length): token by token the most probable one after the others.

    The result is on the model's device; tokens after the end of a sentence have no meaning.
    """
    device = model.positions.device
    translations = []
    for part in source.to(device).split(DECODED):
        memory = model.encode(part)
        target = part.new_full((len(part), 1), begin)
        for _ in range(model.length):
            target = torch.cat([target, model.decode(target, memory, part)[:, -1].argmax(-1, keepdim=True)], dim=1)
        translations.append(target[:, 1:])
    return torch.cat(translations)


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward network, each with a shortcut and LayerNorm."""

    def __init__(self, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.attention, self.norm1 = Attention(width, heads), nn.LayerNorm(width)
        self.feed, self.norm2 = FeedForward(width, hidden), nn.LayerNorm(width)

    def forward(self, x: Tensor, unseen: Tensor) -> Tensor:
        """(N, S, width) -> (N, S, width)."""
        x = self.norm1(x + self.attention(x, x, unseen))
        return self.norm2(x + self.feed(x))


class DecoderLayer(nn.Module):
    """Self-attention, attention to the encoder's output and a feed-forward network, each as in ``EncoderLayer``."""

    def __init__(self, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.attention, self.norm1 = Attention(width, heads), nn.LayerNorm(width)
        self.cross, self.norm2 = Attention(width, heads), nn.LayerNorm(width)
        self.feed, self.norm3 = FeedForward(width, hidden), nn.LayerNorm(width)

    def forward(self, x: Tensor, memory: Tensor, future: Tensor, filled: Tensor) -> Tensor:
        """(N, T, width) and the encoder's output (N, S, width) -> (N, T, width)."""
        x = self.norm1(x + self.attention(x, x, future))
        x = self.norm2(x + self.cross(x, memory, filled))
        return self.norm3(x + self.feed(x))


class Attention(nn.Module):
    """Scaled dot-product attention in several heads, written out: torch's own has no forward-mode derivative on CPU."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (_linear(width, width, bias=False) for _ in range(4))

    def forward(self, x: Tensor, memory: Tensor, unseen: Tensor) -> Tensor:
        """Queries from x (N, T, width), keys and values from memory (N, S, width); ``unseen`` is true where hidden."""
        q, k, v = self._split(self.query(x)), self._split(self.key(memory)), self._split(self.value(memory))
        scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(unseen, -math.inf)
        heads = torch.softmax(scores, dim=-1) @ v
        mixed: Tensor = self.out(heads.transpose(1, 2).flatten(2))
        return mixed

    def _split(self, x: Tensor) -> Tensor:
        """(N, S, width) -> (N, heads, S, width / heads)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    """Linear, ReLU, Linear at each position."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = _linear(width, hidden), _linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, S, width) -> (N, S, width)."""
        y: Tensor = self.fc2(F.relu(self.fc1(x)))
        return y


def _sinusoids(length: int, width: int) -> Tensor:
    """sin(t / 10000^(2i / width)) and the cosine in turn, (length, width)."""
    rates = 10000.0 ** (-torch.arange(0, width, 2) / width)
    angles = torch.arange(length)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def _embedding(entries: int, width: int) -> nn.Embedding:
    embedding = nn.Embedding(entries, width)
    nn.init.normal_(embedding.weight, std=width**-0.5)
    return embedding


def _linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    linear = nn.Linear(inputs, outputs, bias=bias)
    nn.init.xavier_uniform_(linear.weight)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear
