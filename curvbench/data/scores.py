"""Overlap of texts with their references in percent: BLEU and ROUGE, computed by the libraries that papers use.

Sources: M. Post, "A Call for Clarity in Reporting BLEU Scores", WMT 2018 (sacrebleu); C.-Y. Lin, "ROUGE: A Package for
Automatic Evaluation of Summaries", 2004 (rouge-score).
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType

from curvbench.spec import Skip

ROUGE = ("rouge1", "rouge2", "rougeL")


def bleu(texts: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU in lower case, with international tokenization, which ignores spaces around punctuation.

    Raises:
        Skip: sacrebleu is not installed.
    """
    sacrebleu = _library("sacrebleu", "test.bleu")
    score = sacrebleu.corpus_bleu(list(texts), [list(references)], lowercase=True, tokenize="intl", force=True)
    return float(score.score)


def rouge(texts: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """The mean F1 over the texts, with stemming, for every kind in ``ROUGE``.

    Raises:
        Skip: rouge-score is not installed.
    """
    scorer = _library("rouge_score.rouge_scorer", "ROUGE").RougeScorer(list(ROUGE), use_stemmer=True)
    by_text = [scorer.score(reference, text) for text, reference in zip(texts, references, strict=True)]
    return {kind: 100 * sum(scores[kind].fmeasure for scores in by_text) / len(by_text) for kind in ROUGE}


def _library(module: str, needed_by: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise Skip(f"{needed_by} needs {name}: pip install 'curvbench[text]'") from error
