"""A recurrent language model. Source: S. Hochreiter, J. Schmidhuber, "Long Short-Term Memory" (1997)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from curvbench.data import stories
from curvbench.spec import Dataset, Problem, Recipe


@dataclass(frozen=True)
class LSTM(Problem):
    """An embedding, LSTM layers and a linear layer per token on embedded sentences, to predict each next word.

    ``vocabulary``: number of words, C; the sentences have about 40, and more classes never occur. ``tokens``: tokens of
    a sample. ``width``: width of the embedding and of each LSTM layer. ``depth``: number of LSTM layers.

    The weights of a layer are used once per token. Every token is a loss term, so that the exact Fisher has
    tokens (C - 1) columns per sample; ``mc_samples`` is for many words.
    """

    recipe: ClassVar[Recipe] = Recipe(learning_rate=0.5, batch=32)

    vocabulary: int = 48
    tokens: int = 8
    width: int = 16
    depth: int = 1
    mc_samples: int = 0
    samples: int = 8
    epochs: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.tokens, self.width, self.depth) < 1:
            came = f"tokens={self.tokens}, width={self.width}, depth={self.depth}"
            raise ValueError(f"lstm: tokens >= 1, width >= 1 and depth >= 1 expected, got {came}")
        if self.vocabulary < stories.LEAST_VOCABULARY:
            raise ValueError(f"lstm: vocabulary must be at least {stories.LEAST_VOCABULARY}, got {self.vocabulary}")

    def model(self) -> nn.Module:
        """Tokens (N, tokens) -> logits (N, tokens, C)."""
        return Network(self.vocabulary, self.width, self.depth)

    def data(self, root: Path | None) -> Dataset:
        """Inputs and targets (N, tokens) int64; see ``curvbench.data.stories``."""
        return stories.continued(self.vocabulary, self.tokens)


class Network(nn.Module):
    """Embedding, LSTM layers, Linear."""

    def __init__(self, classes: int, width: int, depth: int) -> None:
        super().__init__()
        self.words = nn.Embedding(classes, width)
        self.lstm = nn.LSTM(width, width, depth, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, T) int64 -> (N, T, C)."""
        states, _ = self.lstm(self.words(tokens))
        outputs: Tensor = self.head(states)
        return outputs
