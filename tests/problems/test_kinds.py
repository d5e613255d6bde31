"""ViT, GPT, U-Net and LSTM: published sizes, what they see, what they predict, and what their fields refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import curvbench as cb
from curvbench.data import stories
from curvbench.data.documents import tiny
from curvbench.spec import Problem


def size(problem: Problem) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in problem.model().parameters())


def model(problem: Problem) -> nn.Module:
    torch.manual_seed(0)
    return problem.model().eval().double()


@pytest.mark.parametrize(
    ("name", "fields", "published"),
    [
        ("vit", {"dataset": "imagenet", "patch": 16, "width": 768, "heads": 12, "depth": 12}, 86_567_656),
        ("gpt", {"vocabulary": 50_257, "tokens": 1024, "width": 768, "heads": 12, "depth": 12}, 124_439_808),
    ],
)
def test_sizes_are_those_of_the_published_models(name: str, fields: dict[str, Any], published: int) -> None:
    """ViT-B/16 as torchvision documents it, and GPT-2 as transformers does."""
    assert size(cb.problem(name, **fields)) == published


@pytest.mark.parametrize(
    ("name", "fields", "millions"),
    [
        ("vit", {"width": 256, "heads": 8, "depth": 6}, 4.7),
        ("gpt", {"vocabulary": 5000, "tokens": 16, "width": 256, "heads": 8, "depth": 6}, 6.0),
    ],
)
def test_large_forms_have_the_documented_size(name: str, fields: dict[str, Any], millions: float) -> None:
    assert round(size(cb.problem(name, **fields)) / 1e6, 1) == millions


@pytest.mark.parametrize("name", ["vit", "gpt", "unet", "lstm"])
def test_defaults_are_small_enough_for_seconds(name: str) -> None:
    problem = cb.problem(name)
    assert size(problem) < 20_000 and problem.samples <= 16


@pytest.mark.parametrize("name", ["gpt", "lstm"])
def test_no_token_sees_those_after_it(name: str) -> None:
    problem = cb.problem(name)
    network, tokens = model(problem), problem.data(None).test_inputs[:2]
    changed = tokens.clone()  # type: ignore[union-attr]
    changed[:, 5] = (changed[:, 5] + 1) % 48
    with torch.no_grad():
        before, after = network(tokens), network(changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.isclose(before[:, 5:], after[:, 5:]).all(-1).any()


def test_the_tied_head_is_the_embedding() -> None:
    tied, free = (dict(cb.problem("gpt", tied=flag).model().named_parameters()) for flag in (True, False))
    assert free.keys() - tied.keys() == {"head.weight"}
    assert free["head.weight"].shape == free["words.weight"].shape


@pytest.mark.parametrize("part", ["train", "test"])
def test_the_brightness_of_pixels_is_told_from_noisy_ones(part: str) -> None:
    images, noisy = (cb.problem(name).data(None) for name in ("mlp", "unet"))
    pixels, seen = (getattr(data, f"{part}_inputs").double() for data in (images, noisy))
    assert torch.equal(getattr(noisy, f"{part}_targets"), (pixels.flatten(1) > 0).long())
    assert abs(float((seen - pixels).mean())) < 0.05
    assert abs(float((seen - pixels).std()) - 1) < 0.05


def test_logits_of_pixels_come_row_by_row() -> None:
    problem = cb.problem("unet", width=2, depth=1)
    network, seen = model(problem), []
    network.get_submodule("head").register_forward_hook(lambda *given: seen.append(given[2]))
    with torch.no_grad():
        outputs = network(problem.data(None).test_inputs[:2].double())  # type: ignore[union-attr]
    assert torch.equal(outputs[:, 8 * 2 + 3], seen[0][:, :, 2, 3])


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("vit", {"patch": 3}),
        ("vit", {"width": 15}),
        ("vit", {"depth": 0}),
        ("gpt", {"width": 15}),
        ("gpt", {"tokens": 0}),
        ("gpt", {"vocabulary": 4}),
        ("lstm", {"vocabulary": 4}),
        ("lstm", {"depth": 0}),
        ("unet", {"width": 3}),
        ("unet", {"depth": 4}),
        ("unet", {"dataset": "imagenet"}),
    ],
)
def test_fields_that_do_not_fit_are_refused(name: str, wrong: dict[str, Any]) -> None:
    ((field, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"^{name}.*{field}.* got .*{value}") as caught:
        cb.problem(name, **wrong)
    assert "\n" not in str(caught.value)


def test_a_row_goes_on_with_the_next_document_and_after_the_last_one_with_the_first() -> None:
    documents = tiny()[0][0]
    pairs = zip(stories.rows(64, 17)[0].tolist(), documents, strict=True)
    words = dict(pair for row, text in pairs for pair in zip(row, text.split(), strict=False))
    assert len(set(words.values())) == len(words)
    long = stories.rows(64, 30)[0]
    for number, following in ((0, documents[1]), (-1, documents[0])):
        expected = f"{documents[number]} {following}".split()[:30]
        assert [words[i] for i in long[number].tolist()[: len(expected)]] == expected


def test_rare_words_are_unknown() -> None:
    whole, few = stories.rows(64, 17)[0], stories.rows(10, 17)[0]
    assert whole.min() > stories.UNKNOWN and few.max() < 10
    known = few != stories.UNKNOWN
    assert torch.equal(whole[known], few[known])
    assert (whole[~known] > 9).all()


def test_the_target_is_the_next_word() -> None:
    data = stories.continued(48, 6)
    assert torch.equal(data.train_inputs[:, 1:], data.train_targets[:, :-1])  # type: ignore[index]
