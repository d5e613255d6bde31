"""Documents and their summaries as token ids, by a tokenizer that is trained on the training part.

Under the data folder, one JSON object per line, each file as such or gzipped::

    scitldr-a/{train,test}.jsonl      "source": sentences, "target": summaries, of which the first is taken
    xsum/{train,test}.jsonl           "document", "summary": as the library ``datasets`` exports it

Sources: I. Cachola, K. Lo, A. Cohan, D. Weld, "TLDR: Extreme Summarization of Scientific Documents" (2020); S. Narayan,
S. Cohen, M. Lapata, "Don't Give Me the Details, Just the Summary!" (2018). ``tiny`` is embedded: made-up sentences.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curvbench.data.images import damaged
from curvbench.data.sentences import Texts, filled, lines, place
from curvbench.instance.likelihood import IGNORED
from curvbench.spec.outcomes import Skip

PAD, END, UNKNOWN = 0, 1, 2  # T5's; a decoder begins with PAD
SPECIAL = ("<pad>", "</s>", "<unk>")
LEAST_VOCABULARY = 100  # the embedded sentences and scientific text alike have fewer characters

Pairs = tuple[list[str], list[str]]


@dataclass(frozen=True)
class Corpus:
    """Where documents stand: a folder, the keys of a document and its summary, and who has them."""

    folder: str
    document: str
    summary: str
    origin: str


CORPORA: Mapping[str, Corpus] = {
    "scitldr": Corpus("scitldr-a", "source", "target", "SciTLDR-Data/SciTLDR-A of https://github.com/allenai/scitldr"),
    "xsum": Corpus("xsum", "document", "summary", "https://huggingface.co/datasets/EdinburghNLP/xsum (to_json)"),
}
TASKS = ("tiny", *CORPORA)


def summarisation(task: str, root: Path | None, vocabulary: int, source: int, target: int) -> Texts:
    """Inputs (N, source + target) int64 and targets (N, target) int64 in at most ``vocabulary`` byte-pair tokens.

    Inputs are a document and then what a decoder reads, ``PAD`` and its summary but for the last token; both cut, ended
    by ``END`` and filled up with ``PAD``. Targets are the summary, filled up with -100, which is no loss term.

    Raises:
        Skip: the files or the library are not there; the text says where they are to be had.
        ValueError: a file is damaged.
    """
    parts = _tiny() if task == "tiny" else _published(CORPORA[task], root)
    tokenizer = _tokenizer(itertools.chain(*parts[0]), vocabulary)
    train, test = (_tensors(tokenizer, part, source, target) for part in parts)
    return Texts(*train, *test, parts[1][1], tokenizer.decode)


def _tensors(tokenizer: Any, part: Pairs, source: int, target: int) -> tuple[Tensor, Tensor]:
    documents, written = _ids(tokenizer, part[0], source), _ids(tokenizer, part[1], target)
    read = [[PAD, *ids[:-1]] for ids in written]
    inputs = torch.cat([filled(documents, PAD, source), filled(read, PAD, target)], dim=1)
    return inputs, filled(written, IGNORED, target)


def _ids(tokenizer: Any, texts: Sequence[str], length: int) -> list[list[int]]:
    return [[*encoded.ids[: length - 1], END] for encoded in tokenizer.encode_batch(texts)]


def _tokenizer(texts: Iterator[str], vocabulary: int) -> Any:
    """Byte pairs of words with the space before them."""
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError as error:
        raise Skip("summarisation needs tokenizers: pip install 'curvbench[text]'") from error
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL[UNKNOWN]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=list(SPECIAL), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _published(corpus: Corpus, root: Path | None) -> tuple[Pairs, Pairs]:
    files = ("train.jsonl", "test.jsonl")
    paths = place(corpus.folder, root, files, corpus.origin)
    train, test = (_pairs(corpus, paths[file]) for file in files)
    return train, test


def _pairs(corpus: Corpus, path: Path) -> Pairs:
    pairs = [_pair(corpus, path, number, line) for number, line in enumerate(lines(path), 1)]
    return [document for document, _ in pairs], [summary for _, summary in pairs]


def _pair(corpus: Corpus, path: Path, number: int, line: str) -> tuple[str, str]:
    try:
        record = json.loads(line)
        return _text(record[corpus.document], " ".join), _text(record[corpus.summary], itemgetter(0))
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        wanted = f'a JSON object with texts "{corpus.document}" and "{corpus.summary}" in each line'
        raise damaged(path, wanted, f"another thing in line {number}") from error


def _text(value: Any, one: Callable[[list[str]], str]) -> str:
    """A text, or the one that a list of texts makes; raises ValueError for what no tokenizer reads."""
    text = one(value) if isinstance(value, list) else value
    if not isinstance(text, str):
        raise TypeError
    text.encode()  # JSON may hold half a character
    return text


def _tiny() -> tuple[Pairs, Pairs]:
    """Who does what where, between two sentences that do not matter; the summary leaves those and the place out."""
    who, what, which = ("anna", "tom", "lena", "paul"), ("sees", "buys", "finds", "draws"), ("red", "old", "small")
    things, places = ("ball", "book", "boat", "hat", "clock"), ("park", "town", "garden")
    before, after = ("it rains .", "the sun is out .", "the bells ring ."), ("then they go home .", "it gets dark .")
    facts = list(itertools.product(who, what, which, things))
    draw = np.random.RandomState(0)  # the one numpy stream that never changes
    documents, summaries = [], []
    for person, does, kind, thing in (facts[k] for k in draw.permutation(len(facts))):
        spot = places[draw.randint(len(places))]
        first, last = before[draw.randint(len(before))], after[draw.randint(len(after))]
        documents.append(f"{first} {person} {does} a {kind} {thing} in the {spot} . {last}")
        summaries.append(f"{person} {does} a {kind} {thing} .")
    count = len(facts) * 4 // 5
    return (documents[:count], summaries[:count]), (documents[count:], summaries[count:])
