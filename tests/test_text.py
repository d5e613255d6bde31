"""Multi30k: sentences become the ids that a translation is learnt from, absence and damage are named."""

from __future__ import annotations

import gzip
from pathlib import Path

import oracles
import pytest
import torch
import torch.nn.functional as F

import curvbench as cb
from curvbench.data import sentences
from curvbench.instance.likelihood import IGNORED, likelihood
from curvbench.problems.transformer import Transformer, greedy
from curvbench.spec import Skip

ENGLISH = ["A dog runs.", "A dog, a cat.", "A bird"]
GERMAN = ["Ein Hund läuft.", "Ein Hund und eine Katze sitzen.", "Ein Vogel"]


def written(root: Path) -> Path:
    """The published layout; the test part has a word that the training part has not."""
    folder = root / "multi30k"
    folder.mkdir()
    for part, extra in (("train", []), ("test_2016_flickr", ["A zebra runs."])):
        for language, lines in (("en", ENGLISH), ("de", GERMAN)):
            content = "".join(f"{line}\n" for line in (extra or lines))
            (folder / f"{part}.{language}.gz").write_bytes(gzip.compress(content.encode()))
    return root


def test_frequent_words_have_ids_in_the_order_of_their_counts(tmp_path: Path) -> None:
    data = sentences.parallel("multi30k", written(tmp_path), vocabulary=6, length=6)
    begin, pad = sentences.begin(6), sentences.padding(6)
    a, dog, full_stop, runs = 2, 3, 4, 5  # a 4 times, dog and . twice, runs the first of those that occur once
    unknown, end = sentences.UNKNOWN, sentences.END
    ein, hund, stop, laeuft = 2, 3, 4, 5
    assert data.train_inputs[:, :6].tolist() == [
        [a, dog, runs, full_stop, end, pad],
        [a, dog, unknown, a, unknown, full_stop],
        [a, unknown, end, pad, pad, pad],
    ]
    assert data.train_targets.tolist() == [
        [ein, hund, laeuft, stop, end, IGNORED],
        [ein, hund, unknown, unknown, unknown, unknown],
        [ein, unknown, end, IGNORED, IGNORED, IGNORED],
    ]
    assert data.train_inputs[0, 6:].tolist() == [begin, ein, hund, laeuft, stop, pad]
    assert data.test_inputs[0, :6].tolist() == [a, unknown, runs, full_stop, end, pad]
    assert data.train_inputs.dtype == data.train_targets.dtype == torch.int64


def test_transformer_reads_it(tmp_path: Path) -> None:
    problem = Transformer(task="multi30k", vocabulary=6, length=6)
    data = problem.data(written(tmp_path))
    with torch.no_grad():
        outputs = problem.model()(data.train_inputs)
    assert outputs.shape == (3, 6, 6)
    assert torch.isfinite(outputs).all()


def test_filling_is_no_loss_term(tmp_path: Path) -> None:
    problem = Transformer(task="multi30k", vocabulary=4, length=6, width=4, hidden=4)
    data = problem.data(written(tmp_path))
    model = problem.model().double()
    inputs, targets, names = data.train_inputs, data.train_targets, [name for name, _ in model.named_parameters()]
    instance = cb.Instance(model, inputs, targets)
    rows = []
    for n, t in (targets != IGNORED).nonzero().tolist():
        loss = F.cross_entropy(model(inputs)[n, t], targets[n, t])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        rows.append(instance.pack(dict(zip(names, gradients, strict=True))))
    assert instance.coverage == 1.0 and instance.terms == len(rows) == 5 + 6 + 3
    scores, v = torch.stack(rows), torch.randn(instance.size, dtype=torch.float64)
    expected = scores.T @ (scores @ v) / len(rows)
    assert oracles.relative(cb.exact_fisher(instance, "empirical").matvec(v), expected) <= 1e-10


@pytest.mark.parametrize("root", [None, Path("absent")])
def test_absent_files_are_a_skip_that_says_where_they_are(root: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CURVBENCH_DATA", raising=False)
    with pytest.raises(Skip, match=r"train\.en, .*https://github\.com/multi30k/dataset") as caught:
        Transformer(task="multi30k").data(root)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"plain",
        gzip.compress(b"a\n", mtime=0)[:-6],
        gzip.compress(b"a\n", mtime=0)[:10] + b"\xff" * 20,
        gzip.compress(b"\xff\xfe", mtime=0),
        gzip.compress(b"", mtime=0),
    ],
    ids=["plain", "cut", "overwritten", "no text", "empty"],
)
def test_damage_is_named(tmp_path: Path, content: bytes) -> None:
    file = written(tmp_path) / "multi30k" / "train.de.gz"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"train\.de\.gz is damaged: expected .*get it again"):
        sentences.parallel("multi30k", tmp_path, vocabulary=6, length=6)


