"""Sentences as token ids: parallel corpora for translation, in the most frequent words of each language.

Files under the data folder are those of the authors and may be gzipped::

    multi30k/{train,test_2016_flickr}.{en,de}
    wmt14/{train,newstest2014}.{en,de}

Sources: D. Elliott, S. Frank, K. Sima'an, L. Specia, "Multi30K: Multilingual English-German Image Descriptions" (2016),
https://github.com/multi30k/dataset (data/task1/raw); WMT 2014 from https://nlp.stanford.edu/projects/nmt/.
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
    """A published parallel corpus: its folder, the names of its training and test part, and its source."""

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
    """Token ids with texts as targets: ``references`` of the test part, and ``decode`` from ids to a text."""

    train_inputs: Tensor
    test_inputs: Tensor
    references: Sequence[str]
    decode: Callable[[Sequence[int]], str]


def begin(vocabulary: int) -> int:
    """The id of the decoder's first token: the first id that is no class."""
    return vocabulary


def padding(vocabulary: int) -> int:
    """The id that fills sequences: the second id that is no class."""
    return vocabulary + 1


def parallel(corpus: str, root: Path | None, vocabulary: int, length: int) -> Texts:
    """Translation from English to German: inputs (N, 2 length) int64, targets (N, length) int64.

    Each language has its own ids below ``vocabulary``: 0 ends a sentence, 1 is every word that is not among the most
    frequent words of the training part. Sentences are cut after ``length`` tokens. Inputs are the English tokens and
    then the decoder's tokens: ``begin`` and the German tokens without the last one. Both are filled with ``padding``.
    Targets are the German tokens, filled with -100, which is no loss term. References are uncut lines.

    Raises:
        Skip: the files are missing; the text says where to get them.
        ValueError: a file is damaged.
    """
    published = CORPORA[corpus]
    files = [f"{part}.{language}" for part, language in itertools.product(published.parts, LANGUAGES)]
    paths = place(published.folder, root, files, published.origin)
    train, test = ([paths[f"{part}.{language}"] for language in LANGUAGES] for part in published.parts)
    ids = [_frequent(path, vocabulary) for path in train]
    pairs = (_pair(part, ids, vocabulary, length) for part in (train, test))
    return Texts(*next(pairs), *next(pairs), [line.strip() for line in lines(test[1])], Words(ids[1]))


class Words:
    """A function from the ids of one sentence to its words, up to the end of the sentence."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        self.words = {number: word for word, number in ids.items()}

    def __call__(self, ids: Sequence[int]) -> str:
        return " ".join(self.words.get(number, "<unk>") for number in itertools.takewhile(lambda k: k != END, ids))


def _pair(
    paths: Sequence[Path], ids: Sequence[Mapping[str, int]], vocabulary: int, length: int
) -> tuple[Tensor, Tensor]:
    """Inputs and targets of one part, which must have as many sentences in either language."""
    source, target = (_rows(path, words, length) for path, words in zip(paths, ids, strict=True))
    if len(source) != len(target):
        counts = f"{len(source)} sentences in {paths[0].name}, {len(target)} in {paths[1].name}"
        raise damaged(paths[0].parent, "as many sentences in both languages", counts)
    return translation(source, target, vocabulary, length)


def _frequent(path: Path, vocabulary: int) -> dict[str, int]:
    """The ids of the most frequent words; among equally frequent words the first to occur has priority."""
    counts = Counter(word for line in lines(path) for word in _split(line))
    return {word: UNKNOWN + 1 + k for k, (word, _) in enumerate(counts.most_common(vocabulary - 2))}


def _rows(path: Path, ids: Mapping[str, int], length: int) -> list[list[int]]:
    return [[*(ids.get(word, UNKNOWN) for word in _split(line)), END][:length] for line in lines(path)]


def _split(line: str) -> list[str]:
    """The lower-case words and punctuation marks of a line."""
    return re.findall(r"\w+|[^\w\s]", line.lower())


def translation(
    source: Sequence[Sequence[int]], target: Sequence[Sequence[int]], vocabulary: int, length: int
) -> tuple[Tensor, Tensor]:
    """Inputs (N, 2 length) and targets (N, length) of sentences with at most ``length`` ids, see ``parallel``."""
    pad = padding(vocabulary)
    decoder_inputs = [[begin(vocabulary), *sentence[:-1]] for sentence in target]
    inputs = torch.cat([filled(source, pad, length), filled(decoder_inputs, pad, length)], dim=1)
    return inputs, filled(target, IGNORED, length)


def filled(rows: Sequence[Sequence[int]], filler: int, length: int) -> Tensor:
    """Rows of at most ``length`` ids, filled with ``filler``, (N, length) int64."""
    table = np.full((len(rows), length), filler, np.int64)
    for row, ids in zip(table, rows, strict=True):
        row[: len(ids)] = ids
    return torch.from_numpy(table)


def place(folder: str, root: Path | None, files: Sequence[str], origin: str) -> dict[str, Path]:
    """The path of each of ``files``, plain or gzipped, under the data folder.

    Raises:
        Skip: a file is missing; the text says where to get the files.
    """
    top = root or os.environ.get("CURVBENCH_DATA")
    advice = f"get {', '.join(files)} (or .gz) from {origin}"
    if not top:
        raise Skip(f"no folder for {folder} is given: {advice} into DIR/{folder}, then --data DIR")
    paths = {file: find(Path(top) / folder, file) for file in files}
    if lacking := [file for file, path in paths.items() if path is None]:
        raise Skip(f"{folder} is absent ({Path(top) / folder / lacking[0]}): {advice} into {Path(top) / folder}")
    return {file: path for file, path in paths.items() if path is not None}


def lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, plain or gzipped; raises ValueError for a damaged or empty one."""
    is_empty = True
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for line in file:
                is_empty = False
                yield line
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        expected = "a whole gzip file of UTF-8 text" if path.suffix == ".gz" else "UTF-8 text"
        raise damaged(path, expected, str(error)) from error
    if is_empty:
        raise damaged(path, "lines", "none")
