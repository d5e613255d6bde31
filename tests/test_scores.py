"""Overlap of texts: BLEU and ROUGE by hand on small examples, and what is said where their libraries are absent."""

from __future__ import annotations

import math
import sys

import pytest

from curvbench.data.scores import bleu, rouge
from curvbench.spec import Skip


def test_bleu_by_hand() -> None:
    """Seven of eight words, five of seven pairs, three of six triples, one of five quadruples; equal lengths."""
    expected = 100 * math.prod((7 / 8, 5 / 7, 3 / 6, 1 / 5)) ** 0.25
    assert bleu(["a b c x d e f g"], ["a b c d d e f g"]) == pytest.approx(expected)


def test_bleu_minds_neither_case_nor_the_space_around_marks() -> None:
    assert bleu(["ein hund , der t - shirts mag ."], ["Ein Hund, der T-Shirts mag."]) == pytest.approx(100)
    assert bleu(["eine katze schläft im garten ."], ["Ein Hund, der T-Shirts mag."]) < 20


def test_short_texts_pay_for_their_brevity() -> None:
    whole = "one two three four five six seven eight"
    assert bleu(["one two three four"], [whole]) == pytest.approx(100 * math.exp(1 - 8 / 4))


def test_rouge_by_hand() -> None:
    """Of 4 and 5 words 3 are shared, of 3 and 4 pairs 1, and 3 stand in the same order; then a perfect one."""
    found = rouge(["the cat sat down", "same"], ["the black cat sat there", "same"])
    expected = {"rouge1": 2 * 3 / 9, "rouge2": 2 * 1 / 7, "rougeL": 2 * 3 / 9}
    assert found == {kind: pytest.approx(100 * (value + (kind != "rouge2")) / 2) for kind, value in expected.items()}


@pytest.mark.parametrize(("module", "call"), [("sacrebleu", bleu), ("rouge_score.rouge_scorer", rouge)])
def test_an_absent_library_is_a_skip_that_says_how_to_get_it(
    module: str, call: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(Skip, match=r"needs (sacrebleu|rouge_score): pip install 'curvbench\[text\]'"):
        call(["a"], ["a"])  # type: ignore[operator]
