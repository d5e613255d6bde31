"""Sentences as token ids: parallel corpora for translation, in the most frequent words of each language.

Under the data folder, as the authors pack them, each file as such or gzipped::

    multi30k/{train,test_2016_flickr}.{en,de}
    wmt14/{train,newstest2014}.{en,de}

Sources: D. Elliott, S. Frank, K. Sima'an, L. Specia, "Multi30K: Multilingual English-German Image Descriptions" (2016),
https://github.com/multi30k/dataset (data/task1/raw); WMT 2014 as https://nlp.stanford.edu/projects/nmt/ has it.
"""

from __future__ import annotations

import gzip
import itertools
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from curvbench.data.images import damaged, find
from curvbench.instance.likelihood import IGNORED
from curvbench.spec.outcomes import Skip
from curvbench.spec.problem import Dataset

END, UNKNOWN = 0, 1
LEAST_VOCABULARY = 3  # END, UNKNOWN and a word
LANGUAGES = ("en", "de")


@dataclass(frozen=True)
class Corpus:
    """Where parallel sentences stand: a folder, the training and the test part in it, and who has them."""

    folder: str
    parts: tuple[str, str]
    origin: str


CORPORA: Mapping[str, Corpus] = {
    "multi30k": Corpus(
        "multi30k", ("train", "test_2016_flickr"), "data/task1/raw of https://github.com/multi30k/dataset"
    ),
    "wmt14": Corpus("wmt14", ("train", "newstest2014"), "https://nlp.stanford.edu/projects/nmt/"),
}


@dataclass(frozen=True)
class Texts(Dataset):
    """Token ids whose targets are texts: those of the test part, and how ids of one target become text again."""

    train_inputs: Tensor
    test_inputs: Tensor
    references: Sequence[str]
    decode: Callable[[Sequence[int]], str]


def begin(vocabulary: int) -> int:
    """The id that starts what a decoder reads: the first that is no class."""
    return vocabulary


def padding(vocabulary: int) -> int:
    """The id that fills up sequences: the second that is no class."""
    return vocabulary + 1


def parallel(corpus: str, root: Path | None, vocabulary: int, length: int) -> Texts:
    """Translation from English to German: inputs (N, 2 length) int64, targets (N, length) int64.

    Each language has its own ids below ``vocabulary``: 0 ends a sentence, 1 is every word that is not among the most
    frequent ones of the training part. Sentences are cut after ``length`` tokens. Inputs are the English tokens and
    then what a decoder reads, ``begin`` and the German tokens but for the last; both filled up with ``padding``.
    Targets are the German tokens, filled up with -100, which is no loss term. References are whole lines.

    Raises:
        Skip: the files are not there; the text says where they are to be had.
        ValueError: a file is damaged.
    """
    known = CORPORA[corpus]
    files = [f"{part}.{language}" for part, language in itertools.product(known.parts, LANGUAGES)]
    paths = place(known.folder, root, files, known.origin)
    train, test = ([paths[f"{part}.{language}"] for language in LANGUAGES] for part in known.parts)
    ids = [_frequent(path, vocabulary) for path in train]
    pairs = (_pair(part, ids, vocabulary, length) for part in (train, test))
    return Texts(*next(pairs), *next(pairs), [line.strip() for line in lines(test[1])], Words(ids[1]))


class Words:
    """Ids of one sentence to its words, up to the end."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        self.words = {number: word for word, number in ids.items()}

    def __call__(self, ids: Sequence[int]) -> str:
        return " ".join(self.words.get(number, "<unk>") for number in itertools.takewhile(lambda k: k != END, ids))


def _pair(
    paths: Sequence[Path], ids: Sequence[Mapping[str, int]], vocabulary: int, length: int
) -> tuple[Tensor, Tensor]:
    """One part in both languages, as many sentences in each."""
    source, target = (_rows(path, known, length) for path, known in zip(paths, ids, strict=True))
    if len(source) != len(target):
        counts = f"{len(source)} sentences in {paths[0].name}, {len(target)} in {paths[1].name}"
        raise damaged(paths[0].parent, "as many sentences in both languages", counts)
    return translation(source, target, vocabulary, length)


def _frequent(path: Path, vocabulary: int) -> dict[str, int]:
    """Ids of the most frequent words; of equally frequent ones the first to occur."""
    counts = Counter(word for line in lines(path) for word in _split(line))
    return {word: UNKNOWN + 1 + k for k, (word, _) in enumerate(counts.most_common(vocabulary - 2))}


def _rows(path: Path, ids: Mapping[str, int], length: int) -> list[list[int]]:
    return [[*(ids.get(word, UNKNOWN) for word in _split(line)), END][:length] for line in lines(path)]


def _split(line: str) -> list[str]:
    """Lower-case words and punctuation marks."""
    return re.findall(r"\w+|[^\w\s]", line.lower())


def translation(
    source: Sequence[Sequence[int]], target: Sequence[Sequence[int]], vocabulary: int, length: int
) -> tuple[Tensor, Tensor]:
    """Ids of at most ``length`` tokens each as inputs (N, 2 length) and targets (N, length), see ``parallel``."""
    pad = padding(vocabulary)
    read = [[begin(vocabulary), *sentence[:-1]] for sentence in target]
    inputs = torch.cat([filled(source, pad, length), filled(read, pad, length)], dim=1)
    return inputs, filled(target, IGNORED, length)


def filled(rows: Sequence[Sequence[int]], filler: int, length: int) -> Tensor:
    """Rows of at most ``length`` ids, filled up, (N, length) int64."""
    table = np.full((len(rows), length), filler, np.int64)
    for row, ids in zip(table, rows, strict=True):
        row[: len(ids)] = ids
    return torch.from_numpy(table)


def place(folder: str, root: Path | None, files: Sequence[str], origin: str) -> dict[str, Path]:
    """Where each of ``files`` stands under the data folder, as such or gzipped.

    Raises:
        Skip: one is not there; the text says where all of them are to be had.
    """
    top = root or os.environ.get("CURVBENCH_DATA")
    advice = f"get {', '.join(files)} (or .gz) from {origin}"
    if not top:
        raise Skip(f"no folder for {folder} is given: {advice} into DIR/{folder}, then --data DIR")
    found = {file: find(Path(top) / folder, file) for file in files}
    if lacking := [file for file, path in found.items() if path is None]:
        raise Skip(f"{folder} is absent ({Path(top) / folder / lacking[0]}): {advice} into {Path(top) / folder}")
    return {file: path for file, path in found.items() if path is not None}


def lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, plain or gzipped; raises ValueError for a damaged or empty one."""
    some = False
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for line in file:
                some = True
                yield line
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        whole = "a whole gzip file of UTF-8 text" if path.suffix == ".gz" else "UTF-8 text"
        raise damaged(path, whole, str(error)) from error
    if not some:
        raise damaged(path, "lines", "none")
