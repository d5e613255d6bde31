"""Documents and their summaries as token ids, by a tokenizer that is trained on the training part.

Files under the data folder have one JSON object per line and may be gzipped::

    scitldr-a/{train,test}.jsonl      "source": sentences, "target": summaries, the first of which is used
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

PAD, END, UNKNOWN = 0, 1, 2  # the ids of T5, whose decoder begins with PAD
SPECIAL = ("<pad>", "</s>", "<unk>")
LEAST_VOCABULARY = 100  # embedded sentences and scientific text have fewer characters than that

Pairs = tuple[list[str], list[str]]


@dataclass(frozen=True)
class Corpus:
    """A published set of documents: its folder, the JSON keys of document and summary, and its source."""

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

    Inputs are a document and then the decoder's tokens: ``PAD`` and the summary without its last token. Both are cut,
    ended by ``END`` and filled with ``PAD``. Targets are the summary, filled with -100, which is no loss term.

    Raises:
        Skip: the files or the library are missing; the text says where to get them.
        ValueError: a file is damaged.
    """
    parts = tiny() if task == "tiny" else _published(CORPORA[task], root)
    tokenizer = _tokenizer(itertools.chain(*parts[0]), vocabulary)
    train, test = (_tensors(tokenizer, part, source, target) for part in parts)
    return Texts(*train, *test, parts[1][1], tokenizer.decode)


def _tensors(tokenizer: Any, part: Pairs, source: int, target: int) -> tuple[Tensor, Tensor]:
    documents, summaries = _ids(tokenizer, part[0], source), _ids(tokenizer, part[1], target)
    decoder_inputs = [[PAD, *ids[:-1]] for ids in summaries]
    inputs = torch.cat([filled(documents, PAD, source), filled(decoder_inputs, PAD, target)], dim=1)
    return inputs, filled(summaries, IGNORED, target)


def _ids(tokenizer: Any, texts: Sequence[str], length: int) -> list[list[int]]:
    return [[*encoded.ids[: length - 1], END] for encoded in tokenizer.encode_batch(texts)]


def _tokenizer(texts: Iterator[str], vocabulary: int) -> Any:
    """A tokenizer of byte pairs, in which the space before a word belongs to the word."""
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
    """A text, or the text that ``one`` makes of a list; raises ValueError for a text that no tokenizer reads."""
    text = one(value) if isinstance(value, list) else value
    if not isinstance(text, str):
        raise TypeError
    text.encode()  # raises for half a surrogate pair, which JSON may hold
    return text


def tiny() -> tuple[Pairs, Pairs]:
    """Made-up documents: a person does something somewhere, between two irrelevant sentences.

    A summary leaves out the irrelevant sentences and the place.
    """
    who, what, which = ("anna", "tom", "lena", "paul"), ("sees", "buys", "finds", "draws"), ("red", "old", "small")
    things, places = ("ball", "book", "boat", "hat", "clock"), ("park", "town", "garden")
    before, after = ("it rains .", "the sun is out .", "the bells ring ."), ("then they go home .", "it gets dark .")
    facts = list(itertools.product(who, what, which, things))
    draw = np.random.RandomState(0)  # the only numpy generator whose stream never changes
    documents, summaries = [], []
    for person, does, kind, thing in (facts[k] for k in draw.permutation(len(facts))):
        spot = places[draw.randint(len(places))]
        first, last = before[draw.randint(len(before))], after[draw.randint(len(after))]
        documents.append(f"{first} {person} {does} a {kind} {thing} in the {spot} . {last}")
        summaries.append(f"{person} {does} a {kind} {thing} .")
    count = len(facts) * 4 // 5
    return (documents[:count], summaries[:count]), (documents[count:], summaries[count:])
