"""Multi30k as token ids: English sentences and their German translations, in the most frequent words of each.

Under the data folder, as the authors pack them::

    multi30k/{train,test_2016_flickr}.{en,de}.gz

Source: D. Elliott, S. Frank, K. Sima'an, L. Specia, "Multi30K: Multilingual English-German Image Descriptions" (2016),
https://github.com/multi30k/dataset (data/task1/raw).
"""

from __future__ import annotations

import gzip
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from curvbench.likelihood import IGNORED
from curvbench.spec import Dataset, Skip

FOLDER = "multi30k"
PARTS = ("train", "test_2016_flickr")
LANGUAGES = ("en", "de")
END, UNKNOWN = 0, 1
LEAST_VOCABULARY = 3  # END, UNKNOWN and a word

Sentences = Sequence[Sequence[str]]


def begin(vocabulary: int) -> int:
    """The id that starts what a decoder reads: the first that is no class."""
    return vocabulary


def padding(vocabulary: int) -> int:
    """The id that fills up sequences: the second that is no class."""
    return vocabulary + 1


def multi30k(root: Path | None, vocabulary: int, length: int) -> Dataset:
    """Translation from English to German: inputs (N, 2 length) int64, targets (N, length) int64.

    Each language has its own ids below ``vocabulary``: 0 ends a sentence, 1 is every word that is not among the most
    frequent ones of the training part. Sentences are cut after ``length`` tokens. Inputs are the English tokens and
    then what a decoder reads, ``begin`` and the German tokens but for the last; both filled up with ``padding``.
    Targets are the German tokens, filled up with -100, which is no loss term.

    Raises:
        Skip: the files are not there; the text says where they are to be had.
        ValueError: a file is damaged.
    """
    folder = _folder(root)
    train, test = (_pair(folder, part) for part in PARTS)
    known = [_ids(sentences, vocabulary) for sentences in train]
    parts: list[Tensor] = []
    for part in (train, test):
        source, target = (_rows(sentences, ids, length) for sentences, ids in zip(part, known, strict=True))
        parts += translation(source, target, vocabulary, length)
    return Dataset(*parts)


def translation(
    source: Sequence[Sequence[int]], target: Sequence[Sequence[int]], vocabulary: int, length: int
) -> tuple[Tensor, Tensor]:
    """Ids of at most ``length`` tokens each as inputs (N, 2 length) and targets (N, length), see ``multi30k``."""
    pad = padding(vocabulary)
    read = [[begin(vocabulary), *sentence[:-1]] for sentence in target]
    inputs = torch.cat([_filled(source, pad, length), _filled(read, pad, length)], dim=1)
    return inputs, _filled(target, IGNORED, length)


def _filled(rows: Iterable[Sequence[int]], filler: int, length: int) -> Tensor:
    return torch.tensor([[*row, *[filler] * (length - len(row))] for row in rows])


def _folder(root: Path | None) -> Path:
    """The folder with all files, or Skip."""
    place = root or os.environ.get("CURVBENCH_DATA")
    files = [f"{part}.{language}.gz" for part, language in itertools.product(PARTS, LANGUAGES)]
    advice = f"get {', '.join(files)} from data/task1/raw of https://github.com/multi30k/dataset"
    if not place:
        raise Skip(f"no folder for {FOLDER} is given: {advice} into DIR/{FOLDER}, then --data DIR")
    folder = Path(place) / FOLDER
    if lacking := [file for file in files if not (folder / file).is_file()]:
        raise Skip(f"{FOLDER} is absent ({folder / lacking[0]}): {advice} into {folder}")
    return folder


def _pair(folder: Path, part: str) -> list[Sentences]:
    """A part in every language, as many sentences in each."""
    found = [_sentences(folder / f"{part}.{language}.gz") for language in LANGUAGES]
    if len({len(sentences) for sentences in found}) > 1:
        counts = ", ".join(f"{len(s)} {'sentences ' * (k == 0)}in {LANGUAGES[k]}" for k, s in enumerate(found))
        raise ValueError(f"{folder / part} is damaged: {counts}; remove its files and get them again")
    return found


def _sentences(path: Path) -> Sentences:
    """Lower-case words and punctuation marks of each line."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            found = [re.findall(r"\w+|[^\w\s]", line.lower()) for line in file]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}; remove it and get it again") from error
    if not found:
        raise ValueError(f"{path} is damaged: it is empty; remove it and get it again")
    return found


def _ids(sentences: Sentences, vocabulary: int) -> Mapping[str, int]:
    """Ids of the most frequent words; of equally frequent ones the first to occur."""
    counts = Counter(word for sentence in sentences for word in sentence)
    return {word: UNKNOWN + 1 + k for k, (word, _) in enumerate(counts.most_common(vocabulary - 2))}


def _rows(sentences: Sentences, ids: Mapping[str, int], length: int) -> list[list[int]]:
    return [[*(ids.get(word, UNKNOWN) for word in sentence), END][:length] for sentence in sentences]