def test_two_sides_of_different_length_are_damage(tmp_path: Path) -> None:
    file = written(tmp_path) / "multi30k" / "train.de.gz"
    file.write_bytes(gzip.compress(b"Ein Hund\n"))
    with pytest.raises(
        ValueError,
        match=r"expected as many sentences in both languages, found 3 sentences in train\.en\.gz, 1 in train\.de\.gz",
    ):
        sentences.parallel("multi30k", tmp_path, vocabulary=6, length=6)


def test_plain_files_are_read_as_well_as_gzipped_ones(tmp_path: Path) -> None:
    expected = sentences.parallel("multi30k", written(tmp_path), vocabulary=6, length=6)
    for file in (tmp_path / "multi30k").glob("*.gz"):
        file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
        file.unlink()
    found = sentences.parallel("multi30k", tmp_path, vocabulary=6, length=6)
    assert torch.equal(found.train_inputs, expected.train_inputs)


def test_wmt_is_read_in_the_layout_in_which_it_is_given(tmp_path: Path) -> None:
    folder = tmp_path / "wmt14"
    folder.mkdir()
    for name, line in (
        ("train.en", "A dog"),
        ("train.de", "Ein Hund"),
        ("newstest2014.en", "A"),
        ("newstest2014.de", "Ein"),
    ):
        (folder / name).write_text(f"{line}\n")
    problem = Transformer(task="wmt14", vocabulary=4, length=3)
    data = problem.data(tmp_path)
    assert isinstance(data, sentences.Texts)
    assert data.train_targets.tolist() == [[2, 3, sentences.END]]
    assert data.references == ["Ein"]
    with pytest.raises(
        Skip, match=r"wmt14 is absent .*newstest2014\.en.* from https://nlp\.stanford\.edu/projects/nmt/"
    ):
        problem.data(tmp_path / "multi30k")


def test_references_are_whole_lines_and_ids_become_words_again(tmp_path: Path) -> None:
    data = sentences.parallel("multi30k", written(tmp_path), vocabulary=6, length=3)
    assert data.references == ["A zebra runs."], "neither cut nor without unknown words"
    assert data.decode([2, sentences.UNKNOWN, 3, sentences.END, 4]) == "ein <unk> hund"


def test_a_translation_by_heart_scores_what_its_vocabulary_allows(tmp_path: Path) -> None:
    """A network that has learnt three sentences gives them back greedily; BLEU by hand from matching n-grams."""
    folder = written(tmp_path) / "multi30k"
    for language, lines in (("en", ENGLISH), ("de", GERMAN)):
        content = "".join(f"{line}\n" for line in lines)
        (folder / f"test_2016_flickr.{language}.gz").write_bytes(gzip.compress(content.encode()))
    problem = Transformer(task="multi30k", vocabulary=20, length=8)
    data = problem.data(tmp_path)
    torch.manual_seed(0)
    model = problem.model()
    assert problem.score(model, data)["test.bleu"] < 30
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(150):
        optimizer.zero_grad()
        likelihood("cross_entropy").loss(model(data.train_inputs), data.train_targets).backward()
        optimizer.step()
    assert problem.score(model, data) == {"test.bleu": pytest.approx(100.0)}


def test_greedy_is_what_the_network_says_of_its_own_tokens() -> None:
    """Fed with what it has decoded, the network in one pass names each of these tokens as the likeliest."""
    problem = Transformer(length=6, depth=2)
    torch.manual_seed(0)
    model = problem.model().eval()
    source = problem.data(None).test_inputs[:20, :6]
    found = greedy(model, source, sentences.begin(problem.classes))
    read = torch.cat([torch.full((20, 1), sentences.begin(problem.classes)), found[:, :-1]], dim=1)
    with torch.no_grad():
        assert torch.equal(model(torch.cat([source, read], dim=1)).argmax(-1), found)
    assert len({tuple(row) for row in found.tolist()}) > 1
