"""Summaries: documents become the ids of a tokenizer that the data trains, absence and damage are named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from curvbench.data.documents import END, PAD, UNKNOWN, summarisation
from curvbench.instance.likelihood import IGNORED
from curvbench.spec import Skip

pytest.importorskip("tokenizers")

DOCUMENTS = ["a model of many layers is trained", "graphs are learnt from data", "we prove a bound"]
SUMMARIES = ["a deep model", "learnt graphs", "a bound"]


def scitldr(root: Path) -> Path:
    records = [
        {"source": [document, "and more."], "target": [summary, "another"]}
        for document, summary in zip(DOCUMENTS, SUMMARIES, strict=True)
    ]
    return written(root, "scitldr-a", records)


def written(root: Path, folder: str, records: list[Any]) -> Path:
    (root / folder).mkdir()
    for part, chosen in (("train", records), ("test", records[:1])):
        (root / folder / f"{part}.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in chosen))
    return root


def test_ids_become_the_texts_again(tmp_path: Path) -> None:
    data = summarisation("scitldr", scitldr(tmp_path), vocabulary=100, source=24, target=10)
    assert data.train_inputs.shape == (3, 34) and data.train_targets.shape == (3, 10)
    for k in range(3):
        kept = [token for token in data.train_targets[k].tolist() if token != IGNORED]
        assert kept[-1] == END and END not in kept[:-1]
        assert data.decode(kept) == SUMMARIES[k]
    assert data.references == SUMMARIES[:1]
    assert f"{DOCUMENTS[0]} and more.".startswith(data.decode(data.train_inputs[0, :24].tolist()))
    assert not (data.train_inputs == UNKNOWN).any()


def test_a_decoder_reads_the_tokens_before_those_it_writes() -> None:
    data = summarisation("tiny", None, vocabulary=128, source=32, target=12)
    read, written = data.train_inputs[:, 32:], data.train_targets
    assert set(read[:, 0].tolist()) == {PAD}
    assert torch.equal(read[:, 1:][written[:, 1:] != IGNORED], written[:, :-1][written[:, 1:] != IGNORED])
    assert data.train_inputs.max() < 128


def test_texts_are_cut_and_ended() -> None:
    data = summarisation("tiny", None, vocabulary=128, source=6, target=3)
    assert set(data.train_inputs[:, 5].tolist()) == {END}
    assert set(data.train_targets[:, 2].tolist()) == {END}


def test_the_embedded_texts_are_always_the_same_and_none_is_in_both_parts() -> None:
    first, again = (summarisation("tiny", None, vocabulary=128, source=32, target=12) for _ in range(2))
    assert torch.equal(first.train_inputs, again.train_inputs)
    assert (len(first.train_inputs), len(first.test_inputs)) == (192, 48)
    summaries = {first.decode([t for t in row if t != IGNORED]) for row in first.train_targets.tolist()}
    assert len(summaries) == 192
    assert not summaries & set(first.references)


def test_xsum_has_keys_of_its_own(tmp_path: Path) -> None:
    root = written(tmp_path, "xsum", [{"document": "a long story", "summary": "a story", "id": "7"}])
    assert summarisation("xsum", root, vocabulary=100, source=8, target=8).references == ["a story"]


def test_gzipped_files_are_read(tmp_path: Path) -> None:
    for file in (scitldr(tmp_path) / "scitldr-a").glob("*.jsonl"):
        (file.parent / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    assert len(summarisation("scitldr", tmp_path, vocabulary=100, source=8, target=8).train_inputs) == 3


@pytest.mark.parametrize(
    "line",
    [
        "{",
        '{"source": ["a"]}',
        '{"source": ["a"], "target": []}',
        '{"source": ["a", 1], "target": ["a"]}',
        '{"source": null, "target": "a"}',
        '{"source": ["a"], "target": ["\\ud800"]}',
        "[" * 100_000,
        "[]",
        "7",
    ],
    ids=["cut", "one", "none", "number", "null", "half a character", "deep", "list", "seven"],
)
def test_damage_is_named_with_its_line(line: str, tmp_path: Path) -> None:
    file = scitldr(tmp_path) / "scitldr-a" / "train.jsonl"
    file.write_text(f"{file.read_text()}{line}\n")
    wanted = (
        r'train\.jsonl is damaged: expected a JSON object with texts "source" and "target" in each line, '
        r"found another thing in line 4; remove it and get it again"
    )
    with pytest.raises(ValueError, match=wanted) as caught:
        summarisation("scitldr", tmp_path, vocabulary=100, source=8, target=8)
    assert "\n" not in str(caught.value)


def test_absent_files_are_a_skip_that_says_where_they_are(tmp_path: Path) -> None:
    with pytest.raises(Skip, match=r"scitldr-a is absent .*train\.jsonl.* from .*github\.com/allenai/scitldr into"):
        summarisation("scitldr", tmp_path, vocabulary=100, source=8, target=8)
