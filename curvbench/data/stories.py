"""The embedded documents as rows of word ids, for networks that continue a text; no file and no library is needed."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from curvbench.data.documents import tiny
from curvbench.spec.problem import Dataset

FILLING, BEGIN, END, UNKNOWN = range(4)  # what libraries take these ids for; of them, texts hold UNKNOWN alone
LEAST_VOCABULARY = 5  # these four and a word


def rows(vocabulary: int, length: int) -> tuple[Tensor, Tensor]:
    """A row of ``length`` words from the beginning of each document on: (192, length) and (48, length), int64.

    A row goes on with the documents that follow, after the last one with the first. Ids are below ``vocabulary``:
    the most frequent words of the training part have one each, all other words are ``UNKNOWN``. With more ids than
    words, about 40, the last ids occur nowhere.
    """
    (train, _), (test, _) = tiny()
    counts = Counter(word for document in train for word in document.split())
    ids = {word: UNKNOWN + 1 + k for k, (word, _) in enumerate(counts.most_common(vocabulary - UNKNOWN - 1))}
    return _rows(train, ids, length), _rows(test, ids, length)


def continued(vocabulary: int, tokens: int) -> Dataset:
    """Inputs (N, tokens) and, as targets (N, tokens), the word after each of them, see ``rows``."""
    train, test = rows(vocabulary, tokens + 1)
    return Dataset(train[:, :-1], train[:, 1:], test[:, :-1], test[:, 1:])


def _rows(documents: Sequence[str], ids: Mapping[str, int], length: int) -> Tensor:
    words = [[ids.get(word, UNKNOWN) for word in document.split()] for document in documents]
    text = np.array(list(itertools.chain(*words)))
    starts = np.cumsum([0, *map(len, words[:-1])])
    return torch.from_numpy(text[(starts[:, None] + np.arange(length)) % len(text)])
