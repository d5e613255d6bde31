"""T5 from its configuration: sizes, what adapters train, greedy summaries, a Fisher that agrees with an oracle."""

from __future__ import annotations

from pathlib import Path

import oracles
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import curvbench as cb
from curvbench.data.sentences import Texts
from curvbench.instance.likelihood import likelihood
from curvbench.problems.t5 import T5
from curvbench.spec import Skip

pytest.importorskip("transformers")
pytest.importorskip("peft")


def fresh(problem: T5) -> nn.Module:
    torch.manual_seed(0)
    return problem.model().eval()


def trained(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.slow
def test_small_has_the_published_size() -> None:
    """T5-small: the embedding 32,128 x 512, six layers of each kind, 60.5 million in all."""
    d, heads, hidden, buckets = 512, 8 * 64, 2048, 32 * 8
    attention, feed, norm = 4 * d * heads, 2 * d * hidden, d
    encoder, decoder = 6 * (attention + feed + 2 * norm), 6 * (2 * attention + feed + 3 * norm)
    assert sum(p.numel() for p in fresh(T5(size="small")).parameters()) == 60_506_624
    assert 60_506_624 == 32_128 * d + encoder + decoder + 2 * (norm + buckets)


def test_adapters_are_all_that_lora_trains() -> None:
    found = trained(fresh(T5(mode="lora", rank=3)))
    assert {name.rpartition("Attention.")[2] for name in found} == {
        f"{part}.lora_{side}.default.weight" for part in "qv" for side in "AB"
    }
    assert len(found) == 2 * 2 * 3, "of the encoder's attention and of both of the decoder's"
    assert {min(shape) for shape in found.values()} == {3}


def test_adapters_change_nothing_before_they_are_trained() -> None:
    inputs = T5().data(None).test_inputs[:3]
    with torch.no_grad():
        torch.testing.assert_close(fresh(T5(mode="lora"))(inputs), fresh(T5())(inputs))


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_the_fisher_is_that_of_the_per_sample_scores(mode: str) -> None:
    problem = T5(mode=mode, source=20, target=4, vocabulary=100)  # type: ignore[arg-type]
    data, model = problem.data(None), fresh(problem).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)  # or the adapters' inner matrices would have no gradient
    x, y = data.train_inputs[:2], data.train_targets[:2]
    instance = cb.Instance(model, x, y)
    assert instance.coverage == 1.0
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    losses = [F.cross_entropy(model(x)[n, t], y[n, t]) for n, t in (y != -100).nonzero().tolist()]
    gradients = [torch.autograd.grad(loss, [model.get_parameter(name) for name in names]) for loss in losses]
    rows = [instance.pack(dict(zip(names, each, strict=True))) for each in gradients]
    assert instance.terms == len(rows)
    expected = torch.stack(rows)
    v = torch.randn(instance.size, dtype=torch.float64)
    found = cb.exact_fisher(instance, "empirical").matvec(v)
    assert oracles.relative(found, expected.T @ (expected @ v) / len(rows)) <= 1e-9


def test_everything_is_computed_in_the_model_s_dtype() -> None:
    """A difference quotient in float64 is the derivative; rounding to float32 on the way leaves two digits."""
    problem = T5()
    data, model = problem.data(None), fresh(problem).double()
    x, y, names = data.train_inputs[:4], data.train_targets[:4], dict(model.named_parameters())
    loss = likelihood("cross_entropy").loss
    slopes = torch.autograd.grad(loss(model(x), y), list(names.values()))
    generator = torch.Generator().manual_seed(0)
    direction = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in names.values()]
    moved = [
        {name: p + step * d for (name, p), d in zip(names.items(), direction, strict=True)} for step in (1e-7, -1e-7)
    ]
    with torch.no_grad():
        ahead, behind = (loss(torch.func.functional_call(model, each, (x,)), y).item() for each in moved)
    expected = sum((s * d).sum().item() for s, d in zip(slopes, direction, strict=True))
    assert (ahead - behind) / 2e-7 == pytest.approx(expected, rel=1e-6)


def test_what_fills_up_a_document_is_not_seen() -> None:
    short, long = T5(source=32), T5(source=40)
    with torch.no_grad():
        found, expected = (fresh(problem).double()(problem.data(None).test_inputs[:4]) for problem in (long, short))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_summaries_are_greedy() -> None:
    """Fed with what it has made, the network in one pass names each of these tokens as the likeliest."""
    problem = T5()
    model, documents = fresh(problem), problem.data(None).test_inputs[:6, : problem.source]
    found = model.summarise(documents, problem.target)  # type: ignore[operator]
    read = torch.cat([torch.zeros_like(found[:, :1]), found[:, :-1]], dim=1)
    with torch.no_grad():
        likeliest = model(torch.cat([documents, read], dim=1)).argmax(-1)
    ended = (found == 1).cumsum(1) - (found == 1).long() > 0
    assert torch.equal(likeliest[~ended], found[~ended])


@pytest.mark.slow
def test_a_trained_network_scores_more() -> None:
    problem = T5()
    data, model = problem.data(None), fresh(problem)
    assert isinstance(data, Texts)
    before = problem.score(model, data)
    assert tuple(before) == problem.scores
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(100):
        optimizer.zero_grad()
        likelihood("cross_entropy").loss(model(data.train_inputs), data.train_targets).backward()
        optimizer.step()
    after = problem.score(model, data)
    assert all(after[name] > before[name] + 10 for name in ("test.rouge1", "test.rougeL"))
    assert all(0 <= value <= 100 for value in after.values())


@pytest.mark.parametrize(
    "wrong", [{"size": "huge"}, {"task": "cnn"}, {"mode": "prefix"}, {"rank": 0}, {"target": 1}, {"vocabulary": 99}]
)
def test_t5_refuses(wrong: dict[str, int | str]) -> None:
    with pytest.raises(ValueError, match=rf"t5: .*{next(iter(wrong))}.*{next(iter(wrong.values()))}") as caught:
        T5(**wrong)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_absent_documents_are_a_skip(tmp_path: Path) -> None:
    with pytest.raises(Skip, match="xsum is absent"):
        T5(task="xsum").data(tmp_path)


def test_without_the_extra_it_is_a_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(Skip, match=r"t5 needs peft: pip install 'curvbench\[text\]'"):
        T5().model()
